"""Makes `sampler/cases.json`: logits, sampling parameters, and the probabilities that transformers gives.

    python tests/golden/make_sampler.py

The logits go through transformers' own processors in float64, in the order of its `generate`. Presence and
frequency penalties, which it lacks, follow the formula of OpenAI's API reference, between repetition penalty
and bias.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from reference import GOLDEN, fresh, pin

# A cumulative probability nearer than this to its threshold would make a case about rounding.
MARGIN = 1e-5

OFF = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": [],
}


class Ambiguous(Exception):
    """Rounding or the order of equals would decide what a filter keeps."""


def parameter_sets() -> list[dict]:
    """Each rule alone, with its extremes, and rules combined in every way."""
    alone = [{"temperature": t} for t in (0.05, 0.7, 1.0, 1.5, 20.0)]
    alone += [{"top_k": k} for k in (1, 2, 7, 40, 1000)]
    alone += [{"top_p": p} for p in (1e-4, 0.1, 0.5, 0.9, 0.99)]
    alone += [{"min_p": p} for p in (0.001, 0.05, 0.3, 1.0)]
    alone += [{"repetition_penalty": r} for r in (0.7, 1.1, 2.0)]
    alone += [{"presence_penalty": 1.5}, {"frequency_penalty": 0.8}, {"presence_penalty": -1.0}]
    alone += [{"logit_bias": [[3, 5.0], [4, -100.0]]}]
    axes = {
        "temperature": (0.6, 1.7),
        "top_k": (0, 20),
        "top_p": (1.0, 0.85),
        "min_p": (0.0, 0.08),
        "repetition_penalty": (1.0, 1.3),
    }
    combined = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    everything = {
        "temperature": 0.8,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "logit_bias": [[0, 2.0], [10, -3.5]],
    }
    return alone + combined + [everything]


def penalised(scores: torch.Tensor, prompt: list[int], output: list[int], p: dict) -> torch.Tensor:
    if p["repetition_penalty"] != 1.0:
        ids = torch.tensor([prompt + output])
        scores = RepetitionPenaltyLogitsProcessor(p["repetition_penalty"])(ids, scores)
    counts = torch.bincount(torch.tensor(output), minlength=scores.shape[-1]).to(scores.dtype)
    scores = scores - p["frequency_penalty"] * counts - p["presence_penalty"] * (counts > 0)
    for token, bias in p["logit_bias"]:
        scores[0, token] += bias
    return scores


def expected(logits: list[float], prompt: list[int], output: list[int], p: dict) -> list[float]:
    # The library computes with float32 logits and parameters: start from those numbers.
    floats = set(p) - {"top_k", "logit_bias"}
    p = p | {name: torch.tensor(p[name], dtype=torch.float32).item() for name in floats}
    scores = torch.tensor([logits], dtype=torch.float32).double()
    ids = torch.tensor([prompt + output])
    scores = TemperatureLogitsWarper(p["temperature"])(ids, penalised(scores, prompt, output, p))
    if p["top_k"]:
        scores = TopKLogitsWarper(p["top_k"])(ids, scores)
    if p["top_p"] < 1.0:
        cumulative = scores.sort(descending=False).values.softmax(-1).cumsum(-1)
        if (cumulative - (1.0 - p["top_p"])).abs().min() < MARGIN:
            raise Ambiguous
        before, scores = scores, TopPLogitsWarper(p["top_p"])(ids, scores)
        # torch's sort is not stable: which of several equal logits top-p drops depends on the machine.
        if (before == scores.masked_fill(scores == -torch.inf, torch.inf).min())[scores == -torch.inf].any():
            raise Ambiguous
    if p["min_p"]:
        probabilities = scores.softmax(-1)
        ratios = probabilities / probabilities.max() / p["min_p"]
        if ((ratios - 1.0).abs() < MARGIN).logical_and(ratios != 1.0).any():
            raise Ambiguous
        scores = MinPLogitsWarper(p["min_p"])(ids, scores)
    return scores.softmax(-1)[0].tolist()


def draw_case(rng: random.Random, given: dict, digits: int) -> dict:
    """A case for the parameters `given`, with logits of so many decimal digits."""
    vocab = rng.randrange(50, 120)
    logits = [round(rng.gauss(0.0, 3.0), digits) for _ in range(vocab)]
    prompt = [rng.randrange(vocab) for _ in range(8)] + [vocab + 5]  # an id without a logit
    output = [rng.randrange(vocab) for _ in range(6)] + [prompt[0]] * 2
    probabilities = expected(logits, prompt, output, OFF | given)
    kept = [[token, float(f"{p:.8g}")] for token, p in enumerate(probabilities) if p > 1e-12]
    return {"params": given, "prompt": prompt, "output": output, "logits": logits, "probabilities": kept}


def main() -> None:
    pin("torch", "transformers")
    rng = random.Random(20)
    cases = []
    for index, given in enumerate(parameter_sets()):
        while len(cases) == index:
            # Every third case has logits of few distinct values, so that ties meet the thresholds.
            with contextlib.suppress(Ambiguous):
                cases.append(draw_case(rng, given, 0 if index % 3 == 0 else 3))
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (fresh(GOLDEN / "sampler") / "cases.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
