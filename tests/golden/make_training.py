"""Makes what torch and PEFT compute while training adapters on the golden checkpoints.

    python tests/golden/make_training.py [case …]

Needs the checkpoints of make_models.py. `training/<case>/` holds a starting adapter, the gradients
of the first step and a trajectory of optimizer steps; `training/*.json` are torch's schedules,
AdamW and cross-entropy by themselves.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers.utils import logging

from make_adapters import disturb, load_base, trainable
from reference import GOLDEN, fresh, pin, random_ids, write_json, write_tensors

TRAINING = GOLDEN / "training"
STEPS = 12
BATCHES = 4
IGNORE = -100


@dataclass
class Case:
    """One run: what is trained on which base, and how its steps differ from the plain recipe."""

    name: str
    base: str
    lora: dict
    seed: int
    learning_rate: float = 5e-3
    schedule: str = "cosine"
    accumulation: int = 1
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0


CASES = [
    Case("qwen2-qv", "qwen2/tied", dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]), 1),
    Case("qwen3-rslora", "qwen3/untied", dict(r=5, lora_alpha=4, use_rslora=True, target_modules="all-linear"), 2),
    Case("llama-all-linear", "llama/llama3", dict(r=3, lora_alpha=6, target_modules="all-linear"), 3, schedule="linear",
         max_grad_norm=8.0),
    Case(
        "mistral-dora",
        "mistral/window",
        dict(r=3, lora_alpha=6, use_dora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
        4,
        max_grad_norm=5.0,
    ),
    Case("qwen2-bias", "qwen2/tied", dict(r=3, bias="lora_only", target_modules=["q_proj", "o_proj"]), 5),
    Case("qwen3-head", "qwen3/untied", dict(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]), 6),
    Case("llama-embed", "llama/llama3", dict(r=3, lora_alpha=6, target_modules=["embed_tokens", "k_proj"]), 7),
    Case(
        "mistral-accumulated",
        "mistral/window",
        dict(r=3, lora_alpha=6, target_modules=["k_proj", "up_proj"]),
        8,
        accumulation=2,
        max_grad_norm=2.5,
    ),
    Case(
        "llama-smoothed",
        "llama/bias",
        dict(r=3, lora_alpha=6, target_modules=["q_proj", "gate_proj"]),
        9,
        schedule="constant",
        label_smoothing=0.1,
    ),
]  # fmt: skip

RECIPE = {"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "warmup_steps": 2}


def rows_of(case: Case, vocab: int) -> list[list[dict]]:
    """Four batches of ragged rows: a masked prompt, a whole text, masks in the middle, nothing to learn."""
    batches = []
    for b in range(BATCHES):
        lengths = [(9, 4, 13), (2, 11), (6, 6, 7, 3), (15,)][b]
        rows = []
        for r, length in enumerate(lengths):
            ids = random_ids(length, vocab, 10000 * case.seed + 100 * b + r)
            labels = list(ids)
            if r == 0:
                labels[: length // 3] = [IGNORE] * (length // 3)
            if r == 2:
                labels[2:5] = [IGNORE] * 3
            if r == 3:
                labels = [IGNORE] * length
            rows.append({"input_ids": ids, "labels": labels})
        batches.append(rows)
    return batches


def loss_sum(model, row: dict, smoothing: float) -> torch.Tensor:
    """Summed loss of one row, run alone: label i is predicted from the tokens before i."""
    out = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
    targets = torch.tensor(row["labels"][1:])
    return torch.nn.functional.cross_entropy(
        out, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )


def count(rows: list[dict]) -> int:
    return sum(label != IGNORE for row in rows for label in row["labels"][1:])


def backward(model, rows: list[dict], smoothing: float) -> float:
    """Gradients of the mean loss over all unmasked tokens of all rows; returns that mean."""
    tokens, total = count(rows), 0.0
    for row in rows:
        if count([row]):
            loss = loss_sum(model, row, smoothing) / tokens
            loss.backward()
            total += loss.item()
    return total


def schedule_of(name: str, optimizer, warmup: int, total: int):
    if name == "constant":
        return transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    make = {"cosine": transformers.get_cosine_schedule_with_warmup, "linear": transformers.get_linear_schedule_with_warmup}
    return make[name](optimizer, warmup, total)


def on_disk(model, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names PEFT gives them in a file."""
    return get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)


def groups_of(model) -> list[dict]:
    """As transformers' Trainer: biases are not decayed, everything else is."""
    decayed = [p for name, p in trainable(model) if not name.endswith("bias")]
    rest = [p for name, p in trainable(model) if name.endswith("bias")]
    return [{"params": decayed, "weight_decay": RECIPE["weight_decay"]}, {"params": rest, "weight_decay": 0.0}]


def make(case: Case) -> None:
    directory = fresh(TRAINING / case.name)
    model = get_peft_model(load_base(case.base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case.lora))
    disturb(model, case.seed)
    model.train()
    write_start(case, model, directory)
    batches = rows_of(case, model.config.vocab_size)
    optimizer = torch.optim.AdamW(
        groups_of(model), lr=case.learning_rate, betas=tuple(RECIPE["betas"]), eps=RECIPE["eps"], foreach=False
    )
    schedule = schedule_of(case.schedule, optimizer, RECIPE["warmup_steps"], STEPS)
    steps, tensors = [], {}
    for step in range(STEPS):
        rows = [row for k in range(case.accumulation) for row in batches[(step * case.accumulation + k) % BATCHES]]
        optimizer.zero_grad(set_to_none=True)
        loss = backward(model, rows, case.label_smoothing)
        if step == 0:
            grads = {name: p.grad.detach().clone() for name, p in trainable(model)}
            check_gradients(case, grads)
            tensors |= {f"grad.{name}": t for name, t in on_disk(model, grads).items()}
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in trainable(model)], case.max_grad_norm)
        steps.append(
            {"loss": loss, "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0], "tokens": count(rows)}
        )
        optimizer.step()
        schedule.step()
    final = {name: p.detach() for name, p in trainable(model)}
    tensors |= {f"final.{name}": t for name, t in on_disk(model, final).items()}
    write_tensors(directory / "expected.safetensors", tensors)
    recipe = {"learning_rate": case.learning_rate, "schedule": case.schedule, "max_steps": STEPS, **RECIPE}
    recipe["max_grad_norm"] = case.max_grad_norm
    recipe |= {"gradient_accumulation_steps": case.accumulation, "label_smoothing": case.label_smoothing}
    write_json(directory / "run.json", {"base": case.base, "recipe": recipe, "batches": batches, "steps": steps})
    clipped = sum(s["grad_norm"] > case.max_grad_norm for s in steps)
    print(f"{case.name}: loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}, {clipped} of {STEPS} steps clipped")


def write_start(case: Case, model, directory: Path) -> None:
    model.save_pretrained(directory / "start", save_embedding_layers=False)
    (directory / "start" / "README.md").unlink(missing_ok=True)
    path = directory / "start" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": case.base, "inference_mode": False}
    config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)


def check_gradients(case: Case, grads: dict[str, torch.Tensor]) -> None:
    for name, grad in grads.items():
        if not torch.isfinite(grad).all() or grad.abs().max() == 0:
            raise SystemExit(f"{case.name}: gradient of {name} is zero or not finite")


def make_schedules() -> None:
    """Factors 0 … total of every schedule, applied to a learning rate of 1."""
    out = []
    for name in ("constant", "linear", "cosine"):
        for warmup, total in ((0, 10), (3, 10), (10, 10), (0, 1), (1, 1), (4, 25)):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            factors = rates(optimizer, schedule_of(name, optimizer, warmup, total), total)
            out.append({"schedule": name, "warmup_steps": warmup, "total_steps": total, "min": 0.0, "factors": factors})
    for warmup, total, least in ((0, 10, 0.1), (3, 10, 0.25)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = transformers.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=least)
        factors = rates(optimizer, schedule, total)
        out.append({"schedule": "cosine", "warmup_steps": warmup, "total_steps": total, "min": least, "factors": factors})
    write_json(TRAINING / "schedules.json", out)


def rates(optimizer, schedule, total: int) -> list[float]:
    out = []
    for _ in range(total + 1):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def make_adamw() -> None:
    """Two parameters, one decayed and one not, over six steps of given gradients."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 3, generator=generator), torch.randn(4, generator=generator)
    start = {"decayed": a.flatten().tolist(), "plain": b.tolist()}
    a, b = torch.nn.Parameter(a), torch.nn.Parameter(b)
    groups = [{"params": [a], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.95), eps=1e-6, foreach=False)
    steps = []
    for step in range(6):
        a.grad = torch.randn(a.shape, generator=generator) * 10.0 ** (1 - step)
        b.grad = torch.randn(b.shape, generator=generator)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.05 / (step + 1)
        optimizer.step()
        steps.append(
            {
                "learning_rate": 0.05 / (step + 1),
                "gradients": {"decayed": a.grad.flatten().tolist(), "plain": b.grad.tolist()},
                "values": {"decayed": a.detach().flatten().tolist(), "plain": b.detach().tolist()},
            }
        )
    write_json(
        TRAINING / "adamw.json",
        {"betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1, "shape": [2, 3], "start": start, "steps": steps},
    )


def make_cross_entropy() -> None:
    """Mean loss over unmasked rows and its gradient, with and without label smoothing."""
    generator = torch.Generator().manual_seed(6)
    start = 4 * torch.randn(7, 11, generator=generator)
    start[2, 5] = 60.0
    labels = [3, IGNORE, 5, 0, IGNORE, 10, 7]
    out = []
    for smoothing in (0.0, 0.1, 1.0):
        x = start.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x, torch.tensor(labels), ignore_index=IGNORE, label_smoothing=smoothing)
        loss.backward()
        out.append({"label_smoothing": smoothing, "loss": loss.item(), "gradient": x.grad.tolist()})
    write_json(TRAINING / "cross_entropy.json", {"logits": start.tolist(), "labels": labels, "cases": out})


def main() -> None:
    pin("torch", "transformers", "peft")
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    wanted = sys.argv[1:]
    for case in CASES:
        if not wanted or case.name in wanted:
            make(case)
    if not wanted:
        make_schedules()
        make_adamw()
        make_cross_entropy()


if __name__ == "__main__":
    main()
