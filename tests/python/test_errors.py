"""Every failure is of the class that says what to do about it, and names what failed."""

import json
import os
import pickle

import pytest

import candlewick as cw
from candlewick import errors

BASES = {
    "ModelNotFoundError": FileNotFoundError,
    "UnsupportedModelError": ValueError,
    "ConfigError": ValueError,
    "CheckpointError": ValueError,
    "AdapterError": ValueError,
    "InvalidArgumentError": ValueError,
    "DataError": ValueError,
    "ContextLengthError": ValueError,
    "DeviceError": RuntimeError,
    "OutOfMemoryError": MemoryError,
    "TrainingDivergedError": ArithmeticError,
    "InternalError": RuntimeError,
}


def test_no_exception_is_left_out():
    assert sorted([*BASES, "CandlewickError"]) == errors.__all__


@pytest.mark.parametrize("name", BASES)
def test_bases(name):
    kind = getattr(cw, name)
    assert kind is getattr(errors, name)
    assert kind.__bases__ == (cw.CandlewickError, BASES[name])
    assert str(kind("what failed")) == "what failed"
    assert pickle.loads(pickle.dumps(kind("what failed"))).args == ("what failed",)


def test_adapter_error_keeps_its_code():
    error = pickle.loads(pickle.dumps(cw.AdapterError("rank differs", "shape_mismatch")))
    assert (error.code, error.args) == ("shape_mismatch", ("rank differs",))


def edit(checkpoint, **changes):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_missing_directory(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(cw.ModelNotFoundError, match="missing"):
        cw.Model.from_pretrained(missing)
    with pytest.raises(FileNotFoundError):
        cw.Model.from_pretrained(str(missing))


def test_unsupported_model_lists_the_supported(checkpoint):
    edit(checkpoint, model_type="mamba7")
    with pytest.raises(cw.UnsupportedModelError, match=r"mamba7.*qwen2"):
        cw.Model.from_pretrained(checkpoint)


def test_missing_field_is_named(checkpoint):
    edit(checkpoint, hidden_size=...)
    with pytest.raises(cw.ConfigError, match=r"config\.json.*hidden_size"):
        cw.Model.from_pretrained(checkpoint)


def test_field_that_would_change_the_numbers_is_refused(checkpoint):
    edit(checkpoint, hidden_act="swooosh")
    with pytest.raises(cw.ConfigError, match="hidden_act"):
        cw.Model.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"model_type": "llama", "layer_types": ["linear_attention"] * 2}, "layer_types"),
    ],
)
def test_what_the_family_does_not_know_is_refused(checkpoint, changes, field):
    config = json.loads((checkpoint / "config.json").read_text())
    if "layer_types" in changes:
        changes = {**changes, "layer_types": changes["layer_types"][:1] * config["num_hidden_layers"]}
    (checkpoint / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(cw.ConfigError, match=field):
        cw.Model.from_pretrained(checkpoint, device="cpu")


def test_config_that_is_no_json(checkpoint):
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(cw.ConfigError, match=r"config\.json"):
        cw.Model.from_pretrained(checkpoint)


def test_truncated_weights(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(cw.CheckpointError, match=r"model\.safetensors"):
        cw.Model.from_pretrained(checkpoint)


def test_all_missing_tensors_are_named(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    edit(checkpoint, num_hidden_layers=config["num_hidden_layers"] + 1, layer_types=...)
    with pytest.raises(cw.CheckpointError) as caught:
        cw.Model.from_pretrained(checkpoint)
    assert "q_proj" in str(caught.value)
    assert "down_proj" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_a_permission_error(checkpoint):
    (checkpoint / "config.json").chmod(0)
    with pytest.raises(PermissionError):
        cw.Model.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("keyword", "value", "kind"),
    [
        ("device", "toaster", cw.InvalidArgumentError),
        ("dtype", "float13", cw.InvalidArgumentError),
        ("memory_limit_bytes", 1000, cw.OutOfMemoryError),
    ],
)
def test_refused_load_arguments(keyword, value, kind):
    with pytest.raises(kind):
        cw.Model.from_pretrained("candlewick/tiny", **{keyword: value})


@pytest.mark.parametrize("device", ["cuda:63", "metal"])
def test_a_device_that_is_not_here(device):
    if device == "metal" and os.uname().sysname == "Darwin":
        pytest.skip("there may be a Metal device here")
    with pytest.raises(cw.DeviceError, match=device.split(":")[0]):
        cw.Model.from_pretrained("candlewick/tiny", device=device)


def test_unknown_keyword_is_a_type_error(tiny_model):
    with pytest.raises(TypeError, match="temprature"):
        cw.Generator(tiny_model, temprature=1.0)
    with pytest.raises(TypeError, match="dvice"):
        cw.Model.from_pretrained("candlewick/tiny", dvice="cpu")


def test_options_are_keyword_only(tiny_model):
    with pytest.raises(TypeError):
        cw.Generator(tiny_model, 5)
    with pytest.raises(TypeError):
        cw.Model.from_pretrained("candlewick/tiny", "cpu")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
    ],
)
def test_refused_sampling_arguments(tiny_model, keyword, value):
    with pytest.raises(cw.InvalidArgumentError, match=keyword):
        cw.Generator(tiny_model, **{keyword: value})
    with pytest.raises(cw.InvalidArgumentError, match=keyword):
        cw.Generator(tiny_model).generate("Once", **{keyword: value})


@pytest.mark.parametrize(("keyword", "value"), [("temperature", "hot"), ("max_new_tokens", "many"), ("stop", 5)])
def test_wrong_types_are_type_errors(greedy, keyword, value):
    with pytest.raises(TypeError):
        greedy.generate("Once", **{keyword: value})


@pytest.mark.parametrize("prompt", [None, 5, 1.5, object()])
def test_wrong_prompts_are_type_errors(greedy, prompt):
    with pytest.raises(TypeError):
        greedy.generate(prompt)


def test_token_ids_outside_of_the_vocabulary(tiny_model, greedy):
    with pytest.raises(cw.InvalidArgumentError, match=str(tiny_model.vocab_size)):
        greedy.generate([1, tiny_model.vocab_size])
    with pytest.raises(cw.InvalidArgumentError, match=str(tiny_model.vocab_size)):
        tiny_model.logits([1, tiny_model.vocab_size])


def test_prompt_longer_than_the_context(tiny_model, greedy):
    tokens = tiny_model.context_length + 1
    with pytest.raises(cw.ContextLengthError, match=str(tiny_model.context_length)):
        greedy.generate([1] * tokens)
    assert greedy.generate("Once").generated_tokens > 0


def test_message_without_role(greedy):
    with pytest.raises((cw.InvalidArgumentError, TypeError), match="role"):
        greedy.generate([{"content": "Hello"}])
