"""Importing is quick and needs nothing but numpy."""

import sys

QUICK_S = 0.150

TIMED = """
import time
started = time.perf_counter()
import candlewick
print(time.perf_counter() - started)
"""

ISOLATED = """
import sys

class OnlyNumpy:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {"candlewick", "numpy"}:
            return None
        raise ImportError(f"{name} is not a dependency")

sys.meta_path.insert(0, OnlyNumpy())
import candlewick as cw
with cw.Model.from_pretrained("candlewick/tiny", device="cpu") as model:
    print(cw.Generator(model, max_new_tokens=4, ignore_eos=True).generate("Once").generated_tokens)
    print(model.logits([1, 2]).shape[0])
"""


def test_import_is_quick(run_python):
    seconds = min(float(run_python("-c", TIMED).stdout) for _ in range(5))
    assert seconds < QUICK_S


def test_import_and_use_need_only_numpy(run_python):
    done = run_python("-c", ISOLATED)
    assert done.stdout.split() == ["4", "2"], done.stderr


def test_import_loads_little(run_python):
    done = run_python("-c", "import sys, candlewick; print(*sorted({m.partition('.')[0] for m in sys.modules}))")
    modules = set(done.stdout.split())
    assert "candlewick" in modules
    assert not modules & {"asyncio", "multiprocessing", "pytest", "tqdm"}


def test_the_interpreter_is_the_one_under_test(run_python):
    assert run_python("-c", "import sys; print(sys.prefix)").stdout.strip() == sys.prefix
