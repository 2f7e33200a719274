"""Makes `kernels/`: what torch and transformers compute for single operations, with gradients.

    python tests/golden/make_kernels.py

`cases.json` holds the parameters of each case, `kernels.safetensors` its tensors as
`<case>.<name>`; `<case>.grad` is the gradient that flows into the result, `<case>.grad_<name>`
what comes out for an input.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.masking_utils import (
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as rotate_pairs
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

from reference import GOLDEN, fresh, pin, write_json, write_tensors

EPS = 1e-5
HEADS, KV_HEADS, HEAD_DIM, SCALE = 4, 2, 12, 0.3
OFFSETS = [0, 1, 9, 11, 28]
SPAN = 20


class Recorder:
    """Collects the cases; random tensors come from one seeded generator."""

    def __init__(self) -> None:
        self.cases: dict[str, dict] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(20)

    def noise(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(shape, generator=self.generator)

    def case(self, name: str, parameters: dict, inputs: dict[str, torch.Tensor], compute) -> None:
        """Runs `compute(**inputs)` and its backward pass."""
        leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
        result = compute(**leaves)
        grad = torch.ones(()) if result.dim() == 0 else self.noise(*result.shape)
        result.backward(grad)
        self.cases[name] = parameters
        self.tensors |= {f"{name}.{key}": value for key, value in inputs.items()}
        self.tensors |= {f"{name}.grad_{key}": leaf.grad for key, leaf in leaves.items()}
        self.tensors |= {f"{name}.result": result, f"{name}.grad": grad}


def sees(query: int, key: int, causal: bool, window: int | None) -> bool:
    """Whether a query attends to a key, as transformers' masks have it."""
    if window is None:
        return not causal or key <= query
    make = sliding_window_causal_mask_function if causal else sliding_window_bidirectional_mask_function
    mask = make(window if causal else window // 2)
    return bool(mask(0, 0, torch.tensor(query), torch.tensor(key)))


def attend(q, k, v, causal: bool, window: int | None, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention sequence by sequence, through torch's own."""
    parts = []
    for start, end in pairwise(OFFSETS):
        n = end - start
        visible = torch.tensor([[sees(i, j, causal, window) for j in range(n)] for i in range(n)])
        scores = torch.zeros(HEADS, n, n).masked_fill(~visible, float("-inf"))
        if bias is not None:
            distance = torch.arange(n)[None, :] - torch.arange(n)[:, None]
            scores = scores + bias[:, distance + SPAN - 1]
        heads = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        y = functional.scaled_dot_product_attention(*heads, attn_mask=scores[None], scale=SCALE, enable_gqa=True)
        parts.append(y[0].transpose(0, 1))
    return torch.cat(parts)


def attention(record: Recorder) -> None:
    tokens = OFFSETS[-1]
    bias = record.noise(HEADS, 2 * SPAN - 1)
    record.tensors["attention.bias"] = bias
    kinds = {
        "causal": (True, None, None),
        "causal_window": (True, 7, None),
        "bidirectional": (False, None, None),
        "local": (False, 9, None),
        "biased": (False, None, bias),
    }
    for name, (causal, window, with_bias) in kinds.items():
        inputs = {
            "q": record.noise(tokens, HEADS, HEAD_DIM),
            "k": record.noise(tokens, KV_HEADS, HEAD_DIM),
            "v": record.noise(tokens, KV_HEADS, HEAD_DIM),
        }
        parameters = {"offsets": OFFSETS, "scale": SCALE, "causal": causal, "window": window, "bias": name == "biased"}
        mask = {"causal": causal, "window": window, "bias": with_bias}
        record.case(f"attention_{name}", parameters, inputs, lambda q, k, v, mask=mask: attend(q, k, v, **mask))


def norms(record: Recorder) -> None:
    inputs = {"x": record.noise(7, 37), "weight": record.noise(37)}
    record.case("rms_norm", {"eps": EPS}, inputs, lambda x, weight: functional.rms_norm(x, (37,), weight, EPS))
    inputs = {"x": record.noise(7, 37) + 3, "weight": record.noise(37), "bias": record.noise(37)}
    record.case(
        "layer_norm", {"eps": EPS}, inputs, lambda x, weight, bias: functional.layer_norm(x, (37,), weight, bias, EPS)
    )


def ropes(record: Recorder) -> None:
    kinds = [("halves", rotate_halves, 20), ("pairs", rotate_pairs, 20), ("partial", rotate_halves, 12)]
    for name, rotate, rotary in kinds:
        angles = record.noise(9, rotary // 2, scale=3)
        both = angles.repeat_interleave(2, -1) if name == "pairs" else torch.cat([angles, angles], -1)
        record.tensors |= {f"rope_{name}.cos": angles.cos(), f"rope_{name}.sin": angles.sin()}

        def compute(x, rotate=rotate, both=both, rotary=rotary):
            part = x[None, ..., :rotary]  # [batch, seq, heads, rotary]
            turned, _ = rotate(part, part, both.cos()[None], both.sin()[None], unsqueeze_dim=2)
            return torch.cat([turned[0], x[..., rotary:]], -1)

        record.case(f"rope_{name}", {"interleaved": name == "pairs"}, {"x": record.noise(9, 3, 20)}, compute)


def activations(record: Recorder) -> None:
    for name in ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "tanh", "sigmoid"]:
        inputs = {"gate": record.noise(3, 33, scale=3), "up": record.noise(3, 33)}
        record.case(f"gated_{name}", {"act": name}, inputs, lambda gate, up, act=ACT2FN[name]: act(gate) * up)


def losses(record: Recorder) -> None:
    labels = [3, -100, 0, 100, 57, -100]
    for name, smoothing in [("plain", 0.0), ("smoothed", 0.1)]:
        parameters = {"labels": labels, "label_smoothing": smoothing}
        kind = {"reduction": "sum", "label_smoothing": smoothing}
        inputs = {"logits": record.noise(6, 101, scale=4)}
        record.case(
            f"cross_entropy_{name}",
            parameters,
            inputs,
            lambda logits, kind=kind: functional.cross_entropy(logits, torch.tensor(labels), **kind),
        )


def main() -> None:
    pin("torch", "transformers")
    record = Recorder()
    for make in (attention, norms, ropes, activations, losses):
        make(record)
    directory = fresh(GOLDEN / "kernels")
    write_json(directory / "cases.json", record.cases)
    write_tensors(directory / "kernels.safetensors", record.tensors)
    print(len(record.cases), "cases")


if __name__ == "__main__":
    main()
