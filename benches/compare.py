"""Measures candlewick beside transformers, PEFT, mlx-lm and llama.cpp on the same checkpoint, on the CPU.

    PEER_MODELS=DIR python benches/make_models.py      # once
    PEER_MODELS=DIR python benches/compare.py [--formats bf16,q8_0] [--only candlewick,llama-cpp-python]
                                                           [--sections generation,lora,embedding]

It prints tables. Each library runs in a process of its own, one after the other, through the fastest public
way that it has to yield greedy tokens one at a time; those that are not installed are named and left out. All
get the same number of threads, the same token ids, and prompts that they have not seen before. Figures are the
best of several rounds. In brackets stands how many times better candlewick is; below 1 it is worse.

- prefill: prompt tokens per second until the first token, 512 tokens
- decode: tokens per second from the second token on, after that prompt
- first token: the same as prefill for a prompt of 64 tokens, in milliseconds
- memory: the most that was resident in the process, with the mapped pages of the checkpoint
- import: until the library can load a model, in a fresh process; load: until the model can be called

A second table says what streaming costs candlewick over a plain call. The section `lora` has one of training steps, in
f32 and bf16 (tokens per second, and the most that was resident), and one of loading, switching and using adapters
(`lora.py`); the section `embedding` compares that (`embeddings.py`). Run it on an idle machine: thread pools that wait by
spinning make a shared one meaningless.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import embeddings
import lora

GGUF = {"bf16": "bf16", "q8_0": "Q8_0", "q4_k_m": "Q4_K_M", "q4_0": "Q4_0"}
FORMATS = ["f32", *GGUF]
Stream = Callable[[list[int], int], Iterator[object]]


def load_candlewick(models: Path, weights: str) -> Stream:
    import candlewick as cw

    if weights in ("f32", "bf16"):
        dtype = {"f32": "float32", "bf16": "bfloat16"}[weights]
        model = cw.Model.from_pretrained(str(models / "qwen05b"), device="cpu", dtype=dtype)
    else:
        model = cw.Model.from_pretrained(str(models / f"qwen05b-{GGUF[weights]}.gguf"), device="cpu")
    generator = cw.Generator(model, temperature=0.0, ignore_eos=True)
    return lambda ids, count: generator.stream(ids, max_new_tokens=count)


def load_transformers(models: Path, weights: str) -> Stream:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[weights]
    model = AutoModelForCausalLM.from_pretrained(models / "qwen05b", dtype=dtype).eval()

    @torch.inference_mode()
    def stream(ids: list[int], count: int) -> Iterator[object]:
        # The bare loop: `generate` with a streamer does the same and is slower.
        cache, tokens = None, torch.tensor([ids])
        for _ in range(count):
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            yield tokens.item()

    return stream


def load_mlx(models: Path, weights: str) -> Stream:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    from mlx import nn
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(models / "qwen05b")
    if weights == "f32":
        model.set_dtype(mx.float32)
    elif weights != "bf16":  # its own formats, of nearly the same size
        nn.quantize(model, group_size=64, bits=8 if weights == "q8_0" else 4)
    mx.eval(model.parameters())

    def stream(ids: list[int], count: int) -> Iterator[object]:
        for token, _ in generate_step(mx.array(ids), model, max_tokens=count):
            yield token

    return stream


def load_llama_cpp(models: Path, weights: str) -> Stream:
    import llama_cpp

    threads = int(os.environ["OMP_NUM_THREADS"])
    path = str(models / f"qwen05b-{GGUF[weights]}.gguf")
    model = llama_cpp.Llama(
        path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, n_batch=512, n_ubatch=512, verbose=False
    )

    def stream(ids: list[int], count: int) -> Iterator[object]:
        tokens = model.generate(ids, top_k=1, temp=0.0)
        for _ in range(count):
            yield next(tokens)

    return stream


# Name, module to import, formats, and the function that loads; candlewick first, the others are compared with it.
LIBRARIES: dict[str, tuple[str, list[str], Callable[[Path, str], Stream]]] = {
    "candlewick": ("candlewick", FORMATS, load_candlewick),
    "transformers": ("transformers", ["f32", "bf16"], load_transformers),
    "mlx-lm": ("mlx_lm", ["f32", "bf16", "q8_0", "q4_0"], load_mlx),
    "llama-cpp-python": ("llama_cpp", list(GGUF), load_llama_cpp),
}
IMPORTS = {
    "transformers": "from transformers import AutoModelForCausalLM",
    "mlx-lm": "import mlx_lm",
    "llama-cpp-python": "import llama_cpp",
    "candlewick": "import candlewick",
}
KNOWN = list(dict.fromkeys([*LIBRARIES, *lora.LIBRARIES]))
SECTIONS = ["generation", "lora", "embedding"]
# Column, heading, whether more is better, digits.
COLUMNS = [
    ("prefill", "prefill tok/s", True, 1),
    ("decode", "decode tok/s", True, 2),
    ("first_ms", "first token ms", False, 0),
    ("memory_gib", "memory GiB", False, 2),
    ("import_s", "import s", False, 2),
    ("load_s", "load s", False, 2),
]


def prompt(length: int, number: int) -> list[int]:
    """Token ids that differ from those of every other number from the first one on."""
    return [(index * 7919 + number * 104729 + 17) % 150_000 for index in range(length)]


def peak_gib() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def rounds(seconds: float, at_most: int = 5) -> Iterator[int]:
    """One round, then more until the time is used up."""
    begun = time.perf_counter()
    for number in range(at_most):
        if number == 0 or time.perf_counter() - begun < seconds:
            yield number


def measure(library: str, weights: str, models: Path) -> dict[str, float]:
    begun = time.perf_counter()
    exec(IMPORTS[library], {})
    imported = time.perf_counter()
    stream = LIBRARIES[library][2](models, weights)
    result = {"import_s": imported - begun, "load_s": time.perf_counter() - imported}
    for _ in stream(prompt(16, 99), 4):
        pass
    prefill, decode, first = [], [], []
    for number in rounds(20.0):
        begun = time.perf_counter()
        times = [time.perf_counter() - begun for _ in stream(prompt(512, number), 33)]
        if len(times) != 33:
            raise RuntimeError(f"{library} gave {len(times)} tokens of 33")
        prefill.append(512 / times[0])
        decode.append(32 / (times[-1] - times[0]))
    for number in rounds(5.0):
        begun = time.perf_counter()
        first += [1e3 * (time.perf_counter() - begun) for _ in stream(prompt(64, 10 + number), 1)]
    return result | {
        "prefill": max(prefill),
        "decode": max(decode),
        "first_ms": min(first),
        "memory_gib": peak_gib(),
    }


def measure_streaming(models: Path) -> dict[str, list[float]]:
    """For each number of tokens, seconds of a plain call, a stream, and an asynchronous stream."""
    import candlewick as cw

    model = cw.Model.from_pretrained(str(models / "qwen05b"), device="cpu")
    generator = cw.Generator(model, temperature=0.0, ignore_eos=True)

    async def asynchronous(ids: list[int], count: int) -> None:
        async for _ in generator.stream(ids, max_new_tokens=count):
            pass

    def plain(ids: list[int], count: int) -> None:
        generator.generate(ids, max_new_tokens=count)

    def streaming(ids: list[int], count: int) -> None:
        for _ in generator.stream(ids, max_new_tokens=count):
            pass

    ways = [plain, streaming, lambda ids, count: asyncio.run(asynchronous(ids, count))]
    result = {}
    for count in (10, 50, 100):
        best = [float("inf")] * len(ways)
        for number in range(6):
            for index, way in enumerate(ways):
                ids = prompt(16, 1000 * count + 10 * number + index)
                begun = time.perf_counter()
                way(ids, count)
                if number > 0:  # the first is for warming up
                    best[index] = min(best[index], time.perf_counter() - begun)
        result[str(count)] = best
    return result


def measure_step(arguments: list[str], models: Path) -> dict[str, float]:
    library, weights, shape, targets, way = arguments
    result = lora.measure_step(library, weights, shape, targets, way, models)
    return result | {"memory_gib": peak_gib()}


def run_lora(options: argparse.Namespace) -> dict:
    """Measures training and adapters, prints both tables and returns all figures."""
    libraries = [name for name in options.only if name in lora.LIBRARIES]
    steps = []
    for weights in options.formats:
        cases = {name: lora.cases(name, weights) for name in libraries}
        for shape, targets in dict.fromkeys(case[:2] for found in cases.values() for case in found):
            for library in libraries:
                for way in [way for *case, way in cases[library] if case == [shape, targets]]:
                    print(f"measuring a step of {library} {weights} {shape} {targets} {way}", file=sys.stderr)
                    row = worker(["step", library, weights, shape, targets, way], options)
                    steps.append((weights, shape, targets, library, way, row))
    print()
    lora.print_steps(steps)
    swaps = {name: worker(["swaps", name], options) for name in libraries if name in lora.SWAPS}
    print()
    lora.print_swaps(swaps)
    return {"steps": steps, "swaps": swaps}


def worker(arguments: list[str], options: argparse.Namespace) -> dict:
    """Runs this script in a new process and returns what it measured, or why it did not."""
    threads = str(options.threads)
    pools = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"]
    environment = os.environ | dict.fromkeys(pools, threads) | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--models", str(options.models), "--worker", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {options.timeout} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": said[-1]}
    return json.loads(lines[-1])


def cell(column: tuple[str, str, bool, int], row: dict, ours: dict | None) -> str:
    key, _, more_is_better, digits = column
    text = f"{row[key]:.{digits}f}"
    if ours is None or ours is row:
        return text
    ratio = ours[key] / row[key] if more_is_better else row[key] / ours[key]
    return f"{text} ({ratio:.2f}x)"


def print_table(results: dict[str, dict[str, dict]]) -> None:
    heading = ["weights", "library", *(column[1] for column in COLUMNS)]
    print("| " + " | ".join(heading) + " |")
    print("|---|---|" + "---:|" * len(COLUMNS))
    for weights, rows in results.items():
        ours = rows.get("candlewick")
        ours = None if ours is None or "failed" in ours else ours
        for library, row in rows.items():
            if "failed" in row:
                print(f"| {weights} | {library} | failed: {row['failed'].replace('|', '/')} |" + " |" * 5)
            else:
                cells = [cell(column, row, ours) for column in COLUMNS]
                print(f"| {weights} | {library} | " + " | ".join(cells) + " |")


def print_streaming(times: dict) -> None:
    if "failed" in times:
        print(f"Streaming was not measured: {times['failed']}")
        return
    print("| tokens | plain ms | streaming | asyncio |\n|---:|---:|---:|---:|")
    for count, (plain, *others) in times.items():
        costs = " | ".join(f"{100 * (seconds / plain - 1):+.1f} %" for seconds in others)
        print(f"| {count} | {1e3 * plain:.1f} | {costs} |")


def print_machine(threads: int) -> None:
    processor, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    elif sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        processor = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}; {threads} threads; load {os.getloadavg()[0]:.1f} at the start"
    )


def installed(library: str, module: str) -> bool:
    if importlib.util.find_spec(module) is None:
        print(f"{library} is not installed and is left out")
        return False
    packages = {"transformers": ["transformers", "torch"], "peft": ["peft", "torch"], "mlx-lm": ["mlx-lm", "mlx"]}
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages.get(library, [library])]
    print(", ".join(versions))
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure candlewick beside its peers; see the head of the file.")
    parser.add_argument("--models", type=Path, default=os.environ.get("PEER_MODELS"), help="default: $PEER_MODELS")
    parser.add_argument("--only", default=",".join(KNOWN), help="libraries, separated by commas")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="what to measure, separated by commas")
    parser.add_argument("--formats", default=",".join(FORMATS), help="weights, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one library and format")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.models is None:
        parser.error("set PEER_MODELS or --models to the folder that make_models.py filled")
    for name, known in (("only", KNOWN), ("formats", FORMATS), ("sections", SECTIONS)):
        chosen = getattr(options, name).split(",")
        if unknown := [item for item in chosen if item not in known]:
            parser.error(f"--{name}: got {', '.join(unknown)}, expected some of {', '.join(known)}")
        setattr(options, name, [item for item in known if item in chosen])
    return options


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(work(options.worker, options.models)))
        return
    print_machine(options.threads)
    modules = {name: library[0] for name, library in [*LIBRARIES.items(), *lora.LIBRARIES.items()]}
    options.only = [name for name in options.only if installed(name, modules[name])]
    figures = {}
    if "generation" in options.sections:
        figures |= run_generation(options)
    if "lora" in options.sections:
        figures |= {"lora": run_lora(options)}
    if "embedding" in options.sections:
        print()
        figures |= {"embedding": embeddings.compare(options.models, options.threads, options.timeout)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def work(arguments: list[str], models: Path) -> dict:
    """What a process that measures was told to do."""
    match arguments:
        case ["streaming"]:
            return measure_streaming(models)
        case ["step", *case]:
            return measure_step(case, models)
        case ["swaps", library]:
            return lora.measure_swaps(library, models)
        case [library, weights]:
            return measure(library, weights, models)
        case _:
            raise ValueError(f"unknown work {arguments}")


def run_generation(options: argparse.Namespace) -> dict:
    """Measures generation, prints both tables and returns all figures."""
    libraries = [name for name in options.only if name in LIBRARIES]
    results: dict[str, dict[str, dict]] = {}
    for weights in options.formats:
        rows = {}
        for library in libraries:
            if weights in LIBRARIES[library][1]:
                print(f"measuring {library} {weights}", file=sys.stderr)
                rows[library] = worker([library, weights], options)
        results[weights] = rows
    print()
    print_table(results)
    streaming = None
    if "candlewick" in libraries:
        print()
        streaming = worker(["streaming"], options)
        print_streaming(streaming)
    return {"libraries": results, "streaming": streaming}


if __name__ == "__main__":
    main()
