"""Through the bindings, every architecture computes what transformers computes (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import candlewick as cw

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CASES = sorted(path.parent for family in FAMILIES for path in GOLDEN.glob(f"{family}/*/expected.safetensors"))
#: Largest difference of a float32 logit from the reference's, by how the weights are stored.
TOLERANCE = 1e-4


def expectations(directory):
    with safe_open(directory / "expected.safetensors", framework="numpy") as file:
        names = set(file.keys())
        count = sum(name.startswith("input_ids_") for name in names)
        assert count > 0
        for index in range(count):
            yield {name: file.get_tensor(f"{name}_{index}") for name in ("input_ids", "logits", "hidden", "greedy")}


def test_every_family_is_here():
    assert {case.parent.name for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_same_as_the_reference(case):
    with cw.Model.from_pretrained(case, device="cpu") as model:
        assert model.architecture == json.loads((case / "config.json").read_text())["model_type"]
        expected = list(expectations(case))
        inputs = [one["input_ids"].tolist() for one in expected]
        for one, logits, hidden in zip(expected, model.logits(inputs), model.hidden_states(inputs), strict=True):
            np.testing.assert_allclose(logits, one["logits"], atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(hidden, one["hidden"], atol=TOLERANCE, rtol=1e-4)

        tokens = len(expected[0]["greedy"])
        generator = cw.Generator(model, max_new_tokens=tokens, temperature=0.0, ignore_eos=True)
        for one, ids, together in zip(expected, inputs, generator.generate(inputs), strict=True):
            # The reference goes on where the context ends.
            greedy = one["greedy"].tolist()[: model.context_length - len(ids)]
            assert generator.generate(ids).token_ids == greedy
            assert together.token_ids == greedy
