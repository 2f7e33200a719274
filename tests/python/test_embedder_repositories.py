"""Repositories whose files say something unusual, against what sentence-transformers makes of them.

The expectations are from tests/golden/make_variants.py, which makes the same changes.
"""

import asyncio
import inspect
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import candlewick as cw

ENCODERS = Path(__file__).parents[1] / "golden" / "encoders"
TEXTS = json.loads((ENCODERS / "texts.json").read_text())
PAIRS = [tuple(pair) for pair in json.loads((ENCODERS / "pairs.json").read_text())]
EXPECTED = json.loads((ENCODERS / "variants.json").read_text())
QUIET = {"truncation": "silent"}


def close(found, wanted):
    """Equal to 1e-5, in units of the largest value where that is above 1."""
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max())), rtol=0)


@pytest.fixture
def copied(tmp_path):
    """Copies a repository to where it can be changed."""
    return lambda case: shutil.copytree(ENCODERS / case, tmp_path / "model")


def edit(path, **changes):
    fields = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(fields | changes))


def encodes_as(name, directory):
    with cw.Embedder.from_pretrained(directory, device="cpu") as embedder:
        close(embedder.encode(TEXTS, **QUIET), np.array(EXPECTED[name]))


def scores_as(name, directory):
    with cw.Reranker.from_pretrained(directory, device="cpu") as reranker:
        close(reranker.predict(PAIRS, **QUIET), np.array(EXPECTED[name]))


# --- where files are --------------------------------------------------------------------------------------


def test_a_transformer_in_a_folder_of_its_own(copied):
    directory = copied("bert/mean")
    (directory / "0_BERT").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.move(directory / file, directory / "0_BERT")
    modules = json.loads((directory / "modules.json").read_text())
    modules[0]["path"] = "0_BERT"
    (directory / "modules.json").write_text(json.dumps(modules))
    encodes_as("nested", directory)
    modules[0]["path"] = "../model/0_BERT"
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(cw.ConfigError, match="outside"):
        cw.Embedder.from_pretrained(directory)


def test_words_by_line(copied):
    directory = copied("bert/mean")
    words = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=words.get)))
    (directory / "tokenizer.json").unlink()
    encodes_as("vocabulary_only", directory)


def test_other_kinds_of_modules_are_named(tmp_path):
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(cw.ConfigError, match="StaticEmbedding"):
        cw.Embedder.from_pretrained(tmp_path)


# --- what is done after the transformer -------------------------------------------------------------------


def test_without_a_list_of_modules_other_files_mean_nothing(copied):
    directory = copied("bert/mean")
    (directory / "modules.json").unlink()
    edit(directory / "sentence_bert_config.json", max_seq_length=5, do_lower_case=True)
    encodes_as("unlisted", directory)


def test_models_that_continue_texts_are_pooled_at_the_last_token(copied):
    directory = copied("qwen3/last-token")
    (directory / "modules.json").unlink()
    edit(directory / "config.json", architectures=["Qwen3ForCausalLM"])
    encodes_as("unlisted_causal", directory)
    tokens = cw.Embedder.from_pretrained(directory, device="cpu").encode(TEXTS[0], output="token")
    edit(directory / "config.json", architectures=["Qwen3Model"])
    close(cw.Embedder.from_pretrained(directory, device="cpu").encode(TEXTS[0]), tokens.mean(axis=0))
    edit(directory / "config.json", architectures=["Qwen3ForCausalLM"], is_causal=False)
    with pytest.raises(cw.ConfigError, match="is_causal"):
        cw.Embedder.from_pretrained(directory)


def test_the_bundled_model_is_pooled_by_its_mean(tiny_embedder):
    tokens = tiny_embedder.encode("The dog ran home.", output="token")
    close(tiny_embedder.encode("The dog ran home."), tokens.mean(axis=0))


def test_no_pooling_mode_is_refused(copied):
    directory = copied("bert/mean")
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 24, "pooling_mode": []}))
    with pytest.raises(cw.ConfigError, match="pooling_mode"):
        cw.Embedder.from_pretrained(directory)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("outputs", [24, 7])
def test_dense_layers(copied, residual, outputs):
    directory = copied("bert/mean")
    plain = cw.Embedder.from_pretrained(directory, device="cpu").encode(TEXTS, **QUIET)
    modules = json.loads((directory / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "3_Dense").mkdir()
    noise = np.random.default_rng(3)
    tensors = {
        "linear.weight": noise.normal(size=(outputs, 24)).astype(np.float32),
        "linear.bias": noise.normal(size=outputs).astype(np.float32),
    }
    added = plain
    if outputs != 24:
        tensors["residual.weight"] = noise.normal(size=(outputs, 24)).astype(np.float32)
        added = plain @ tensors["residual.weight"].T
    if not residual:
        tensors.pop("residual.weight", None)
    save_file(tensors, directory / "3_Dense" / "model.safetensors")
    linear = plain @ tensors["linear.weight"].T + tensors["linear.bias"]
    leaky, tanh = np.where(linear < 0, 0.01 * linear, linear), np.tanh(linear)
    config = {"in_features": 24, "out_features": outputs, "bias": True, "use_residual": residual}
    for activation, wanted in {
        "torch.nn.modules.activation.LeakyReLU": leaky,
        "torch.nn.modules.activation.Softsign": linear / (1 + np.abs(linear)),
        # Code of a repository is not run; what sentence-transformers uses then is used.
        "somebody.code.LeakyReLU": tanh,
    }.items():
        edit(directory / "3_Dense" / "config.json", **config, activation_function=activation)
        with cw.Embedder.from_pretrained(directory, device="cpu") as embedder:
            assert embedder.dimension == outputs
            close(embedder.encode(TEXTS, **QUIET), wanted + (added if residual else 0))
    edit(directory / "3_Dense" / "config.json", activation_function="torch.nn.modules.activation.PReLU")
    with pytest.raises(cw.ConfigError, match="PReLU"):
        cw.Embedder.from_pretrained(directory)


def test_prompts_take_the_place_of_the_same_names_only(copied):
    directory = copied("bert/plain")
    named = shutil.move(directory, directory.parent / "e5-tiny-v2")
    embedder = cw.Embedder.from_pretrained(named, device="cpu", prompts={"query": "? "})
    assert embedder.prompts == {"query": "? ", "document": "passage: "}


# --- cross-encoders ---------------------------------------------------------------------------------------


def test_token_types_are_told_where_the_tokenizer_tells_them(copied):
    directory = copied("bert/rerank")
    config = directory / "tokenizer_config.json"
    before = config.read_text()
    edit(config, tokenizer_class="PreTrainedTokenizerFast")
    scores_as("without_types", directory)
    config.write_text(before)
    edit(config, model_input_names=["input_ids", "attention_mask"])
    scores_as("with_names", directory)
    edit(config, tokenizer_class="PreTrainedTokenizerFast", model_input_names=["input_ids", "token_type_ids"])
    with cw.Reranker.from_pretrained(directory, device="cpu") as reranker:
        close(reranker.predict(PAIRS, **QUIET), load_file(directory / "expected.safetensors")["scores"])


def test_activations_of_the_configuration(copied):
    directory = copied("bert/rerank")
    for name, path in {
        "tanh": "torch.nn.modules.activation.Tanh",
        "softsign": "torch.nn.modules.activation.Softsign",
        "untrusted": "somebody.code.Tanh",
    }.items():
        edit(directory / "config.json", sentence_transformers={"activation_fn": path})
        scores_as(name, directory)
    edit(directory / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.GLU"})
    with pytest.raises(cw.ConfigError, match="GLU"):
        cw.Reranker.from_pretrained(directory)


def test_activations_of_a_call(copied):
    directory = copied("bert/rerank")
    logits = load_file(directory / "expected.safetensors")["logits"]
    reranker = cw.Reranker.from_pretrained(directory, device="cpu")
    close(reranker.predict(PAIRS, activation="tanh", **QUIET), np.tanh(logits))
    close(reranker.predict(PAIRS, activation="ReLU", **QUIET), np.maximum(logits, 0))
    with pytest.raises(cw.InvalidArgumentError, match="softplus"):
        reranker.predict(PAIRS, activation="softplus!")


def test_cross_encoders_as_version_6_saves_them(copied):
    directory = copied("bert/rerank")
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    (directory / "modules.json").write_text(json.dumps([module]))
    edit(directory / "tokenizer_config.json", model_max_length=24)
    general = directory / "config_sentence_transformers.json"
    edit(
        general,
        model_type="CrossEncoder",
        activation_fn="torch.nn.modules.activation.Tanh",
        prompts={"query": "Which planet "},
        default_prompt_name="query",
    )
    scores_as("saved_by_6", directory)
    reranker = cw.Reranker.from_pretrained(directory, device="cpu")
    assert reranker.prompts == {"query": "Which planet "}
    prompted = [("Which planet " + first, second) for first, second in PAIRS]
    np.testing.assert_array_equal(reranker.predict(PAIRS), reranker.predict(prompted, prompt=""))
    np.testing.assert_array_equal(
        reranker.predict(PAIRS, prompt="A "), reranker.predict([("A " + a, b) for a, b in PAIRS], prompt="")
    )
    documents = [second for _, second in PAIRS]
    assert reranker.rank("is red?", documents) == reranker.rank("Which planet is red?", documents, prompt="")
    with pytest.raises(cw.InvalidArgumentError, match="prompt_name"):
        reranker.predict(PAIRS, prompt_name="passage")
    edit(general, model_type="SentenceTransformer")
    with cw.Reranker.from_pretrained(directory, device="cpu") as converted:
        assert converted.prompts == {}
    edit(general, model_type="CrossEncoder")
    (directory / "modules.json").write_text(json.dumps([module, {**module, "idx": 1, "type": "somebody.Dense"}]))
    with pytest.raises(cw.ConfigError, match="Dense"):
        cw.Reranker.from_pretrained(directory)


# --- mistakes ---------------------------------------------------------------------------------------------


def test_dictionaries_are_no_lists_of_texts(tiny_embedder, copied):
    with pytest.raises(TypeError, match="dict"):
        tiny_embedder.encode({"a": 1})
    with pytest.raises(TypeError, match="dict"):
        tiny_embedder.encode_document({"a": "b"})
    reranker = cw.Reranker.from_pretrained(copied("bert/rerank"), device="cpu")
    with pytest.raises(TypeError, match="pairs"):
        reranker.predict([{"query": "a", "document": "b"}])
    with pytest.raises(TypeError, match="dict"):
        reranker.rank("a", {"b": 1})


@pytest.mark.parametrize("length", [1, 2])
def test_lengths_without_room_for_a_text_are_refused_at_once(copied, length):
    directory = copied("bert/mean")
    if length == 1:
        with pytest.raises(cw.InvalidArgumentError, match="max_length"):
            cw.Embedder.from_pretrained(directory, max_length=length)
        edit(directory / "sentence_bert_config.json", max_seq_length=length)
        with pytest.raises(cw.ConfigError, match="max_seq_length"):
            cw.Embedder.from_pretrained(directory)
    else:
        # Only what is around a text.
        embedder = cw.Embedder.from_pretrained(directory, max_length=length)
        np.testing.assert_array_equal(embedder.encode("a cat", **QUIET), embedder.encode(""))


async def test_mistakes_are_told_where_they_are_awaited(tiny_embedder):
    good, bad = await asyncio.gather(
        tiny_embedder.aencode("a"), tiny_embedder.aencode(["a", 3]), return_exceptions=True
    )
    np.testing.assert_allclose(good, tiny_embedder.encode("a"), atol=1e-6)
    assert isinstance(bad, TypeError)
    with pytest.raises(cw.InvalidArgumentError, match="precision"):
        await tiny_embedder.aencode_query("a", precision="int3")


async def test_everything_that_encode_takes_aencode_takes(tiny_embedder):
    for role in ("encode", "encode_query", "encode_document"):
        method, waiting = getattr(tiny_embedder, role), getattr(tiny_embedder, f"a{role}")
        assert list(inspect.signature(waiting).parameters) == list(inspect.signature(method).parameters)
        options = {"output": "token", "prompt": "b ", "show_progress_bar": False}
        wanted = method(["a cat", "a"], **options)
        found = await waiting(["a cat", "a"], **options)
        assert [matrix.shape for matrix in found] == [matrix.shape for matrix in wanted]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    quiet = await tiny_embedder.aencode("a cat", truncate_dim=5, normalize=True, show_progress_bar=True)
    np.testing.assert_allclose(quiet, tiny_embedder.encode("a cat", truncate_dim=5, normalize=True), atol=1e-6)
    with pytest.raises(cw.InvalidArgumentError, match="output"):
        await tiny_embedder.aencode("a", output="word")


def test_pickles_open_from_any_working_directory(copied, monkeypatch, tmp_path):
    directory = copied("bert/rerank")
    monkeypatch.chdir(directory.parent)
    reranker = cw.Reranker.from_pretrained(directory.name, device="cpu")
    embedder = cw.Embedder.from_pretrained(directory.name, device="cpu")
    assert embedder.source == directory.name
    model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
    model.save_pretrained("saved")
    saved = cw.Model.from_pretrained("saved", device="cpu")
    stored = pickle.dumps((reranker, embedder, saved))
    monkeypatch.chdir(tmp_path.parent)
    for found in pickle.loads(stored):
        assert type(found) in (cw.Reranker, cw.Embedder, cw.Model)
