"""Memory stops growing, whatever is asked."""

import sys

import pytest

PROGRAM = """
import random
import candlewick as cw

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
generator = cw.Generator(model)
dice = random.Random(0)

def request():
    prompt = [dice.randrange(model.vocab_size) for _ in range(dice.randrange(1, 120))]
    options = dict(
        max_new_tokens=dice.randrange(1, 24),
        temperature=dice.choice([0.0, 0.7, 1.3]),
        seed=dice.randrange(1000),
        logprobs=dice.choice([0, 0, 5]),
        stop=dice.choice([None, ["the"], "."]),
    )
    kind = dice.randrange(4)
    if kind == 0:
        generator.generate(prompt, **options)
    elif kind == 1:
        list(generator.stream(prompt, **options))
    elif kind == 2:
        next(generator.stream(prompt, **options), None)
    else:
        generator.generate([prompt, prompt[: len(prompt) // 2 + 1]], **options)

for _ in range(300):
    request()
before = resident_bytes()
for _ in range(1000):
    request()
print((resident_bytes() - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_a_thousand_requests(run_python):
    done = run_python("-c", PROGRAM, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16


LOAD = """
import sys
import candlewick as cw

def peak_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

cw.Model.from_pretrained("candlewick/tiny", device="cpu").logits([1, 2, 3])
before = peak_bytes()
model = cw.Model.from_pretrained(sys.argv[1], device="cpu", dtype=sys.argv[2])
print((peak_bytes() - before) / model.size_in_bytes)
"""


@pytest.mark.parametrize(("dtype", "copies"), [("float32", 1.5), ("bfloat16", 2.3)])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_holds_the_weights_once(run_python, slow_model, dtype, copies):
    done = run_python("-c", LOAD, slow_model, dtype)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < copies


TRAIN = """
import sys
import candlewick as cw

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

model = cw.Model.from_pretrained(sys.argv[1], device="cpu")
rows = [{"input_ids": list(range(3, 503)), "labels": list(range(3, 503))}] * 2
resting = []
for _ in range(2):
    trainer = cw.Trainer(model, rows, batch_size=2, max_steps=3)
    next(trainer)
    busy = resident_bytes()
    trainer.train()
    resting.append(resident_bytes())
print((busy - resting[0]) / 2**20, (resting[1] - resting[0]) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_buffers_of_training_go_back_when_it_ends(run_python, slow_model):
    done = run_python("-c", TRAIN, slow_model)
    assert done.returncode == 0, done.stderr
    given_back, growth = map(float, done.stdout.split())
    assert given_back > 50
    assert growth < 10
