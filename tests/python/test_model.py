"""Loading, looking at and computing with a model."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import candlewick as cw


def test_properties(tiny_model):
    assert tiny_model.architecture == "qwen2"
    assert tiny_model.config["model_type"] == "qwen2"
    assert tiny_model.device == "cpu"
    assert tiny_model.dtype in {"float32", "bfloat16", "float16"}
    assert tiny_model.source == "candlewick/tiny"
    assert tiny_model.vocab_size == tiny_model.config["vocab_size"]
    assert tiny_model.context_length == tiny_model.config["max_position_embeddings"]
    assert isinstance(tiny_model.generation_defaults, dict)


def test_sizes_follow_from_the_config(tiny_model):
    config = tiny_model.config
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    layer = 2 * hidden + (queries + 2 * keys) * (hidden + 1) + queries * hidden + 3 * hidden * intermediate
    embedding = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    assert tiny_model.num_parameters == embedding + config["num_hidden_layers"] * layer + hidden
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[tiny_model.dtype]
    assert tiny_model.size_in_bytes == pytest.approx(tiny_model.num_parameters * width, rel=0.1)


def test_repr_is_one_line_that_says_what_it_is(tiny_model):
    text = repr(tiny_model)
    assert "\n" not in text
    assert "candlewick/tiny" in text
    assert "candlewick/tiny" in tiny_model._repr_html_()


def test_logits(tiny_model):
    ids = tiny_model.tokenizer.encode("Once upon a time")
    logits = tiny_model.logits(ids)
    assert logits.dtype == np.float32
    assert logits.shape == (len(ids), tiny_model.vocab_size)
    assert np.isfinite(logits).all()
    assert logits.flags.c_contiguous


def test_hidden_states(tiny_model):
    hidden = tiny_model.hidden_states([1, 2, 3])
    assert hidden.dtype == np.float32
    assert hidden.shape == (3, tiny_model.config["hidden_size"])
    assert [h.shape[0] for h in tiny_model.hidden_states([[1, 2, 3], [4]])] == [3, 1]


def test_ragged_lists_change_nothing(tiny_model):
    sequences = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 13, 14]]
    together = tiny_model.logits(sequences)
    assert isinstance(together, list)
    for ids, logits in zip(sequences, together, strict=True):
        np.testing.assert_allclose(logits, tiny_model.logits(ids), atol=1e-4, rtol=0)


def test_a_later_token_never_changes_an_earlier_result(tiny_model):
    short, long = tiny_model.logits([5, 6, 7]), tiny_model.logits([5, 6, 7, 8, 9])
    np.testing.assert_allclose(long[:3], short, atol=1e-4, rtol=0)
    other = tiny_model.logits([5, 6, 7, 100, 101])
    np.testing.assert_array_equal(long[:3], other[:3])
    assert not np.array_equal(long[3:], other[3:])


def test_ids_may_be_any_sequence_of_integers(tiny_model):
    expected = tiny_model.logits([5, 6, 7])
    np.testing.assert_array_equal(tiny_model.logits((5, 6, 7)), expected)
    np.testing.assert_array_equal(tiny_model.logits(np.array([5, 6, 7])), expected)


def test_empty_input_is_refused(tiny_model):
    with pytest.raises(cw.InvalidArgumentError, match="input_ids"):
        tiny_model.logits([])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(tiny_model, dtype):
    with cw.Model.from_pretrained("candlewick/tiny", dtype=dtype, device="cpu") as model:
        assert model.dtype == dtype
        np.testing.assert_allclose(model.logits([5, 6, 7]), tiny_model.logits([5, 6, 7]), atol=0.5, rtol=0.1)


def test_pickle_reopens_by_source(tiny_model):
    data = pickle.dumps(tiny_model)
    assert len(data) < 10_000
    with pickle.loads(data) as copy:
        assert (copy.source, copy.dtype, copy.device) == (tiny_model.source, tiny_model.dtype, tiny_model.device)
        np.testing.assert_array_equal(copy.logits([5, 6, 7]), tiny_model.logits([5, 6, 7]))


def test_pickle_survives_another_process(tiny_model, run_python, tmp_path):
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(tiny_model))
    program = (
        "import pickle, pathlib; model = pickle.loads(pathlib.Path('model.pickle').read_bytes()); "
        "print(model.source, model.logits([5, 6]).shape[0])"
    )
    done = run_python("-c", program)
    assert done.stdout.split() == ["candlewick/tiny", "2"], done.stderr


def test_close():
    model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
    generator = cw.Generator(model, max_new_tokens=2)
    assert generator.generate("Once").generated_tokens > 0
    model.close()
    model.close()
    with pytest.raises(cw.CandlewickError, match="closed"):
        model.logits([1])
    with pytest.raises(cw.CandlewickError, match="closed"):
        generator.generate("Once")


def test_context_manager_closes():
    with cw.Model.from_pretrained("candlewick/tiny", device="cpu") as model:
        assert model.vocab_size > 0
    with pytest.raises(cw.CandlewickError, match="closed"):
        model.logits([1])


def test_nothing_is_printed(capfd, greedy):
    with cw.Model.from_pretrained("candlewick/tiny", device="cpu") as model:
        repr(model)
    greedy.generate("Once upon a time")
    assert capfd.readouterr() == ("", "")


def loaded(directory, **changes):
    """Logits of the model in ``directory`` after changes of its configuration; None removes a field."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    with cw.Model.from_pretrained(directory, device="cpu") as model:
        return model.logits(list(range(20)))


def test_scaling_that_was_added_beside_rope_parameters_counts(checkpoint):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    plain = loaded(checkpoint, rope_theta=500.0, rope_parameters=None, rope_scaling=None)
    wanted = loaded(checkpoint, rope_scaling=scaling)
    default = {"rope_type": "default", "rope_theta": 500.0}
    found = loaded(checkpoint, rope_theta=None, rope_parameters=default, rope_scaling=scaling)
    np.testing.assert_array_equal(found, wanted)
    assert abs(found - plain).max() > 1e-3


def test_a_stored_head_counts_unless_it_is_the_embedding(checkpoint):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tied = loaded(checkpoint)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.copy()}, path)
    np.testing.assert_array_equal(loaded(checkpoint), tied)
    save_file(tensors | {"lm_head.weight": embedding * 2}, path)
    np.testing.assert_allclose(loaded(checkpoint), tied * 2, rtol=1e-6)
    with cw.Model.from_pretrained(checkpoint, device="cpu") as model:
        assert model.config["tie_word_embeddings"] is False


def test_mistral_slides_in_the_layers_that_are_named(checkpoint):
    family = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4}
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if ".bias" not in name}, checkpoint / "model.safetensors")
    layers = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
    sliding = loaded(checkpoint, **family, layer_types=None)
    np.testing.assert_array_equal(loaded(checkpoint, layer_types=["sliding_attention"] * layers), sliding)
    full = loaded(checkpoint, layer_types=["full_attention"] * layers)
    assert abs(full - sliding).max() > 1e-3
    np.testing.assert_array_equal(loaded(checkpoint, layer_types=None, sliding_window=1000), full)


def test_ids_of_a_padded_vocabulary_have_no_text(tiny_model):
    tokenizer = tiny_model.tokenizer
    ids = tokenizer.encode("The cat")
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == tokenizer.decode(ids)


def test_saving_over_another_model_leaves_nothing_of_it(tiny_model, tmp_path):
    stale = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "vocab.json"]
    for name in stale:
        (tmp_path / name).write_text("{}")
    (tmp_path / "notes.md").write_text("mine")
    tiny_model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert not names & set(stale)
    assert "notes.md" in names
    with cw.Model.from_pretrained(tmp_path, device="cpu") as again:
        np.testing.assert_array_equal(again.logits([1, 2, 3]), tiny_model.logits([1, 2, 3]))
        assert again.tokenizer.chat_template == tiny_model.tokenizer.chat_template


def test_a_model_without_a_head_gives_no_logits(checkpoint):
    """As embedding models are stored: names without their first part, and no head."""
    config = json.loads((checkpoint / "config.json").read_text()) | {"tie_word_embeddings": False}
    (checkpoint / "config.json").write_text(json.dumps(config))
    weights = load_file(checkpoint / "model.safetensors")
    weights = {name.removeprefix("model."): weight for name, weight in weights.items() if name != "lm_head.weight"}
    save_file(weights, checkpoint / "model.safetensors")
    with cw.Model.from_pretrained(checkpoint, device="cpu") as model:
        assert model.hidden_states([1, 2]).shape == (2, config["hidden_size"])
        with pytest.raises(cw.CheckpointError, match="no language-model head"):
            model.logits([1, 2])
        with pytest.raises(cw.CheckpointError, match="no language-model head"):
            cw.Generator(model).generate([1, 2])
