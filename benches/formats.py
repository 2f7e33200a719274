"""Measures what each format of weights costs a model.

    python benches/formats.py [--model MODEL] [--text FILE] [--context N]

Without arguments: the bundled model, and stories by the program that its training text came from, told from another seed.
Perplexity is that of `candlewick perplexity`. The divergence is that of Kullback and Leibler, of a format's next-token
probabilities from those of the unquantised weights, in thousandths of a nat, over the first windows of the text; "same
token" is how often the most probable token is the same one. Perplexity alone may fall by chance, these two do not. Besides the recipes of `candlewick quantize` stand the formats that most
weights came to be in, because rows that are no multiple of 256 take shorter blocks instead of a K format.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from random import Random

import numpy as np

import candlewick as cw
from candlewick import cli

RECIPES = ["q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "mxfp4"]
RECIPES += ["q3_k_l", "q3_k_m", "q3_k_s", "q2_k"]
STORIES = 300
WINDOWS = 40


def stories() -> str:
    """Text like that which the bundled model was trained on, but other text."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "tiny"))
    from stories import cast, tell

    random = Random("formats")
    return "\n\n".join(tell(random, cast(random)) for _ in range(STORIES))


def perplexity(model: str, text: Path, recipe: str | None, context: int) -> float:
    """What the command prints."""
    arguments = ["perplexity", model, str(text), "--context", str(context), "--device", "cpu"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main([*arguments, *([] if recipe is None else ["--quantize", recipe])])
    if code != 0:
        raise SystemExit(f"perplexity of {recipe or 'the model'} ended with {code}")
    return float(printed.getvalue())


def windows(model: cw.Model, text: str, context: int) -> list[list[int]]:
    """The first windows of the text as ids."""
    ids = model.tokenizer.encode(text)
    return [ids[at : at + context] for at in range(0, len(ids) - context + 1, context)][:WINDOWS]


def log_probabilities(model: cw.Model, parts: list[list[int]]) -> np.ndarray:
    """Of every next token at every position, `[positions, vocabulary]`."""
    logits = np.concatenate([model.logits(ids) for ids in parts]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="candlewick/tiny")
    parser.add_argument("--text", type=Path, help="a text in UTF-8 instead of the stories")
    parser.add_argument("--context", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        text = arguments.text
        if text is None:
            text = Path(directory) / "stories.txt"
            text.write_bytes(stories().encode())
        print("| recipe | most weights | MB of weights | perplexity | more | divergence | same token |")
        print("|---|---|---:|---:|---:|---:|---:|")
        plain = usual = None
        for recipe in [None, *RECIPES]:
            found = perplexity(arguments.model, text, recipe, arguments.context)
            with cw.Model.from_pretrained(arguments.model, device="cpu", quantize=recipe) as model:
                parts = windows(model, text.read_bytes().decode(), arguments.context)
                now = log_probabilities(model, parts)
                plain, usual = plain or found, now if usual is None else usual
                divergence = 1e3 * (np.exp(usual) * (usual - now)).sum(axis=1).mean()
                same = 100 * (usual.argmax(axis=1) == now.argmax(axis=1)).mean()
                row = [recipe or "none", model.dtype, f"{model.size_in_bytes / 1e6:.2f}", f"{found:.4f}"]
            row += [f"{100 * (found / plain - 1):+.2f} %", f"{divergence:.2f}", f"{same:.1f} %"]
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
