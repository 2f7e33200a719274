"""Adapters by name: what PEFT made computes what PEFT computes, and swapping touches nothing under way."""

import copy
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import candlewick as cw


@pytest.fixture(scope="module")
def cases(repository):
    """The adapter directories with expectations."""
    found = sorted(path.parent for path in (repository / "tests/golden/adapters").glob("*/expected.safetensors"))
    assert len(found) > 10
    return found


def base_of(case):
    """The checkpoint that an adapter directory belongs to."""
    config = json.loads((case / "adapter_config.json").read_text())
    return case.parent.parent / (config.get("base_model_name_or_path") or config["model"])


@pytest.fixture
def tied(repository):
    with cw.Model.from_pretrained(repository / "tests/golden/qwen2/tied", device="cpu") as model:
        yield model


@pytest.fixture
def registry(tied, repository):
    registry = cw.AdapterRegistry(tied)
    registry.load("qv", repository / "tests/golden/adapters/qwen2-qv")
    registry.load("dora", repository / "tests/golden/adapters/qwen2-dora")
    return registry


def test_every_kind_computes_what_the_reference_computes(cases):
    checked = 0
    for case in cases:
        expected = load_file(case / "expected.safetensors")
        with cw.Model.from_pretrained(base_of(case), device="cpu") as model:
            if model.dtype != "float32":
                continue
            registry = cw.AdapterRegistry(model)
            registry.load("case", case)
            merged = model.merge("case")
            index, moved = 0, 0.0
            while f"input_ids_{index}" in expected:
                ids = expected[f"input_ids_{index}"].tolist()
                attached = expected[f"attached_{index}"]
                np.testing.assert_allclose(model.logits(ids, adapter="case"), attached, atol=2e-4, err_msg=case.name)
                np.testing.assert_allclose(merged.logits(ids), attached, atol=5e-4, err_msg=case.name)
                moved = max(moved, np.abs(model.logits(ids, adapter=False) - attached).max())
                index += 1
                checked += 1
            assert moved > 0.01, case.name
    assert checked > 20


def test_info(registry):
    info = registry["qv"]
    assert (info.name, info.rank, info.alpha) == ("qv", 3, 6.0)
    assert info.target_modules == ["q_proj", "v_proj"]
    assert info.num_parameters > 0
    assert info.size_in_bytes >= 4 * info.num_parameters
    assert info.generation != registry["dora"].generation
    assert info.base_model == "qwen2/tied"


def test_names(registry):
    assert registry.names() == ["qv", "dora"] == list(registry)
    assert len(registry) == 2
    assert "qv" in registry
    assert "sql" not in registry
    with pytest.raises(KeyError):
        registry["sql"]
    registry.unload("qv")
    assert registry.names() == ["dora"]
    with pytest.raises(cw.InvalidArgumentError, match="qv"):
        registry.unload("qv")


def test_active_adapter_serves_whoever_names_none(tied, registry):
    ids = [5, 6, 7, 8]
    bare, adapted = tied.logits(ids), tied.logits(ids, adapter="qv")
    assert not np.allclose(bare, adapted)
    registry.activate("qv")
    assert registry.active == "qv"
    np.testing.assert_array_equal(tied.logits(ids), adapted)
    np.testing.assert_array_equal(tied.logits(ids, adapter=False), bare)
    with registry.using("dora"):
        assert registry.active == "dora"
        np.testing.assert_array_equal(tied.logits(ids), tied.logits(ids, adapter="dora"))
    assert registry.active == "qv"
    registry.deactivate()
    np.testing.assert_array_equal(tied.logits(ids), bare)


def test_a_mixed_batch_equals_single_runs(tied, registry):
    generator = cw.Generator(tied, max_new_tokens=12, temperature=0.0, ignore_eos=True)
    prompts, adapters = [[5, 6, 7], [9, 10, 11, 12], [5, 6, 7]], ["qv", "dora", False]
    together = generator.generate(prompts, adapter=adapters)
    for prompt, adapter, result in zip(prompts, adapters, together, strict=True):
        alone = generator.generate(prompt, adapter=adapter)
        assert result.token_ids == alone.token_ids
        assert result.adapter == (adapter or None)
    assert together[0].token_ids != together[2].token_ids
    assert registry.active is None


def test_a_request_keeps_the_adapter_it_started_with(tied, registry):
    generator = cw.Generator(tied, max_new_tokens=40, temperature=0.0, ignore_eos=True, adapter="qv")
    expected = generator.generate([5, 6, 7]).token_ids
    stream = generator.stream([5, 6, 7])
    ids = [next(stream).token_id]
    registry.unload("qv")
    ids += [token.token_id for token in stream]
    assert ids == expected
    with pytest.raises(cw.InvalidArgumentError, match="qv"):
        generator.generate([5, 6, 7])


def test_cached_prefixes_are_not_shared_between_adapters(tied, registry):
    generator = cw.Generator(tied, max_new_tokens=4, temperature=0.0, ignore_eos=True)
    prompt = list(range(20, 40))
    first = generator.generate(prompt, adapter="qv")
    assert generator.generate(prompt, adapter="dora").cached_tokens == 0
    again = generator.generate(prompt, adapter="qv")
    assert again.cached_tokens > 0
    assert again.token_ids == first.token_ids
    assert registry.names()


def test_combine_is_the_weighted_sum(repository, tied):
    registry = cw.AdapterRegistry(tied)
    registry.load("a", repository / "tests/golden/adapters/qwen2-qv")
    registry.load("again", repository / "tests/golden/adapters/qwen2-qv")
    registry.combine("whole", {"a": 0.7, "again": 0.3})
    registry.combine("double", {"a": 2.0})
    ids = [5, 6, 7, 8]
    np.testing.assert_allclose(tied.logits(ids, adapter="whole"), tied.logits(ids, adapter="a"), atol=1e-4)
    assert registry["whole"].rank >= registry["a"].rank
    assert not np.allclose(tied.logits(ids, adapter="double"), tied.logits(ids, adapter="a"))
    with pytest.raises(cw.InvalidArgumentError):
        registry.combine("none", {"nobody": 1.0})


def test_refused_adapters_change_nothing(repository, tied, registry):
    refused = repository / "tests/golden/adapters/refused"
    reasons = json.loads((refused / "reasons.json").read_text())
    assert len(reasons) > 5
    for name in reasons:
        before = registry.names()
        with pytest.raises(cw.AdapterError) as raised:
            registry.load("bad", refused / name)
        assert raised.value.code
        assert registry.names() == before
    with pytest.raises(FileNotFoundError):
        registry.load("bad", refused / "there is no such directory")
    assert tied.logits([1]).shape[0] == 1


def test_room_is_limited(repository, tied):
    registry = cw.AdapterRegistry(tied, max_adapters=1)
    registry.load("a", repository / "tests/golden/adapters/qwen2-qv")
    with pytest.raises(cw.CandlewickError):
        registry.load("b", repository / "tests/golden/adapters/qwen2-dora")
    registry.load("a", repository / "tests/golden/adapters/qwen2-dora")
    assert registry.names() == ["a"]


def test_an_adapter_in_memory(repository, tied, tmp_path):
    adapter = cw.Adapter.load(repository / "tests/golden/adapters/qwen2-qv")
    registry = cw.AdapterRegistry(tied)
    registry.add("memory", adapter)
    adapter.save(tmp_path / "copy")
    registry.load("copy", tmp_path / "copy")
    np.testing.assert_array_equal(tied.logits([5, 6], adapter="memory"), tied.logits([5, 6], adapter="copy"))
    assert registry["memory"].generation == registry["copy"].generation
    np.testing.assert_allclose(tied.merge(adapter).logits([5, 6]), tied.logits([5, 6], adapter="memory"), atol=1e-4)


def test_an_adapter_for_mlx(repository, tied, tmp_path):
    adapter = cw.Adapter.load(repository / "tests/golden/adapters/qwen2-qv")
    adapter.save(tmp_path / "mlx", format="mlx")
    assert sorted(path.name for path in (tmp_path / "mlx").iterdir()) == ["adapter_config.json", "adapters.safetensors"]
    registry = cw.AdapterRegistry(tied)
    registry.add("before", adapter)
    registry.load("after", tmp_path / "mlx")
    np.testing.assert_allclose(tied.logits([5, 6], adapter="after"), tied.logits([5, 6], adapter="before"), atol=1e-6)
    with pytest.raises(cw.InvalidArgumentError, match="format"):
        adapter.save(tmp_path, format="onnx")
    with pytest.raises(cw.InvalidArgumentError, match="bias"):
        cw.Adapter.load(repository / "tests/golden/adapters/qwen2-bias").save(tmp_path, format="mlx")


def test_registries_that_live_together_share_and_a_later_one_starts_empty(repository, tied):
    qv = repository / "tests/golden/adapters/qwen2-qv"
    first, second = cw.AdapterRegistry(tied), cw.AdapterRegistry(tied)
    first.load("qv", qv)
    first.activate("qv")
    assert (second.names(), second.active) == (["qv"], "qv")
    del first
    assert cw.AdapterRegistry(tied).names() == ["qv"]
    bare, adapted = tied.logits([5, 6], adapter=False), tied.logits([5, 6])
    assert np.abs(bare - adapted).max() > 0.01
    del second
    # Nothing is active, but a name still means what it meant.
    np.testing.assert_array_equal(tied.logits([5, 6]), bare)
    np.testing.assert_array_equal(tied.logits([5, 6], adapter="qv"), adapted)
    third = cw.AdapterRegistry(tied, max_adapters=1)
    assert (len(third), third.active, "qv" in third) == (0, None, False)
    with pytest.raises(cw.InvalidArgumentError, match="none is loaded"):
        tied.logits([5, 6], adapter="qv")
    third.load("again", qv)
    with pytest.raises(cw.AdapterError, match="unload one first"):
        third.load("more", qv)


def test_a_generator_keeps_active_what_was(repository, tied):
    def generators():
        registry = cw.AdapterRegistry(tied)
        registry.load("qv", repository / "tests/golden/adapters/qwen2-qv")
        before = cw.Generator(tied, max_new_tokens=2)
        registry.activate("qv")
        return before, cw.Generator(tied, max_new_tokens=2, adapter="qv")

    before, named = generators()
    assert (before.generate([5, 6]).adapter, named.generate([5, 6]).adapter) == ("qv", "qv")
    del before, named
    assert cw.Generator(tied, max_new_tokens=2).generate([5, 6]).adapter is None


def test_what_its_source_would_not_give_cannot_be_pickled(repository, tied):
    merged = tied.merge(repository / "tests/golden/adapters/qwen2-qv")
    for model in (merged, merged.quantize("q8_0"), tied.quantize("q8_0").quantize("q4_0")):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="save_pretrained"):
                copied(model)
    for model in (tied, tied.quantize("q8_0")):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).logits([5, 6]), model.logits([5, 6]))


def test_what_merging_refuses(tied):
    for wrong in (None, 3, "absent", "/absent"):
        with pytest.raises(cw.InvalidArgumentError, match=r"adapter: .*a directory of PEFT or mlx-lm"):
            tied.merge(wrong)


def test_a_tuple_of_adapters(registry, tied):
    assert registry.names() == ["qv", "dora"]
    generator = cw.Generator(tied, max_new_tokens=2)
    results = generator.generate([[5, 6], [7]], adapter=("qv", "dora"))
    assert [result.adapter for result in results] == ["qv", "dora"]
    with pytest.raises(cw.InvalidArgumentError, match="2 names"):
        generator.generate([[5, 6]], adapter=("qv", "dora"))


def test_what_is_known_of_an_adapter_is_plain(registry):
    info = registry["qv"]
    again = pickle.loads(pickle.dumps(info))
    assert again == info
    assert again != registry["dora"]
    names = ("name", "rank", "alpha", "target_modules", "num_parameters", "size_in_bytes", "generation", "base_model")
    assert [getattr(again, name) for name in names] == [getattr(info, name) for name in names]


def test_names_without_a_prefix(repository, registry, tied, tmp_path):
    """Transformers and some tools take adapters whose names do not begin with base_model.model."""
    qv = repository / "tests/golden/adapters/qwen2-qv"
    tensors = load_file(qv / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((qv / "adapter_config.json").read_text())
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    assert plain.keys().isdisjoint(tensors)
    save_file(plain, tmp_path / "adapter_model.safetensors")
    assert registry.load("plain", tmp_path).num_parameters == registry["qv"].num_parameters
    np.testing.assert_array_equal(tied.logits([5, 6], adapter="plain"), tied.logits([5, 6], adapter="qv"))
    first = min(tensors)
    save_file(plain | {first: tensors[first]}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(cw.AdapterError) as caught:
        registry.load("mixed", tmp_path)
    assert caught.value.code == "unknown_key"
