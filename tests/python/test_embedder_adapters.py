"""Adapters of embedders: what they change is what the same weights, merged by hand, would change."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import candlewick as cw

TEXTS = ["a cat", "the cat and the red map", "", "a planet " * 12]
RANK, ALPHA = 2, 8.0
TARGETS = ("query", "value")


@pytest.fixture(scope="module")
def bert(repository):
    return repository / "tests" / "golden" / "encoders" / "bert" / "mean"


@pytest.fixture(scope="module")
def adapter(bert, tmp_path_factory):
    """A random adapter for it, in PEFT's layout."""
    directory = tmp_path_factory.mktemp("bert") / "adapter"
    directory.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    random, tensors = np.random.default_rng(3), {}
    for name, weight in load_file(bert / "model.safetensors").items():
        path = name.removesuffix(".weight").removeprefix("bert.")
        if name.endswith(".weight") and path.rpartition(".")[2] in TARGETS:
            out, inside = weight.shape
            tensors[f"base_model.model.{path}.lora_A.weight"] = random.standard_normal((RANK, inside), np.float32) * 0.3
            tensors[f"base_model.model.{path}.lora_B.weight"] = random.standard_normal((out, RANK), np.float32) * 0.3
    assert tensors
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


@pytest.fixture(scope="module")
def merged(bert, adapter, tmp_path_factory):
    """The embedder whose weights have the adapter in them."""
    directory = tmp_path_factory.mktemp("merged") / "model"
    shutil.copytree(bert, directory)
    weights, factors = load_file(bert / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in weights:
        path = "base_model.model." + name.removesuffix(".weight").removeprefix("bert.")
        if f"{path}.lora_A.weight" in factors:
            down, up = factors[f"{path}.lora_A.weight"], factors[f"{path}.lora_B.weight"]
            weights[name] = weights[name] + (ALPHA / RANK) * (up @ down)
    save_file(weights, directory / "model.safetensors")
    return cw.Embedder.from_pretrained(directory, device="cpu")


@pytest.fixture
def embedder(bert, adapter):
    embedder = cw.Embedder.from_pretrained(bert, device="cpu")
    cw.AdapterRegistry(embedder).load("other", adapter)
    return embedder


def test_vectors_are_those_of_merged_weights(embedder, merged):
    plain, found = embedder.encode(TEXTS), embedder.encode(TEXTS, adapter="other")
    np.testing.assert_allclose(found, merged.encode(TEXTS), atol=1e-5)
    assert np.abs(found - plain).max() > 0.01
    np.testing.assert_array_equal(embedder.encode(TEXTS, adapter=False), plain)
    for one, wanted in zip(
        embedder.encode(TEXTS, adapter="other", output="token"), merged.encode(TEXTS, output="token"), strict=True
    ):
        np.testing.assert_allclose(one, wanted, atol=1e-5)


async def test_every_way_to_encode_takes_an_adapter(embedder, merged):
    wanted = merged.encode(TEXTS)
    for encode in (embedder.encode, embedder.encode_query, embedder.encode_document):
        np.testing.assert_allclose(encode(TEXTS, adapter="other"), wanted, atol=1e-5)
    for encode in (embedder.aencode, embedder.aencode_query, embedder.aencode_document):
        np.testing.assert_allclose(await encode(TEXTS, adapter="other"), wanted, atol=1e-5)
    # Callers with different adapters at the same time.
    mixed = await asyncio.gather(*(embedder.aencode(TEXTS, adapter=which) for which in ("other", False) * 4))
    for index, found in enumerate(mixed):
        np.testing.assert_allclose(found, embedder.encode(TEXTS) if index % 2 else wanted, atol=1e-5)


def test_the_registry_activates_and_unloads(embedder, merged, adapter):
    registry = cw.AdapterRegistry(embedder)
    assert registry.names() == []
    registry.load("other", adapter)
    plain, wanted = embedder.encode(TEXTS), merged.encode(TEXTS)
    assert cw.AdapterRegistry(embedder).names() == ["other"]
    assert registry["other"].rank == RANK
    with registry.using("other"):
        np.testing.assert_allclose(embedder.encode(TEXTS), wanted, atol=1e-5)
        np.testing.assert_array_equal(embedder.encode(TEXTS, adapter=False), plain)
    np.testing.assert_array_equal(embedder.encode(TEXTS), plain)
    registry.activate("other")
    np.testing.assert_allclose(embedder.encode(TEXTS), wanted, atol=1e-5)
    registry.unload("other")
    np.testing.assert_array_equal(embedder.encode(TEXTS), plain)


def test_mistakes(embedder, adapter, random_adapter):
    with pytest.raises(cw.InvalidArgumentError, match=r"absent.*other"):
        embedder.encode(TEXTS, adapter="absent")
    with pytest.raises(cw.InvalidArgumentError, match="adapter"):
        embedder.encode(TEXTS, adapter=3)
    with pytest.raises(cw.AdapterError, match="q_proj"):
        cw.AdapterRegistry(embedder).load("wrong", random_adapter)
    with pytest.raises(TypeError):
        cw.AdapterRegistry("candlewick/tiny")
    assert cw.Adapter.load(adapter).rank == RANK


def test_decoders_too(random_adapter, tiny_model):
    embedder = cw.Embedder.from_pretrained("candlewick/tiny", device="cpu")
    model = cw.Model.from_pretrained("candlewick/tiny", device="cpu")
    for host in (embedder, model):
        cw.AdapterRegistry(host).load("other", random_adapter)
    ids = model.tokenizer.encode("Once upon a time")
    found = embedder.encode("Once upon a time", output="token", adapter="other")
    np.testing.assert_allclose(found, model.hidden_states(ids, adapter="other"), atol=1e-4)
    assert np.abs(found - tiny_model.hidden_states(ids)).max() > 0.01


def test_what_is_adapted_of_the_pooler_is_read_over(embedder, merged, adapter, tmp_path):
    """PEFT adapts the poolers of whole encoders, which no vector comes from."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    hidden = embedder.dimension
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] += ["pooler.dense"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors["base_model.model.pooler.dense.lora_A.weight"] = np.ones((RANK, hidden), np.float32)
    tensors["base_model.model.pooler.dense.lora_B.weight"] = np.ones((hidden, RANK), np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    registry = cw.AdapterRegistry(embedder)
    registry.load("whole", tmp_path)
    np.testing.assert_allclose(embedder.encode(TEXTS, adapter="whole"), merged.encode(TEXTS), atol=1e-5)
    tensors["base_model.model.cooler.dense.lora_A.weight"] = np.ones((RANK, hidden), np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(cw.AdapterError, match="cooler"):
        registry.load("wrong", tmp_path)
