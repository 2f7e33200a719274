"""Every example a reader finds runs: scripts, notebooks, README, docstrings."""

import doctest
import inspect
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script(run_python, script):
    done = run_python("-W", "error", script, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_readme(run_python):
    """The blocks of the README, one after the other in one program."""
    done = run_python("-W", "error", "-c", "\n".join(README), env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(notebook, tmp_path):
    """In a process of its own, because a Jupyter client warns about itself."""
    program = (
        "import sys, nbformat; from nbclient import NotebookClient; "
        "notebook = nbformat.read(sys.argv[1], as_version=4); "
        "NotebookClient(notebook, timeout=120, kernel_name='python3').execute(); "
        "print(sum(len(cell.get('outputs', [])) for cell in notebook.cells))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(notebook)], cwd=tmp_path, capture_output=True, text=True, check=False
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
