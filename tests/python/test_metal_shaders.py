"""The Metal shaders alone, executed on the CPU (tests/metal/executor) and compared with numpy."""

import faulthandler
import itertools
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "kernels" / "metal"
sys.path.insert(0, str(ROOT / "tests" / "metal" / "executor"))

from shaders import Buffer, Shader, compile_shader, why_not  # noqa: E402

if missing := why_not():
    pytest.skip(f"Metal shaders are not executed: {missing}", allow_module_level=True)

CACHE = Path(os.environ.get("CANDLEWICK_CACHE", Path.home() / ".cache" / "candlewick")) / "metal-shaders"
ALL = bool(os.environ.get("CANDLEWICK_METAL_ALL"))
SEEDS = (0, 1, 2, 3, 4, 5) if ALL else (1, 2)
UNLIMITED = 1 << 30


def shader(name: str, *, edit: tuple[str, str] | None = None) -> Shader:
    """A shader of ours, perhaps with a fault planted in it."""
    text = (SOURCES / f"{name}.metal").read_text()
    if name in {"rms_norm", "layer_norm", "cross_entropy"}:
        text = (SOURCES / "reduce.metal").read_text() + text
    if edit:
        assert edit[0] in text
        text = text.replace(*edit, 1)
    if name == "attention" and not ALL:
        # One type is enough for the arithmetic; the others differ in loads and stores only.
        text = text.replace('ALL("f16", half)', "").replace('ALL("bf16", bfloat)', "")
    return compile_shader(text, CACHE)


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


TYPES = {
    "f32": (lambda x: x.astype(np.float32), lambda x: x, 1e-5),
    "f16": (lambda x: x.astype(np.float16), lambda x: x.astype(np.float32), 4e-3),
    "bf16": (to_bf16, from_bf16, 3e-2),
}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, np.abs(want).max())
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= tolerance * scale


def words(*values: float) -> np.ndarray:
    """A struct of 32-bit numbers."""
    return np.concatenate(
        [np.array([v], np.float32 if isinstance(v, float) else np.uint32).view(np.uint32) for v in values]
    )


# ---- norms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("width", [1, 33, 200, 1000])
def test_norms_equal_numpy(kind: str, width: int) -> None:
    encode, decode, tolerance = TYPES[kind]
    x, residual, weight, bias = (decode(encode(noise(s, *d))) for s, d in enumerate([(5, width)] * 2 + [(width,)] * 2))
    rms = lambda x: x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * weight  # noqa: E731
    shape = words(width, 5, 1, 1e-5)
    for seed, threads in itertools.product(SEEDS, (32, 96)):

        def run(library: str, kernel: str, inputs: list, count: int = 1) -> np.ndarray:
            out = Buffer(encode(np.zeros((count, 5, width))))
            held = [*(encode(i) for i in inputs), shape, out]
            shader(library).run(f"{kernel}_{kind}", held, (5, 1, 1), (threads, 1, 1), seed=seed)  # noqa: B023
            return decode(out.array())

        close(run("rms_norm", "rms_norm", [x, weight])[0], rms(x), tolerance)
        sums, normed = run("rms_norm", "add_rms_norm", [x, residual, weight], 2)
        close(sums, x + residual, tolerance)
        close(normed, rms(sums), tolerance)
        centred = x - x.mean(1, keepdims=True)
        want = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weight + bias
        close(run("layer_norm", "layer_norm", [x, weight, bias])[0], want, tolerance)


# ---- a matrix, rotations, activations ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "inn", "out"), [(1, 1, 1), (1, 999, 20), (3, 256, 9), (4, 130, 17)])
def test_few_rows_times_a_matrix_equal_numpy(kind: str, rows: int, inn: int, out: int) -> None:
    encode, decode, tolerance = TYPES[kind]
    x, weight = decode(encode(noise(1, rows, inn))), decode(encode(noise(2, out, inn) / np.sqrt(inn)))
    for seed in SEEDS:
        y = Buffer(encode(np.zeros((rows, out))))
        held = [encode(x), encode(weight), words(inn, out), y]
        shader("linear").run(f"linear_row_{kind}", held, (-(-out // 8), rows, 1), (256, 1, 1), seed=seed)
        close(decode(y.array()), x @ weight.T, tolerance)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (10, 6), (7, 2)])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotations_equal_numpy_and_turn_back(kind: str, dim: int, rotary: int, interleaved: int) -> None:
    encode, decode, tolerance = TYPES[kind]
    tokens, heads, half = 5, 3, rotary // 2
    x, angles = decode(encode(noise(1, tokens, heads, dim))), noise(2, tokens, 1, half)
    cos, sin = np.cos(angles), np.sin(angles)
    first = slice(0, rotary, 2) if interleaved else slice(0, half)
    second = slice(1, rotary, 2) if interleaved else slice(half, rotary)
    want = x.copy()
    want[..., first] = x[..., first] * cos - x[..., second] * sin
    want[..., second] = x[..., second] * cos + x[..., first] * sin

    def run(x: np.ndarray, sign: float) -> np.ndarray:
        y = Buffer(encode(np.zeros_like(x)))
        shape = words(tokens, heads, dim, half, interleaved, sign)
        groups = (-(-tokens * heads * (dim - half) // 64), 1, 1)
        shader("rope").run(f"rope_{kind}", [encode(x), cos, sin, shape, y], groups, (64, 1, 1), seed=1)
        return decode(y.array())

    close(run(x, 1.0), want, tolerance)
    close(run(want, -1.0), x, tolerance)


def test_activations_and_slopes_equal_numpy() -> None:
    x = np.concatenate([np.linspace(-9, 9, 501), [-1e4, -100, 100, 1e4]])
    sigmoid = lambda x: 0.5 * (1 + np.tanh(x / 2))  # noqa: E731
    erf = np.vectorize(math.erf)
    functions = [
        lambda x: x * sigmoid(x),
        lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        lambda x: x * sigmoid(1.702 * x),
    ]
    up, dy = noise(1, len(x)).astype(np.float64), noise(2, len(x)).astype(np.float64)
    groups = ((len(x) + 63) // 64, 1, 1)
    for kind, f in enumerate(functions):
        inputs = [a.astype(np.float32) for a in (x, up, dy)]
        y, d_gate, d_up = (Buffer(np.zeros(len(x), np.float32)) for _ in range(3))
        act = words(len(x), kind, 1)
        shader("gated_act").run("gated_act_f32", [*inputs[:2], act, y], groups, (64, 1, 1))
        shader("gated_act").run("gated_act_back_f32", [*inputs, act, d_gate, d_up], groups, (64, 1, 1))
        # Relative to the value itself, as tails are small.
        slope = (f(x + 1e-5) - f(x - 1e-5)) / 2e-5
        np.testing.assert_allclose(y.array(), f(x) * up, rtol=3e-5, atol=1e-6)
        np.testing.assert_allclose(d_up.array(), f(x) * dy, rtol=3e-5, atol=1e-6)
        np.testing.assert_allclose(d_gate.array(), slope * up * dy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_numpy(kind: str, smoothing: float) -> None:
    encode, decode, tolerance = TYPES[kind]
    labels, vocab = np.array([3, -1, 499, 0, 7], np.int32), 500
    logits, grads = decode(encode(noise(1, 5, vocab) * 5)), noise(2, 5)
    exact = logits.astype(np.float64)
    log_sum = np.log(np.exp(exact).sum(1))
    picked = np.take_along_axis(exact, np.maximum(labels, 0)[:, None], 1)[:, 0]
    want = (1 - smoothing) * (log_sum - picked) + smoothing * (log_sum - exact.mean(1))
    target = np.full((5, vocab), smoothing / vocab)
    target[np.arange(5), labels] += 1 - smoothing
    slopes = np.where(labels[:, None] >= 0, (np.exp(exact - log_sum[:, None]) - target) * grads[:, None], 0)
    shape = words(vocab, float(smoothing))
    for seed, threads in itertools.product(SEEDS, (32, 256)):
        losses, sums = (Buffer(np.zeros(5, np.float32)) for _ in range(2))
        d_logits, at = Buffer(encode(np.zeros((5, vocab)))), ((5, 1, 1), (threads, 1, 1))
        library = shader("cross_entropy")
        library.run(f"cross_entropy_{kind}", [encode(logits), labels, shape, losses, sums], *at, seed=seed)
        held = [encode(logits), labels, sums.array(), grads, shape, d_logits]
        library.run(f"cross_entropy_back_{kind}", held, *at, seed=seed)
        close(losses.array(), np.where(labels >= 0, want, 0), 1e-5)
        close(decode(d_logits.array()), slopes, tolerance)


# ---- attention ---------------------------------------------------------------------------------------------------


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, before: int, after: int) -> np.ndarray:
    """Attention of one sequence in f64; `q: [queries, heads, d]`, the last query sits at the last key."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, 1).astype(np.float64) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) / np.sqrt(q.shape[2])
    key, query = np.arange(len(k))[None], (np.arange(len(q)) + len(k) - len(q))[:, None]
    scores = np.where((key + before >= query) & (key <= query + after), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).astype(np.float32)


def run_attention(library: Shader, kernel: str, spans: list, arrays: list, seen: tuple, *, seed: int) -> np.ndarray:
    """Runs one of the forward kernels; `spans` are (first query, queries, first key, keys)."""
    q, k, v = arrays
    (_, heads, dim), kv_heads = q.shape, k.shape[1]
    problem = words(heads, heads // kv_heads, dim, *seen, 0, 0, float(1 / np.sqrt(dim)))
    out = Buffer(np.full_like(q, np.nan))
    held = [q, k, v, np.zeros(1, np.float32), problem, np.array(spans, np.uint32), out, out]
    longest = max(span[1] for span in spans)
    groups, threads = (-(-longest // 32), 128) if "tile" in kernel else (longest, 256)
    library.run(kernel, held, (groups, heads, len(spans)), (threads, 1, 1), seed=seed)
    return out.array()


SPANS = [(0, 33, 0, 33), (33, 1, 33, 40), (34, 7, 73, 7), (41, 12, 80, 90)]
SEEN = [(UNLIMITED, 0), (4, 0), (UNLIMITED, UNLIMITED), (6, 6)]


@pytest.mark.parametrize("kernel", ["attend_tile", "attend_row"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (3, 1, 20), (2, 2, 128)])
def test_attention_equals_numpy(kernel: str, heads: int, kv_heads: int, dim: int) -> None:
    library = shader("attention")
    size = next(s for s in (32, 64, 128) if s >= dim)
    q, k, v = (noise(s, n, h, dim) for s, (n, h) in enumerate([(53, heads), (170, kv_heads), (170, kv_heads)]))
    for seen, seed in itertools.product(SEEN, SEEDS):
        got = run_attention(library, f"{kernel}_f32_{size}", SPANS, [q, k, v], seen, seed=seed)
        for first, queries, first_key, keys in SPANS:
            keyed = slice(first_key, first_key + keys)
            want = attend(q[first : first + queries], k[keyed], v[keyed], *seen)
            close(got[first : first + queries], want, 2e-6)


# ---- the executor finds what a GPU would not forgive -------------------------------------------------------------


def one_norm(library: Shader, seed: int, x: np.ndarray) -> np.ndarray:
    out = Buffer(np.zeros_like(x))
    held = [x, np.ones(x.shape[1], np.float32), words(x.shape[1], len(x), 0, 1e-5), out]
    library.run("rms_norm_f32", held, (len(x), 1, 1), (96, 1, 1), seed=seed)
    return out.array()


def is_right(library: Shader, seeds: range) -> bool:
    x = noise(1, 4, 300)
    want = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    return all(np.allclose(one_norm(library, seed, x), want, atol=1e-5) for seed in seeds)


BARRIER = """  if (lane == 0) parts[simd_at] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
"""


def test_a_missing_barrier_is_found() -> None:
    assert is_right(shader("rms_norm"), range(4))
    assert not is_right(shader("rms_norm", edit=(BARRIER, BARRIER.splitlines()[0] + "\n")), range(4))


def test_a_race_is_found() -> None:
    # Every simdgroup writes to the first place; which one comes last depends on the order.
    planted = shader("rms_norm", edit=("parts[simd_at] = x", "parts[0] = x"))
    assert not is_right(planted, range(4))


def test_a_barrier_that_not_all_threads_reach_is_found() -> None:
    planted = shader("rms_norm", edit=(BARRIER, "  if (lane == 5) return x;\n" + BARRIER))
    with pytest.raises(RuntimeError, match=r"barrier"):
        one_norm(planted, 1, noise(1, 4, 300))


def test_a_read_out_of_bounds_is_found() -> None:
    # The end of a buffer cannot be passed; the process that does it dies, so another one tries.
    planted = (
        "for (uint i = at; i < width; i += threads) squares",
        "for (uint i = at; i <= width; i += threads) squares",
    )
    shader("rms_norm", edit=planted)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        try:
            one_norm(shader("rms_norm", edit=planted), 1, noise(1, 4, 1024))
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_address_spaces_are_checked() -> None:
    planted = (
        "inline float sum_of_all(float x, threadgroup float* parts",
        "inline float sum_of_all(float x, device float* parts",
    )
    with pytest.raises(RuntimeError, match="does not compile"):
        shader("rms_norm", edit=planted)
