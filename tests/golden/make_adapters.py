"""Makes adapters for the golden checkpoints and what PEFT computes with them.

    python tests/golden/make_adapters.py [case …]

Needs the checkpoints of make_models.py. `adapters/<case>/` is an adapter directory as PEFT (or
mlx-lm) writes it plus `expected.safetensors`; `adapters/refused/` are ones that must not load.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from reference import GOLDEN, fresh, pin, random_ids, randomise, write_json, write_tensors

ADAPTERS = GOLDEN / "adapters"
LENGTHS = (1, 3, 12)
# An adapter that changes no logit by this much would prove nothing.
MIN_EFFECT = 0.05


@dataclass
class Case:
    """One adapter: its base checkpoint, PEFT's LoraConfig, and what the written files differ in."""

    name: str
    base: str
    lora: dict
    seed: int
    # laid over adapter_config.json after PEFT wrote it; None values are removed
    rewrite: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    # merging a LoRA into an embedding that is also the head changes both, which PEFT warns about
    has_merged: bool = True


CASES = [
    Case("qwen2-qv", "qwen2/tied", dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]), 1),
    Case("qwen3-all-linear", "qwen3/untied", dict(r=5, lora_alpha=8, target_modules="all-linear"), 2),
    # The same words unresolved, as a person may write them.
    Case(
        "mistral-all-linear",
        "mistral/window",
        dict(r=3, lora_alpha=7, target_modules="all-linear"),
        3,
        rewrite={"target_modules": "all-linear"},
    ),
    Case(
        "llama-rslora",
        "llama/llama3",
        dict(r=5, lora_alpha=4, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        4,
    ),
    Case(
        "mistral-dora",
        "mistral/window",
        dict(r=3, lora_alpha=6, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
        5,
    ),
    # DoRA where the base has biases: they are added after the rescaling.
    Case(
        "qwen2-dora",
        "qwen2/tied",
        dict(r=3, lora_alpha=3, use_dora=True, target_modules=["q_proj", "k_proj", "gate_proj"]),
        6,
    ),
    Case(
        "qwen2-patterns",
        "qwen2/windowed",
        dict(
            r=3,
            lora_alpha=6,
            target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 5, "layers.2.self_attn.v_proj": 7},
            alpha_pattern={"v_proj": 1, r"^model\.layers\.0\.mlp\.up_proj": 20},
        ),
        7,
    ),
    Case(
        "llama-layers",
        "llama/llama3",
        dict(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
        8,
    ),
    Case(
        "qwen2-layers",
        "qwen2/windowed",
        dict(r=3, target_modules=["v_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
        9,
    ),
    Case("llama-regex", "llama/llama3", dict(r=3, target_modules=r".*\.layers\.0\..*\.(q|down)_proj"), 10),
    Case(
        "llama-exclude",
        "llama/llama3",
        dict(r=3, target_modules=["q_proj", "k_proj"], exclude_modules=["layers.0.self_attn.q_proj"]),
        11,
    ),
    Case(
        "qwen2-bias", "qwen2/tied", dict(r=3, lora_alpha=6, bias="lora_only", target_modules=["q_proj", "o_proj"]), 12
    ),
    Case(
        "llama-bias", "llama/bias", dict(r=3, lora_alpha=6, bias="lora_only", target_modules=["k_proj", "gate_proj"]), 13
    ),
    Case("llama-bias-all", "llama/bias", dict(r=3, lora_alpha=6, bias="all", target_modules=["v_proj"]), 14),
    Case("qwen3-head", "qwen3/untied", dict(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]), 15),
    Case(
        "qwen2-head-embed",
        "qwen2/windowed",
        dict(r=3, target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
        16,
    ),
    Case("llama-embed", "llama/llama3", dict(r=3, lora_alpha=6, target_modules=["embed_tokens", "q_proj"]), 17),
    # The embedding is also the head: only the embedding is adapted.
    Case("qwen2-embed-tied", "qwen2/tied", dict(r=3, target_modules=["embed_tokens", "v_proj"]), 18, has_merged=False),
    Case("llama-head-lora", "llama/llama3", dict(r=3, target_modules=["lm_head", "q_proj"]), 19),
    Case("llama-lora-bias", "llama/bias", dict(r=3, lora_bias=True, target_modules=["q_proj", "up_proj"]), 20),
    Case("llama-f16", "llama/f16", dict(r=3, target_modules=["q_proj", "down_proj"]), 21, dtype=torch.float16),
    Case(
        "qwen2-bf16",
        "qwen2/bf16",
        dict(r=3, init_lora_weights="gaussian", target_modules=["q_proj", "down_proj"]),
        22,
        dtype=torch.bfloat16,
    ),
]  # fmt: skip


def load_base(base: str):
    return AutoModelForCausalLM.from_pretrained(
        GOLDEN / base, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def prompts(base: str, seed: int) -> list[list[int]]:
    vocab = json.loads((GOLDEN / base / "config.json").read_text())["vocab_size"]
    return [random_ids(length, vocab, 100 * seed + i) for i, length in enumerate(LENGTHS)]


@torch.no_grad()
def logits(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def expect(case_name: str, base: str, seed: int, attached, merged) -> dict[str, torch.Tensor]:
    """Logits with the adapter attached and, where given, merged, next to those of the bare base."""
    plain = load_base(base)
    out: dict[str, torch.Tensor] = {}
    effect = 0.0
    for i, ids in enumerate(prompts(base, seed)):
        out[f"input_ids_{i}"] = torch.tensor(ids)
        out[f"attached_{i}"] = logits(attached, ids)
        effect = max(effect, (out[f"attached_{i}"] - logits(plain, ids)).abs().max().item())
    if merged is not None:
        merged = merged()
        for i, ids in enumerate(prompts(base, seed)):
            out[f"merged_{i}"] = logits(merged, ids)
            if not torch.allclose(out[f"merged_{i}"], out[f"attached_{i}"], atol=2e-4):
                raise SystemExit(f"{case_name}: merged and attached differ")
    if effect < MIN_EFFECT:
        raise SystemExit(f"{case_name}: the adapter changes nothing ({effect})")
    return out


def trainable(model) -> list[tuple[str, torch.Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def disturb(model, seed: int) -> None:
    """Random values in every tensor the adapter file will hold; B and biases too, which start at zero."""
    norms = {name: p.detach().clone() for name, p in trainable(model) if "magnitude" in name}
    randomise(trainable(model), seed, std=0.2)
    with torch.no_grad():
        for name, p in trainable(model):
            if name in norms:
                # Magnitudes stay near the column norms they start from.
                p.copy_(norms[name] * (1 + 0.3 * p))


def make(case: Case) -> None:
    directory = fresh(ADAPTERS / case.name)
    model = get_peft_model(load_base(case.base), LoraConfig(task_type="CAUSAL_LM", **case.lora))
    disturb(model, case.seed)
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text()) | case.rewrite | {"base_model_name_or_path": case.base}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(path, config)
    tensors = load_file(directory / "adapter_model.safetensors")
    write_tensors(directory / "adapter_model.safetensors", {k: v.to(case.dtype) for k, v in tensors.items()})
    attached = PeftModel.from_pretrained(load_base(case.base), directory).eval()
    merged = (lambda: attached.merge_and_unload(safe_merge=True)) if case.has_merged else None
    write_tensors(directory / "expected.safetensors", expect(case.name, case.base, case.seed, attached, merged))


def mlx_hook(a: torch.Tensor, b: torch.Tensor, scale: float, magnitude: torch.Tensor | None) -> Callable:
    """mlx-lm's layers in torch: y = W x + scale (x a) b, and with DoRA rescaled to `magnitude`."""

    def forward(module, inputs, output):
        bias = 0.0 if module.bias is None else module.bias
        y = output - bias + scale * (inputs[0] @ a) @ b
        if magnitude is not None:
            y = y * (magnitude / (module.weight + scale * (a @ b).T).norm(dim=1))
        return y + bias

    return forward


def make_mlx(name: str, base: str, kind: str, rank: int, scale: float, seed: int, keys: list[str], num_layers: int) -> None:
    directory = fresh(ADAPTERS / name)
    model = load_base(base)
    layers = model.config.num_hidden_layers
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(layers - num_layers, layers):
        for key in keys:
            path = f"model.layers.{layer}.{key}"
            weight = model.get_submodule(path).weight
            tensors[f"{path}.lora_a"] = torch.empty(weight.shape[1], rank)
            tensors[f"{path}.lora_b"] = torch.empty(rank, weight.shape[0])
            if kind == "dora":
                tensors[f"{path}.m"] = torch.empty(weight.shape[0])
    randomise(tensors.items(), seed, std=0.2)
    for path in {name.rpartition(".")[0] for name in tensors}:
        module = model.get_submodule(path)
        if kind == "dora":
            tensors[f"{path}.m"] = module.weight.detach().norm(dim=1) * (1 + 0.3 * tensors[f"{path}.m"])
        module.register_forward_hook(
            mlx_hook(tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"], scale, tensors.get(f"{path}.m"))
        )
    write_tensors(directory / "adapters.safetensors", tensors)
    write_json(
        directory / "adapter_config.json",
        {
            "adapter_path": "adapters",
            "batch_size": 4,
            "fine_tune_type": kind,
            "iters": 100,
            "learning_rate": 1e-5,
            "lora_parameters": {"dropout": 0.0, "keys": keys, "rank": rank, "scale": scale},
            "mask_prompt": False,
            "model": base,
            "num_layers": num_layers,
        },
    )
    write_tensors(directory / "expected.safetensors", expect(name, base, seed, model, None))


def make_refused() -> None:
    """Copies of the plain adapter, each with one thing that forbids loading it."""
    root = fresh(ADAPTERS / "refused")
    source = ADAPTERS / "qwen2-qv"
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    reasons: dict[str, str] = {}

    def variant(name: str, reason: str, new_config: dict | None = None, new_tensors: dict | None = None) -> Path:
        directory = fresh(root / name)
        write_json(directory / "adapter_config.json", config | (new_config or {}))
        write_tensors(directory / "adapter_model.safetensors", tensors if new_tensors is None else new_tensors)
        reasons[name] = reason
        return directory

    for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"):
        variant(f"init-{init}", "the initialisation changed the base weights", {"init_lora_weights": init})
    unsupported = {
        "peft_type": "IA3",
        "alora_invocation_tokens": [1, 2],
        "trainable_token_indices": [3],
        "target_parameters": ["mlp.experts.gate_up_proj"],
        "layer_replication": [[0, 2], [0, 2]],
        "use_qalora": True,
        "arrow_config": {"arrow_top_k": 2},
    }
    for key, value in unsupported.items():
        variant(f"config-{key}", f"{key} asks for something that is not supported", {key: value})
    variant("no-target", "no target module exists", {"target_modules": ["c_attn"]})
    variant("rank-differs", "the tensors have another rank than r says", {"r": 4})
    variant("rank-zero", "r is 0", {"r": 0})
    swapped = {k.replace("q_proj", "zz_proj"): v for k, v in tensors.items()}
    variant("unknown-key", "a tensor belongs to no module of the model", None, swapped)
    variant("unknown-layer", "a tensor belongs to no layer of the model", None,
            {k.replace("layers.1", "layers.7"): v for k, v in tensors.items()})  # fmt: skip
    variant("extra-key", "one tensor more than the adapter needs", None, tensors | {"base_model.model.odd": torch.ones(2)})
    variant("wrong-shape", "A and B are exchanged", None, tensors | {first: tensors[first].T.contiguous()})
    variant("missing-pair", "an A without its B", None,
            {k: v for k, v in tensors.items() if k != first.replace("lora_A", "lora_B")})  # fmt: skip
    variant("missing-module", "no tensors for one target module", None,
            {k: v for k, v in tensors.items() if "v_proj" not in k})  # fmt: skip
    variant("no-tensors", "a valid file without tensors", None, {})
    variant("not-finite", "a tensor holds NaN", None, tensors | {first: torch.full_like(tensors[first], float("nan"))})
    variant("wrong-dtype", "a tensor holds integers", None, tensors | {first: tensors[first].to(torch.int32)})
    (variant("empty-file", "a file of zero bytes") / "adapter_model.safetensors").write_bytes(b"")
    whole = (source / "adapter_model.safetensors").read_bytes()
    (variant("truncated", "the file ends early") / "adapter_model.safetensors").write_bytes(whole[:-100])
    (variant("no-config", "adapter_config.json is missing") / "adapter_config.json").unlink()
    (variant("bad-config", "adapter_config.json is no JSON") / "adapter_config.json").write_text('{"r": 3,')
    (variant("no-weights", "adapter_model.safetensors is missing") / "adapter_model.safetensors").unlink()
    write_json(root / "reasons.json", reasons)


def make_minimal() -> None:
    """The least PEFT accepts as a configuration: everything else is its default (r 8, alpha 8)."""
    case = Case("qwen3-minimal", "qwen3/tied", dict(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"]), 23)
    make(case)
    path = ADAPTERS / case.name / "adapter_config.json"
    write_json(path, {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": case.base})
    again = PeftModel.from_pretrained(load_base(case.base), path.parent).eval()
    expected = load_file(path.parent / "expected.safetensors")
    for i, ids in enumerate(prompts(case.base, case.seed)):
        torch.testing.assert_close(logits(again, ids), expected[f"attached_{i}"])


def main() -> None:
    pin("torch", "transformers", "peft")
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    wanted = sys.argv[1:]
    for case in CASES:
        if not wanted or case.name in wanted:
            make(case)
    if not wanted:
        make_minimal()
        keys = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
        make_mlx("mlx-llama", "llama/llama3", "lora", 3, 2.5, 31, keys, 2)
        make_mlx("mlx-qwen2-last", "qwen2/windowed", "lora", 5, 1.5, 32, ["self_attn.q_proj", "self_attn.k_proj"], 1)
        make_mlx("mlx-qwen2-dora", "qwen2/tied", "dora", 3, 1.5, 33, keys, 2)
        make_refused()
    for leftover in ADAPTERS.rglob(".cache"):
        shutil.rmtree(leftover)


if __name__ == "__main__":
    main()
