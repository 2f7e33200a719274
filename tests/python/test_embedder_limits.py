"""What embedders and rerankers withstand: odd texts, many threads, many texts, many calls, Ctrl-C, fork."""

import asyncio
import json
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import candlewick as cw

ENCODERS = Path(__file__).parents[1] / "golden" / "encoders"
PAIRS = [tuple(pair) for pair in json.loads((ENCODERS / "pairs.json").read_text())]
ODD = [
    "",
    " ",
    "\n\t ",
    "\0",
    "a\0b",
    "🙂",
    "👩‍👩‍👧‍👦" * 50,
    "\u0301",
    "\u202e",
    "\ufeff",
    "x" * 100_000,
    "a cat " * 20_000,
]
FAMILIES = sorted(path.parent for path in ENCODERS.glob("*/*/expected.json"))


@pytest.fixture(scope="module")
def bert():
    return cw.Embedder.from_pretrained(ENCODERS / "bert" / "mean", device="cpu")


@pytest.fixture(scope="module")
def reranker():
    return cw.Reranker.from_pretrained(ENCODERS / "bert" / "rerank", device="cpu")


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_odd_texts_give_finite_vectors_in_every_family(case):
    with cw.Embedder.from_pretrained(case, device="cpu") as embedder:
        together = embedder.encode(ODD, truncation="silent")
        assert np.isfinite(together).all()
        alone = np.stack([embedder.encode(text, truncation="silent") for text in ODD])
        np.testing.assert_allclose(together, alone, atol=1e-5 * max(1.0, float(np.abs(alone).max())), rtol=0)
        tokens = embedder.encode(ODD, output="token", truncation="silent")
        assert all(np.isfinite(matrix).all() for matrix in tokens)
        assert max(map(len, tokens)) <= embedder.max_length


def test_odd_pairs_give_finite_scores(reranker):
    short = [text[:2000] for text in ODD]
    pairs = [(first, second) for first in short for second in ("", "a cat", short[-1])]
    together = reranker.predict(pairs, truncation="silent")
    assert np.isfinite(together).all()
    alone = np.array([reranker.predict(pair, truncation="silent") for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-6)


LONG_PAIR = """
import resource, sys
import candlewick as cw

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
reranker = cw.Reranker.from_pretrained(sys.argv[1], device="cpu")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reranker.predict([("a cat " * 20_000, "the map " * 20_000)] * 4, truncation="silent")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space")
def test_two_long_texts_need_memory_for_their_sum_not_their_product(run_python):
    done = run_python("-c", LONG_PAIR, ENCODERS / "bert" / "rerank")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 400


def test_half_of_a_surrogate_pair_is_refused_and_says_where(bert, reranker):
    for call in (
        lambda: bert.encode(["fine", "bad \ud83d"]),
        lambda: bert.encode_query("\udfff"),
        lambda: reranker.predict([("fine", "bad \ud83d")]),
        lambda: reranker.rank("\ud83d", ["fine"]),
        lambda: reranker.rank("fine", ["\ud83d"]),
    ):
        with pytest.raises(UnicodeEncodeError, match="surrogates"):
            call()
    assert bert.encode("fine").shape == (24,)


def test_scores_depend_on_nothing_else(reranker):
    pairs = [*PAIRS, *(("the cat", "and the map " * words) for words in range(1, 40))]
    together = reranker.predict(pairs, truncation="silent")
    backwards = reranker.predict(pairs[::-1], batch_size=3, truncation="silent")[::-1]
    alone = np.array([reranker.predict(pair, truncation="silent") for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, backwards, atol=1e-6)
    assert (np.argsort(-together, kind="stable") == np.argsort(-alone, kind="stable")).all()


def test_truncation_of_pairs_is_counted_once(reranker, caplog):
    long = [("cat", "map " * 400), ("a", "b"), ("dog " * 300, "map " * 400)]
    with caplog.at_level(logging.WARNING, logger="candlewick"):
        reranker.predict(long, batch_size=1)
    (record,) = caplog.records
    assert "2 of 3" in record.message
    caplog.clear()
    reranker.predict(long, truncation="silent")
    assert caplog.records == []
    with pytest.raises(cw.ContextLengthError):
        reranker.predict(long, truncation="error")


async def test_truncation_is_counted_in_every_way_to_call(bert, caplog):
    with caplog.at_level(logging.WARNING, logger="candlewick"):
        await bert.aencode(["cat " * 100, "a cat", "map " * 300])
    (record,) = caplog.records
    assert "2 of 3" in record.message


def test_32_threads_share_embedder_and_reranker(bert, reranker):
    texts = [f"the cat and the map {number} " * (number % 7 + 1) for number in range(64)]
    wanted, scores = bert.encode(texts), reranker.predict(PAIRS)

    def work(seed):
        random = np.random.default_rng(seed)
        order = random.permutation(len(texts))
        found = bert.encode([texts[index] for index in order], batch_size=int(random.integers(1, 9)))
        np.testing.assert_allclose(found, wanted[order], atol=1e-6)
        np.testing.assert_allclose(reranker.predict(PAIRS), scores, atol=1e-6)
        found = asyncio.run(bert.aencode(texts[seed]))
        np.testing.assert_allclose(found, wanted[seed], atol=1e-6)
        return True

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(32)))


RESIDENT = """
import random, sys
import numpy as np
import candlewick as cw

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def peak_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

embedder = cw.Embedder.from_pretrained(sys.argv[1], device="cpu")
"""

BATCHES = """
reranker = cw.Reranker.from_pretrained(sys.argv[2], device="cpu")
dice = random.Random(0)
words = "the cat and map red planet 🙂 dog".split()

def text():
    return " ".join(dice.choices(words, k=dice.randrange(60)))

def call():
    texts = [text() for _ in range(dice.randrange(1, 24))]
    kind = dice.randrange(4)
    if kind == 0:
        embedder.encode(texts, batch_size=dice.choice([None, 1, 5]), normalize=dice.choice([None, True]))
    elif kind == 1:
        embedder.encode(texts, output="token")
    elif kind == 2:
        embedder.encode(texts, precision="ubinary", truncate_dim=8)
    else:
        reranker.predict([(text(), one) for one in texts])

for _ in range(300):
    call()
before = resident_bytes()
for _ in range(1000):
    call()
print((resident_bytes() - before) / 2**20)
"""

CORPUS = """
count = int(sys.argv[2])
embedder.encode(["warm up"] * 5000)
# What the texts and the vectors take themselves, generously.
allowed = count * (200 + 4 * embedder.dimension)
before = peak_bytes()
vectors = embedder.encode(f"note {number}: the cat and the map" for number in range(count))
assert vectors.shape == (count, embedder.dimension)
assert np.allclose(vectors[count // 2], embedder.encode(f"note {count // 2}: the cat and the map"), atol=1e-6)
print((peak_bytes() - before - allowed) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_a_thousand_batches(run_python):
    arguments = (ENCODERS / "bert" / "mean", ENCODERS / "bert" / "rerank")
    done = run_python("-c", RESIDENT + BATCHES, *arguments, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_corpus_needs_little_more_memory_than_its_vectors(run_python):
    done = run_python("-c", RESIDENT + CORPUS, ENCODERS / "bert" / "mean", 50_000, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24


FORKED = """
import os, sys, warnings
import candlewick as cw

warnings.simplefilter("ignore")
embedder = cw.Embedder.from_pretrained(sys.argv[1], device="cpu")
reranker = cw.Reranker.from_pretrained(sys.argv[2], device="cpu")
embedder.encode(["a cat"] * 100)
child = os.fork()
if child == 0:
    for call in (lambda: embedder.encode("a cat"), lambda: reranker.predict(("a", "b"))):
        try:
            call()
        except cw.CandlewickError as error:
            print(error, flush=True)
        else:
            os._exit(0)
    os._exit(7)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), len(embedder.encode(["a", "b"])))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_told(run_python):
    done = run_python("-c", FORKED, ENCODERS / "bert" / "mean", ENCODERS / "bert" / "rerank", timeout=60)
    *messages, status = done.stdout.strip().split("\n")
    assert len(messages) == 2
    assert all("fork" in message for message in messages)
    assert status == "7 2", done.stderr
