"""Makes the tiny decoder checkpoints of this folder and what transformers computes from them.

    python tests/golden/make_models.py [family/case …]

Each case is a directory in Hugging Face layout plus `expected.safetensors`; README.md says what
is in it. Every expectation is computed from the *written* directory, loaded back by transformers.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from reference import GOLDEN, fresh, pin, random_ids, randomise, write_json, write_tensors

GREEDY_TOKENS = 24
# Greedy ids are only a fair expectation while the best two logits are further apart than rounding.
MIN_GREEDY_MARGIN = 2e-3


@dataclass
class Case:
    """One checkpoint: config values, how the files are spelled, and the prompts to run."""

    name: str
    config: dict
    seed: int
    lengths: tuple[int, ...] = (1, 5, 19, 33)
    dtype: torch.dtype = torch.float32
    # transformers 4 spelling: rope_theta, rope_scaling, torch_dtype and no layer_types
    old_spelling: bool = False
    # key of the rope kind inside rope_scaling: early files say "type", later ones "rope_type"
    rope_kind_key: str = "rope_type"
    shards: int = 1
    drop: tuple[str, ...] = field(default=())


def sizes(**extra) -> dict:
    return {
        "vocab_size": 120,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **extra,
    }


def rope(kind: str = "default", theta: float = 10000.0, **extra) -> dict:
    return {"rope_type": kind, "rope_theta": theta, **extra}


CASES = [
    Case("qwen2/tied", {"model_type": "qwen2", **sizes(tie_word_embeddings=True, rope_parameters=rope(theta=1e6))}, 1),
    # Layers 0 and 1 see everything, layer 2 only the last 8 tokens.
    Case(
        "qwen2/windowed",
        {
            "model_type": "qwen2",
            **sizes(
                num_hidden_layers=3,
                tie_word_embeddings=False,
                use_sliding_window=True,
                sliding_window=8,
                max_window_layers=2,
                rope_parameters=rope(theta=1e6),
            ),
        },
        2,
        lengths=(1, 7, 8, 9, 40),
        old_spelling=True,
        shards=2,
    ),
    Case(
        "qwen2/yarn",
        {
            "model_type": "qwen2",
            **sizes(
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64),
            ),
        },
        3,
        lengths=(1, 6, 70),
        old_spelling=True,
        rope_kind_key="type",
    ),
    Case(
        "qwen2/bf16",
        {"model_type": "qwen2", **sizes(tie_word_embeddings=True, rope_parameters=rope(theta=1e6))},
        4,
        lengths=(1, 5, 19),
        dtype=torch.bfloat16,
    ),
    # 4 heads of 16 on a hidden size of 40: q is [64, 40], o is [40, 64].
    Case(
        "qwen3/untied",
        {
            "model_type": "qwen3",
            **sizes(hidden_size=40, head_dim=16, tie_word_embeddings=False, rope_parameters=rope(theta=1e6)),
        },
        5,
    ),
    Case(
        "qwen3/tied",
        {
            "model_type": "qwen3",
            **sizes(
                hidden_size=40,
                head_dim=16,
                num_key_value_heads=1,
                tie_word_embeddings=True,
                rope_parameters=rope(theta=1e6),
            ),
        },
        6,
        lengths=(1, 5, 19),
        old_spelling=True,
    ),
    Case(
        "llama/llama3",
        {
            "model_type": "llama",
            **sizes(
                head_dim=16,
                tie_word_embeddings=False,
                rope_parameters=rope(
                    "llama3",
                    5e5,
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=64,
                ),
            ),
        },
        7,
        lengths=(1, 5, 70),
        old_spelling=True,
    ),
    # The plainest and oldest config: heads without key/value groups and no rope fields but theta.
    Case(
        "llama/plain",
        {
            "model_type": "llama",
            **sizes(num_key_value_heads=4, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=rope()),
        },
        8,
        old_spelling=True,
        drop=("rope_theta", "rope_scaling", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
    ),
    Case(
        "llama/linear",
        {"model_type": "llama", **sizes(tie_word_embeddings=True, rope_parameters=rope("linear", factor=4.0))},
        9,
        old_spelling=True,
        rope_kind_key="type",
    ),
    Case(
        "llama/dynamic",
        {
            "model_type": "llama",
            **sizes(max_position_embeddings=32, tie_word_embeddings=True, rope_parameters=rope("dynamic", factor=2.0)),
        },
        10,
        lengths=(1, 5, 20, 32, 33, 50),
    ),
    Case(
        "llama/yarn",
        {
            "model_type": "llama",
            **sizes(
                head_dim=16,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                rope_parameters=rope(
                    "yarn",
                    factor=4.0,
                    original_max_position_embeddings=64,
                    beta_fast=2.0,
                    beta_slow=0.25,
                    mscale=1.0,
                    mscale_all_dim=0.7,
                    truncate=False,
                ),
            ),
        },
        11,
        lengths=(1, 5, 70),
    ),
    Case(
        "llama/bias",
        {
            "model_type": "llama",
            **sizes(attention_bias=True, mlp_bias=True, tie_word_embeddings=False, rope_parameters=rope()),
        },
        12,
        lengths=(1, 5, 19),
    ),
    Case(
        "llama/f16",
        {"model_type": "llama", **sizes(tie_word_embeddings=True, rope_parameters=rope())},
        13,
        lengths=(1, 5, 19),
        dtype=torch.float16,
        old_spelling=True,
    ),
    Case(
        "mistral/window",
        {
            "model_type": "mistral",
            **sizes(sliding_window=8, head_dim=16, tie_word_embeddings=False, rope_parameters=rope()),
        },
        14,
        lengths=(1, 7, 8, 9, 40),
        old_spelling=True,
    ),
    Case(
        "mistral/full",
        {"model_type": "mistral", **sizes(sliding_window=None, tie_word_embeddings=True, rope_parameters=rope())},
        15,
        lengths=(1, 5, 19),
    ),
]


def respell(config: dict, case: Case) -> dict:
    """The same config in transformers 4's words, as hub repositories before 2026 have it."""
    if case.old_spelling:
        parameters = config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        kind = parameters.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {case.rope_kind_key: kind, **parameters}
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.46.0"
        config.pop("layer_types", None)
    for key in case.drop:
        config.pop(key, None)
    return config


def write_checkpoint(case: Case, directory: Path, seed: int) -> None:
    values = dict(case.config)
    config = AutoConfig.for_model(values.pop("model_type"), **values, use_cache=True)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    randomise(model.named_parameters(), seed)
    model = model.to(case.dtype)
    size_in_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    # An eighth more than an even share, so that whole tensors fit.
    model.save_pretrained(directory, max_shard_size=size_in_bytes * 9 // (8 * case.shards))
    (directory / "generation_config.json").unlink(missing_ok=True)
    shards = len(list(directory.glob("*.safetensors")))
    if shards != case.shards:
        raise SystemExit(f"{case.name}: wrote {shards} shards")
    path = directory / "config.json"
    write_json(path, respell(json.loads(path.read_text()), case))


def run(model, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[seq, vocab]` and final hidden states `[seq, hidden]` of one sequence, without cache."""
    # A copy per sequence: dynamic RoPE remembers the longest sequence a model has seen.
    model = copy.deepcopy(model)
    hidden = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state
    return model.lm_head(hidden)[0], hidden[0]


def greedy(model, ids: list[int]) -> tuple[list[int], float]:
    """Greedy ids with a key/value cache, and the smallest margin between best and second best."""
    model = copy.deepcopy(model)
    cache = DynamicCache(config=model.config)
    step, out, margin = ids, [], float("inf")
    for _ in range(GREEDY_TOKENS):
        logits = model(torch.tensor([step]), past_key_values=cache, use_cache=True).logits[0, -1]
        best = torch.topk(logits, 2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        out.append(best.indices[0].item())
        step = [out[-1]]
    return out, margin


def recomputed(model, ids: list[int]) -> list[int]:
    out = list(ids)
    for _ in range(GREEDY_TOKENS):
        out.append(run(model, out)[0][-1].argmax().item())
    return out[len(ids) :]


@torch.no_grad()
def expect(case: Case, directory: Path, seed: int) -> dict[str, torch.Tensor] | None:
    """All expectations, or None where a greedy choice is too close to call."""
    load = lambda dtype: AutoModelForCausalLM.from_pretrained(  # noqa: E731
        directory, dtype=dtype, attn_implementation="eager", local_files_only=True
    ).eval()
    model = load(torch.float32)
    native = load(case.dtype) if case.dtype != torch.float32 else None
    is_dynamic = model.config.rope_parameters["rope_type"] == "dynamic"
    out: dict[str, torch.Tensor] = {}
    for i, length in enumerate(case.lengths):
        ids = random_ids(length, case.config["vocab_size"], seed=1000 * seed + i)
        logits, hidden = run(model, ids)
        tokens, margin = greedy(model, ids)
        if margin < MIN_GREEDY_MARGIN:
            return None
        # Cached keys keep the frequencies of their time under dynamic RoPE, so only the others must agree.
        if not is_dynamic and tokens != recomputed(model, ids):
            raise SystemExit(f"{case.name}: cached and uncached greedy ids differ for prompt {i}")
        out[f"input_ids_{i}"] = torch.tensor(ids)
        out[f"logits_{i}"] = logits
        out[f"hidden_{i}"] = hidden
        out[f"greedy_{i}"] = torch.tensor(tokens)
        if native is not None:
            out[f"native_logits_{i}"] = run(native, ids)[0]
    return out


def main() -> None:
    pin("torch", "transformers")
    logging.disable_progress_bar()
    wanted = sys.argv[1:]
    for case in CASES:
        if wanted and case.name not in wanted:
            continue
        for seed in itertools.count(case.seed, 100):
            directory = fresh(GOLDEN / case.name)
            write_checkpoint(case, directory, seed)
            if expected := expect(case, directory, seed):
                break
        write_tensors(directory / "expected.safetensors", expected)
        spread = max(t.std().item() for name, t in expected.items() if name.startswith("logits"))
        print(f"{case.name}: {sum(f.stat().st_size for f in directory.iterdir()) // 1024} KiB, logit std {spread:.2f}")


if __name__ == "__main__":
    main()
