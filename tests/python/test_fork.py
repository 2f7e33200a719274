"""After a fork there is a clear error, never a hang; a fresh process works."""

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

FORKED = """
import os, sys, warnings
import candlewick as cw

warnings.simplefilter("ignore")
model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
generator = cw.Generator(model, max_new_tokens=4, temperature=0.0, ignore_eos=True)
generator.generate("Once")
child = os.fork()
if child == 0:
    try:
        generator.generate("Once")
    except cw.CandlewickError as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), generator.generate("Once").generated_tokens)
"""

SPAWNED = """
import multiprocessing
import candlewick as cw

def work(model):
    return cw.Generator(model, max_new_tokens=4, ignore_eos=True).generate("Once").generated_tokens

if __name__ == "__main__":
    model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(work, [model, model]))
"""


def test_a_forked_child_is_told(run_python):
    done = run_python("-c", FORKED, timeout=60)
    message, status = done.stdout.strip().split("\n")
    assert "fork" in message
    assert "spawn" in message
    assert status == "7 4", done.stderr


def test_spawned_workers_reopen_the_model(run_python, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(SPAWNED)
    done = run_python(program, timeout=60)
    assert done.stdout.strip() == "[4, 4]", done.stderr
