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
