"""What is installed: names, documentation, types, metadata."""

import ast
import importlib.metadata
import importlib.resources
import inspect
import logging
import pickle
import re
import subprocess
import sys
from dataclasses import fields

import pytest

import candlewick as cw
from candlewick import _native, testing

PACKAGE = importlib.resources.files(cw)


def public_classes():
    return [getattr(cw, name) for name in cw.__all__ if inspect.isclass(getattr(cw, name))]


def own_members(kind):
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_version(repository):
    manifest = re.search(r'^version = "(.*)"$', (repository / "Cargo.toml").read_text(), re.MULTILINE)
    assert cw.__version__ == manifest[1] == importlib.metadata.version("candlewick")


def test_names():
    assert cw.__all__ == sorted(set(cw.__all__))
    assert len(cw.__all__) <= 30
    assert all(hasattr(cw, name) for name in cw.__all__)


def test_native_classes_are_public():
    native = {name for name, value in vars(_native).items() if inspect.isclass(value) and not name.startswith("_")}
    assert native, "the module is empty"
    assert native <= set(cw.__all__)


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)
def test_everything_public_is_documented(kind):
    assert inspect.getdoc(kind)
    assert kind.__module__.startswith("candlewick")
    undocumented = [name for name, value in own_members(kind).items() if callable(value) and not inspect.getdoc(value)]
    assert undocumented == []


def test_type_information_is_shipped():
    assert PACKAGE.joinpath("py.typed").is_file()
    stub = ast.parse(PACKAGE.joinpath("_native.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    native = {name for name, value in vars(_native).items() if inspect.isclass(value)}
    assert native
    assert native <= set(classes)


@pytest.mark.slow
def test_types_are_those_of_the_module(repository, tmp_path):
    stubtest = ("mypy.stubtest", "candlewick", "--mypy-config-file", "pyproject.toml")
    allowed = ("--allowlist", "tests/python/stubtest.txt", "--ignore-unused-allowlist")
    for command in (("mypy",), (*stubtest, *allowed)):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=repository, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    program = tmp_path / "program.py"
    program.write_text(
        "import candlewick as cw\n"
        "model = cw.Model.from_pretrained('candlewick/tiny', device='cpu')\n"
        "reveal_type(cw.Generator(model).stream('Once').result.text)\n"
        "cw.Generator(model).generate('Once', temprature=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'Revealed type is "str"' in done.stdout.replace("builtins.", "")
    assert "temprature" in done.stdout


def test_metadata():
    metadata = importlib.metadata.metadata("candlewick")
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line[: len("numpy")] for line in required] == ["numpy"]
    assert metadata["License-Expression"] == "Apache-2.0"


def test_logging_is_silent_by_default():
    handlers = logging.getLogger("candlewick").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


def test_scripted_results_hold_what_real_ones_hold(greedy):
    real = greedy.stream("Once")
    token = next(real)
    real.close()
    for scripted, actual in (
        (testing.ScriptedToken, type(token)),
        (testing.ScriptedGeneration, type(real.result)),
    ):
        expected = {name for name, value in own_members(actual).items() if not callable(value)}
        assert {field.name for field in fields(scripted)} == expected
    public = own_members(type(real))
    assert {name for name in public if hasattr(testing.ScriptedStream, name)} == set(public)


def test_scripted_model_knows_every_keyword(tiny_model):
    signature = inspect.signature(cw.Generator)
    names = set(signature.parameters) - {"model", "max_new_tokens", "stop"}
    assert names == testing._KEYWORDS
    with pytest.raises(TypeError, match="temprature"):
        testing.ScriptedModel(["x"]).generate("Hi", temprature=1)
    with pytest.raises(TypeError, match="list of texts"):
        testing.ScriptedModel("one text")
    for name in names:
        assert cw.Generator(tiny_model, max_new_tokens=1, **{name: None if name != "ignore_eos" else True})


async def test_scripted_model():
    model = testing.ScriptedModel(["one two three", "one two three", "one STOP two", "four five", "last"])
    assert model.generate("Hi").text == "one two three"
    result = model.generate("Hi", max_new_tokens=2)
    assert (result.text, result.finish_reason) == ("one two", "length")
    result = await model.agenerate("Hi", stop="STOP")
    assert (result.text, result.stop_reason) == ("one ", "STOP")
    async with model.stream("Hi") as stream:
        async for _ in stream:
            break
    assert (stream.result.text, stream.result.finish_reason) == ("four", "cancelled")
    assert [r.text for r in model.generate(["a"])] == ["last"]
    with pytest.raises(AssertionError):
        model.generate("Hi")
    assert len(model.requests) == 6


def test_results_pickle(greedy):
    result = greedy.generate("Once upon a time")
    assert pickle.loads(pickle.dumps(result)).token_ids == result.token_ids


@pytest.mark.parametrize("named", ["conftest", "option"])
def test_a_suite_may_name_the_pytest_plugin(tmp_path, named):
    (tmp_path / "test_it.py").write_text("def test_it(tiny_model):\n    assert tiny_model.vocab_size > 0\n")
    if named == "conftest":
        (tmp_path / "conftest.py").write_text('pytest_plugins = ["candlewick.testing"]\n')
    option = ["-p", "candlewick.testing"] if named == "option" else []
    command = [sys.executable, "-m", "pytest", "-q", *option, str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
