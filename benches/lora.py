"""Training and swapping of adapters, measured for compare.py; see there for how.

A training step is forward, backward and AdamW over rows of random ids that all count, with rank 8. Each library, weight
type and way of recomputing is a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RANK = 8
STEPS = 4
QV = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {"q,v": QV, "all-linear": LINEAR}
# Rows and their length. mlx-lm is too slow on a CPU for more than its own one.
SHAPES = {"1x512": (1, 512), "4x256": (4, 256)}
MLX_SHAPE = "1x128"

Step = Callable[[], None]


def ids(rows: int, length: int, vocab: int) -> list[list[int]]:
    return [[(place * 7919 + row * 104729) % (vocab * 9 // 10) for place in range(length)] for row in range(rows)]


def step_candlewick(models: Path, weights: str, shape: tuple[int, int], targets: str, way: str) -> Step:
    import candlewick as cw

    dtype = {"f32": "float32", "bf16": "bfloat16"}[weights]
    model = cw.Model.from_pretrained(str(models / "qwen05b"), device="cpu", dtype=dtype)
    rows, length = shape
    trainer = cw.Trainer(
        model,
        [{"input_ids": row} for row in ids(rows, length, model.vocab_size)],
        lora=cw.LoraConfig(rank=RANK, target_modules=TARGETS[targets]),
        gradient_checkpointing={"auto": "auto", "kept": False, "recomputed": True}[way],
        batch_size=rows,
        max_length=length,
        max_steps=STEPS,
    )
    return lambda: next(trainer)


def step_peft(models: Path, weights: str, shape: tuple[int, int], targets: str, way: str) -> Step:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[weights]
    base = AutoModelForCausalLM.from_pretrained(models / "qwen05b", dtype=dtype)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS[targets], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    if way == "recomputed":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = torch.tensor(ids(*shape, base.config.vocab_size))

    def step() -> None:
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_mlx(models: Path, weights: str, shape: tuple[int, int], targets: str, way: str) -> Step:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    from mlx import nn, optimizers
    from mlx_lm.tuner.trainer import grad_checkpoint
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, config = load_model(models / "qwen05b")
    if weights == "f32":
        model.set_dtype(mx.float32)
    model.freeze()
    places = {name: "mlp" if name in LINEAR[4:] else "self_attn" for name in TARGETS[targets]}
    keys = [f"{place}.{name}" for name, place in places.items()]
    linear_to_lora_layers(model, len(model.layers), {"rank": RANK, "dropout": 0.0, "scale": 2.0, "keys": keys})
    if way == "recomputed":
        grad_checkpoint(model.layers[0])
    optimizer = optimizers.AdamW(learning_rate=1e-4)
    batch = mx.array(ids(*shape, config["vocab_size"]))

    def loss(model: nn.Module, batch: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(batch[:, :-1]).astype(mx.float32), batch[:, 1:]).mean()

    both = nn.value_and_grad(model, loss)

    def step() -> None:
        value, gradients = both(model, batch)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, value)

    return step


# Module to import, ways of treating intermediate results, and the function that makes a step.
LIBRARIES: dict[str, tuple[str, list[str], Callable[[Path, str, tuple[int, int], str, str], Step]]] = {
    "candlewick": ("candlewick", ["auto"], step_candlewick),
    "peft": ("peft", ["kept", "recomputed"], step_peft),
    "mlx-lm": ("mlx_lm", ["kept"], step_mlx),
}


def shape_of(name: str) -> tuple[int, int]:
    rows, _, length = name.partition("x")
    return int(rows), int(length)


def cases(library: str, weights: str) -> list[tuple[str, str, str]]:
    """Shape, targets and way of every measurement of a library."""
    ways = LIBRARIES[library][1]
    if weights not in ("f32", "bf16"):
        return []
    if library == "mlx-lm":
        return [(MLX_SHAPE, "q,v", way) for way in ways]
    return [(shape, targets, way) for shape in SHAPES for targets in TARGETS for way in ways]


def measure_step(library: str, weights: str, shape: str, targets: str, way: str, models: Path) -> dict[str, float]:
    rows, length = shape_of(shape)
    step = LIBRARIES[library][2](models, weights, (rows, length), targets, way)
    best = float("inf")
    for _ in range(1 if shape == MLX_SHAPE else STEPS):
        begun = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - begun)
    return {"rate": rows * length / best}


def swap_candlewick(models: Path, directory: Path, rank: int) -> dict[str, float]:
    """Seconds to load an adapter, to switch, and to give one token right after a switch and without one."""
    import candlewick as cw

    model = cw.Model.from_pretrained(str(models / "qwen05b"), device="cpu")
    rows, lora = [{"input_ids": [1, 2, 3]}], cw.LoraConfig(rank=rank, target_modules=LINEAR)
    for name in ("a", "b"):
        trainer = cw.Trainer(model, rows, lora=lora, max_steps=1, seed=ord(name))
        trainer.train()
        trainer.save(directory / name)
        trainer.close()
    registry = cw.AdapterRegistry(model)
    generator = cw.Generator(model, max_new_tokens=1, temperature=0.0, ignore_eos=True)
    load = min(timed(lambda name=name: registry.load(name, directory / name)) for name in "abab")
    switch = min(timed(lambda name=name: registry.activate(name)) for name in "ab" * 50)
    prompts = iter(range(1000))  # another beginning for each, so that nothing is cached

    def token() -> None:
        start = next(prompts)
        generator.generate([start + 20, start + 21])

    token()
    staying = min(timed(token) for _ in range(20))

    def swap(name: str) -> None:
        registry.activate(name)
        token()

    swapping = min(timed(lambda name=name: swap(name)) for name in "ab" * 10)

    def decode(adapter: str | bool) -> float:
        """Seconds for each of 32 tokens."""
        stream = generator.stream([7, 8, 9, next(prompts)], max_new_tokens=33, adapter=adapter)
        next(stream)
        begun = time.perf_counter()
        for _ in stream:
            pass
        return (time.perf_counter() - begun) / 32

    bare = min(decode(adapter=False) for _ in range(4))
    adapted = min(decode(adapter="a") for _ in range(4))
    return {"load": load, "switch": switch, "first": swapping - staying, "decode": adapted / bare - 1}


def swap_peft(models: Path, directory: Path, rank: int) -> dict[str, float]:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = AutoModelForCausalLM.from_pretrained(models / "qwen05b", dtype=torch.bfloat16).eval()
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEAR, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name in ("a", "b"):
        model.save_pretrained(directory / name)
    model = PeftModel.from_pretrained(model.unload(), directory / "a", adapter_name="a")
    load = timed(lambda: model.load_adapter(directory / "b", adapter_name="b"))
    switch = min(timed(lambda name=name: model.set_adapter(name)) for name in "ab" * 10)

    @torch.inference_mode()
    def decode() -> float:
        out = model(torch.tensor([[7, 8, 9, 10]]), use_cache=True)
        begun = time.perf_counter()
        for _ in range(16):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        return (time.perf_counter() - begun) / 16

    adapted = min(decode() for _ in range(3))
    with model.disable_adapter():
        bare = min(decode() for _ in range(3))
    return {"load": load, "switch": switch, "decode": adapted / bare - 1}


SWAPS = {"candlewick": swap_candlewick, "peft": swap_peft}
RANKS = [8, 16, 32]


def measure_swaps(library: str, models: Path) -> dict[str, dict[str, float]]:
    result = {}
    for rank in RANKS:
        with tempfile.TemporaryDirectory() as directory:
            result[str(rank)] = SWAPS[library](models, Path(directory), rank)
    return result


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def print_steps(results: list[tuple[str, str, str, str, str, dict]]) -> None:
    """A table of weights, shape, targets, library, way and figures; candlewick stands first of each case."""
    print("| weights | step | targets | library | layers | tok/s | peak GiB |")
    print("|---|---|---|---|---|---:|---:|")
    ours: dict[tuple[str, str, str], dict] = {}
    for weights, shape, targets, library, way, row in results:
        start = f"| {weights} | {shape} | {targets} | {library} | {way} | "
        if "failed" in row:
            print(f"{start}failed: {row['failed'].replace('|', '/')} | |")
            continue
        case = (weights, shape, targets)
        rate, memory = f"{row['rate']:.1f}", f"{row['memory_gib']:.2f}"
        if library == "candlewick":
            ours[case] = row
        elif case in ours:
            rate += f" ({ours[case]['rate'] / row['rate']:.2f}x)"
            memory += f" ({row['memory_gib'] / ours[case]['memory_gib']:.2f}x)"
        print(f"{start}{rate} | {memory} |")


def print_swaps(results: dict[str, dict]) -> None:
    print("| library | rank | load ms | switch ms | first token after it ms | decode with adapter |")
    print("|---|---:|---:|---:|---:|---:|")
    for library, ranks in results.items():
        if "failed" in ranks:
            print(f"| {library} | | failed: {ranks['failed'].replace('|', '/')} | | | |")
            continue
        for rank, row in ranks.items():
            first = f"{1e3 * row['first']:+.2f}" if "first" in row else ""
            print(
                f"| {library} | {rank} | {1e3 * row['load']:.1f} | {1e3 * row['switch']:.4f} | {first} | "
                f"{100 * row['decode']:+.1f} % |"
            )
