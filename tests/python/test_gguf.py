"""GGUF files and quantised models, as their users see them."""

import json
import pickle
import struct

import numpy as np
import pytest

import candlewick as cw
from candlewick import cli

IDS = list(range(1, 60))
TINY = "candlewick/tiny"


def largest(a, b):
    return float(np.abs(a - b).max())


@pytest.fixture(scope="module")
def small(tiny_model):
    return tiny_model.quantize("q8_0")


def test_a_gguf_file_is_the_checkpoint_it_was_made_from(repository):
    golden = repository / "tests" / "golden"
    theirs = cw.Model.from_pretrained(golden / "llama" / "llama3")
    ours = cw.Model.from_pretrained(golden / "gguf" / "llama3.gguf")
    assert ours.architecture == "llama"
    assert largest(ours.logits(IDS), theirs.logits(IDS)) < 1e-4


def test_quantising_makes_a_model_smaller_and_hardly_worse(tiny_model, small):
    assert (small.dtype, tiny_model.dtype) == ("q8_0", "bfloat16")
    assert small.size_in_bytes < 0.6 * tiny_model.size_in_bytes
    assert small.num_parameters == tiny_model.num_parameters
    difference = largest(small.logits(IDS), tiny_model.logits(IDS))
    assert 0 < difference < 0.05 * float(np.abs(tiny_model.logits(IDS)).max())
    loaded = cw.Model.from_pretrained(TINY, quantize="q8_0")
    assert largest(loaded.logits(IDS), small.logits(IDS)) == 0


def test_a_quantised_model_pickles(small):
    again = pickle.loads(pickle.dumps(small))
    assert again.dtype == "q8_0"
    assert largest(again.logits(IDS), small.logits(IDS)) == 0


@pytest.mark.parametrize("name", ["int4", "", "q9_0"])
def test_unknown_formats_are_named_with_the_known_ones(tiny_model, name):
    with pytest.raises(cw.InvalidArgumentError, match=r"q4_0.*q8_0"):
        tiny_model.quantize(name)
    with pytest.raises(ValueError, match="q4_k_m"):
        cw.Model.from_pretrained(TINY, quantize=name)


def test_a_saved_gguf_file_generates_the_same(small, tmp_path):
    path = tmp_path / "tiny.gguf"
    small.save_gguf(path)
    again = cw.Model.from_pretrained(path)
    assert again.dtype == "q8_0"
    assert again.tokenizer.chat_template == small.tokenizer.chat_template
    question = [{"role": "user", "content": "What is the capital of France?"}]
    texts = [cw.Generator(model, max_new_tokens=24, temperature=0).generate(question).text for model in (small, again)]
    assert texts[0] == texts[1]


def test_llama_cpp_computes_the_same(small, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "tiny.gguf"
    small.save_gguf(path)
    llm = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, n_threads=1, verbose=False)
    llm.eval(IDS)
    theirs = np.array(llm.scores[: len(IDS)])
    assert largest(small.logits(IDS), theirs) < 0.05 * float(np.abs(theirs).max())
    text = "Once upon a time, 12 cats"
    assert llm.tokenize(text.encode(), add_bos=False) == small.tokenizer.encode(text)


def test_a_saved_directory_loads_again(tiny_model, small, tmp_path):
    tiny_model.save_pretrained(tmp_path / "same")
    same = cw.Model.from_pretrained(tmp_path / "same")
    assert same.config == tiny_model.config
    assert largest(same.logits(IDS), tiny_model.logits(IDS)) == 0
    small.save_pretrained(tmp_path / "decoded")
    decoded = cw.Model.from_pretrained(tmp_path / "decoded")
    assert decoded.dtype == "bfloat16"
    assert largest(decoded.logits(IDS), small.logits(IDS)) < 0.05 * float(np.abs(small.logits(IDS)).max())


@pytest.fixture
def importance(tiny_model, tmp_path):
    """An importance matrix in llama.cpp's older format: only the first 8 columns of some matrices matter."""
    sums = np.where(np.arange(tiny_model.config["hidden_size"]) < 8, 1.0, 1e-6).astype("<f4")
    names = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in ("attn_q", "ffn_up")]
    entries = [
        struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(sums)) + sums.tobytes()
        for name in names
    ]
    path = tmp_path / "importance.dat"
    path.write_bytes(struct.pack("<i", len(names)) + b"".join(entries))
    return path


def test_quantising_by_an_importance_matrix(tiny_model, importance, tmp_path):
    plain, weighted = tiny_model.quantize("q4_0"), tiny_model.quantize("q4_0", importance=importance)
    assert largest(plain.logits(IDS), weighted.logits(IDS)) > 0
    loaded = cw.Model.from_pretrained(TINY, quantize="q4_0", importance=importance)
    assert largest(loaded.logits(IDS), weighted.logits(IDS)) == 0
    again = pickle.loads(pickle.dumps(loaded))
    assert largest(again.logits(IDS), weighted.logits(IDS)) == 0
    path = tmp_path / "tiny.gguf"
    assert cli.main(["quantize", TINY, "-f", "q4_0", "-o", str(path), "--imatrix", str(importance)]) == 0
    assert largest(cw.Model.from_pretrained(path).logits(IDS), weighted.logits(IDS)) == 0
    with pytest.raises(FileNotFoundError):
        tiny_model.quantize("q4_0", importance=tmp_path / "nothing.dat")
    importance.write_bytes(importance.read_bytes()[:-1])
    with pytest.raises(cw.errors.CheckpointError, match="importance matrix"):
        tiny_model.quantize("q4_0", importance=importance)
    with pytest.raises(cw.errors.InvalidArgumentError, match="quantize"):
        cw.Model.from_pretrained(TINY, importance=importance)


def test_weights_that_are_not_finite_are_an_error(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = bytearray(path.read_bytes())
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    name = "model.layers.0.mlp.up_proj.weight"
    at = 8 + int.from_bytes(stored[:8], "little") + header[name]["data_offsets"][0]
    assert header[name]["dtype"] == "BF16"
    stored[at : at + 2] = b"\xc0\x7f"
    path.write_bytes(stored)
    for format in ("q4_0", "q4_k_m", "q8_0"):
        with pytest.raises(cw.errors.CheckpointError, match=f"{name}.*NaN in row 0, column 0"):
            cw.Model.from_pretrained(tmp_path, quantize=format)


def test_commands(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little cat. " * 40)
    path = tmp_path / "tiny.gguf"
    assert cli.main(["quantize", TINY, "-f", "q8_0", "-o", str(path)]) == 0
    perplexities = []
    for model in (TINY, str(path)):
        assert cli.main(["perplexity", model, str(text), "--context", "64"]) == 0
        perplexities.append(float(capsys.readouterr().out))
    assert 1 < perplexities[0] < 200
    assert abs(perplexities[1] / perplexities[0] - 1) < 0.05
    short = tmp_path / "short.txt"
    short.write_text("cat")
    assert cli.main(["perplexity", TINY, str(short)]) == cli.EXIT_ERROR
