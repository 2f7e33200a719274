"""What holds for every integration: it is lazy, documented, an extra, and its examples run."""

import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil

import pytest

from candlewick import integrations
from candlewick.integrations._opened import Opened, encoding, repository

NAMES = sorted(module.name for module in pkgutil.iter_modules(integrations.__path__) if module.name[0] != "_")
LIBRARIES = {
    "chroma": "chromadb",
    "haystack": "haystack",
    "langchain": "langchain_core",
    "llama_index": "llama_index.core",
    "sentence_transformers": "candlewick",
}


def load(name):
    pytest.importorskip(LIBRARIES[name])
    return importlib.import_module(f"candlewick.integrations.{name}")


def test_every_integration_is_known():
    assert sorted(LIBRARIES) == NAMES
    extras = importlib.metadata.metadata("candlewick").get_all("Provides-Extra")
    assert {name.replace("_", "-") for name in NAMES} - {"sentence-transformers"} <= set(extras)


def test_they_are_imported_by_nobody_unasked(run_python):
    libraries = {library.partition(".")[0] for library in LIBRARIES.values()} - {"candlewick"}
    program = "import sys, candlewick, candlewick.integrations, candlewick.cli; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run_python("-c", program).stdout.split()}
    assert "candlewick" in loaded
    assert not loaded & (libraries | {"pydantic", "torch", "sentence_transformers"})


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_docstrings(name):
    module = load(name)
    examples = 0
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.ismodule(value):
            continue
        text = inspect.getdoc(value)
        assert text, public
        if ">>>" not in text or public == "install":
            continue
        test = doctest.DocTestParser().get_doctest(text, {}, public, None, 0)
        output = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        runner.run(test, out=output.append)
        assert runner.failures == 0, "".join(output)
        examples += 1
    assert examples > 0


def test_what_sentence_transformers_calls_its_keywords():
    assert encoding({"normalize_embeddings": True, "convert_to_numpy": True, "batch_size": 3}) == {
        "normalize": True,
        "batch_size": 3,
    }
    assert encoding({"normalize_embeddings": False}) == {"normalize": None}
    assert repository("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert repository("BAAI/bge-small-en") == "BAAI/bge-small-en"


def test_a_model_is_given_back_when_nobody_uses_it():
    import gc
    import weakref

    opened = Opened("embedder", "candlewick/tiny", {"device": "cpu", "max_length": 77})
    other = Opened("embedder", "candlewick/tiny", {"max_length": 77, "device": "cpu"})
    assert opened.get() is other.get()
    watch = weakref.ref(opened.get())
    del opened
    gc.collect()
    assert watch() is not None
    del other
    gc.collect()
    assert watch() is None


FORKED = """
import os, warnings
warnings.simplefilter("ignore")
from candlewick.integrations._opened import Opened
opened = Opened("embedder", "candlewick/tiny", {"device": "cpu"})
wanted = opened.get().encode("a").tolist()
child = os.fork()
if child == 0:
    try:
        os._exit(0 if opened.get().encode("a").tolist() == wanted else 3)
    except BaseException as error:
        print(error, flush=True)
        os._exit(4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_opens_its_own(run_python):
    done = run_python("-c", FORKED, timeout=30)
    assert done.stdout.split() == ["0"], done.stdout + done.stderr
