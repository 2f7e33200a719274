"""Measures what candlewick does under load: several streams at once, a busy neighbour, a long prompt, on the CPU.

    PEER_MODELS=DIR python benches/load.py [--formats bf16,q8_0]

DIR is what `make_models.py` made. Figures are of one process with all cores, greedy, after one call that is not counted.

- streams: tokens per second of all streams together, and how many times that is more than one stream gives
- neighbour: tokens per second of one stream while another process keeps one core busy, and how many times less
- prompt: tokens per second until the first token, for prompts of growing length; attention makes long ones slower
- peak: the most memory that was resident, after each of the prompts
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import candlewick as cw

GGUF = {"q8_0": "Q8_0", "q4_k_m": "Q4_K_M", "q4_0": "Q4_0"}
STREAMS = [1, 2, 4, 8]
PROMPTS = [512, 2048, 8192]
TOKENS = 48


def prompt(length: int, number: int) -> list[int]:
    return [(index * 7919 + number * 104729 + 17) % 150_000 for index in range(length)]


def streams(generator: cw.Generator, count: int, number: int) -> float:
    """Tokens per second of `count` streams, their short prompts included."""

    def read(index: int) -> None:
        for _ in generator.stream(prompt(16, number * 100 + index), max_new_tokens=TOKENS):
            pass

    threads = [threading.Thread(target=read, args=(index,)) for index in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count * TOKENS / (time.perf_counter() - start)


def peak_gib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def measure(models: Path, weights: str) -> None:
    source = models / ("qwen05b" if weights == "bf16" else f"qwen05b-{GGUF[weights]}.gguf")
    model = cw.Model.from_pretrained(str(source), device="cpu")
    generator = cw.Generator(model, temperature=0.0, ignore_eos=True)
    generator.generate(prompt(16, 0), max_new_tokens=4)
    one = 0.0
    for count in STREAMS:
        rate = max(streams(generator, count, 10 * count + turn) for turn in range(2))
        one = one or rate
        print(f"{weights}: {count} streams {rate:.1f} tok/s, {rate / one:.2f} of one", flush=True)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        time.sleep(0.5)
        rate = max(streams(generator, 1, 900 + turn) for turn in range(2))
        neighbour.kill()
    print(f"{weights}: beside a busy process {rate:.1f} tok/s, {one / rate:.2f} times less", flush=True)
    for length in PROMPTS:
        result = generator.generate(prompt(length, length), max_new_tokens=2)
        speed = result.prompt_tokens_per_second
        print(f"{weights}: prompt of {length} {speed:.1f} tok/s, peak {peak_gib():.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=os.environ.get("PEER_MODELS"), help="default: $PEER_MODELS")
    parser.add_argument("--formats", default="bf16,q8_0,q4_k_m", help="weights, separated by commas")
    arguments = parser.parse_args()
    if arguments.models is None:
        parser.error("--models or PEER_MODELS: the directory that make_models.py wrote")
    for weights in arguments.formats.split(","):
        measure(arguments.models, weights)


if __name__ == "__main__":
    main()
