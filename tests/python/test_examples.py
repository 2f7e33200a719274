"""Every example a reader finds runs: scripts, notebooks, README, docstrings."""

import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import candlewick as cw
from candlewick import errors, testing

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted((REPOSITORY / "examples").glob("*.py"))
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
README = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def test_there_are_examples():
    assert len(SCRIPTS) >= 3
    assert NOTEBOOKS
    assert README


#: What an example needs besides candlewick, and some of what it prints.
LIBRARIES = {"rag": "chromadb", "ray_embed": "ray"}
PRINTED = {
    "rag.py": ["Ben lives in Oslo.", "Anna comes on Friday.", "The key is in the garden.", "(calendar.txt: "],
    "ray_embed.py": ["2000 texts, vectors of 128 numbers"],
}
QUIET = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def skip_without_its_library(path):
    if path.stem in LIBRARIES:
        pytest.importorskip(LIBRARIES[path.stem])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script(run_python, script):
    skip_without_its_library(script)
    # Other libraries may warn about themselves.
    strict = [] if script.stem in LIBRARIES else ["-W", "error"]
    done = run_python(*strict, script, env=QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for line in PRINTED.get(script.name, []):
        assert line in done.stdout


def test_readme(run_python):
    """The blocks of the README, one after the other in one program."""
    done = run_python("-W", "error", "-c", "\n".join(README), env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(notebook, tmp_path):
    """In a process of its own, because a Jupyter client warns about itself."""
    skip_without_its_library(notebook)
    program = (
        "import sys, nbformat; from nbclient import NotebookClient; "
        "notebook = nbformat.read(sys.argv[1], as_version=4); "
        "NotebookClient(notebook, timeout=120, kernel_name='python3').execute(); "
        "print(sum(len(cell.get('outputs', [])) for cell in notebook.cells))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(notebook)],
        cwd=notebook.parent,
        env=os.environ | QUIET | {"IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0


def docstrings():
    """Every docstring of the public names, native ones too, which `doctest` does not find by itself."""
    yield "candlewick", cw.__doc__
    for module in (cw, errors, testing):
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", inspect.getdoc(value) if inspect.isclass(value) else None
            if inspect.isclass(value):
                for member in vars(value):
                    if not member.startswith("_"):
                        yield f"{module.__name__}.{name}.{member}", inspect.getdoc(getattr(value, member))


EXAMPLES = {name: text for name, text in docstrings() if text and ">>>" in text}


def test_entry_points_have_examples():
    assert {"candlewick", "candlewick.Model", "candlewick.Generator"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring(name):
    scope = {"cw": cw, **{key: getattr(testing, key) for key in testing.__all__}}
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], scope, name, None, 0)
    output = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
