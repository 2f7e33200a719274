"""Whole numbers out of range are refused by name, however long they are."""

import numpy as np
import pytest

import candlewick as cw

HUGE = 10**30
#: The last one is longer than Python is willing to spell out.
VALUES = {"-1": -1, "-2^63": -(2**63), "-huge": -HUGE, "2^63": 2**63, "huge": HUGE, "longest": 10**5000}
out_of_range = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)


@pytest.fixture(scope="module")
def embedder():
    return cw.Embedder.from_pretrained("candlewick/tiny")


@pytest.fixture(scope="module")
def model():
    return cw.Model.from_pretrained("candlewick/tiny")


def refuses(name, call, value):
    with pytest.raises(cw.InvalidArgumentError, match=rf"^{name}: got ") as caught:
        call(**{name: value})
    assert ("a huge number" if value > HUGE else str(value)) in str(caught.value)


@out_of_range
def test_embedder(embedder, value):
    for name in ("batch_size", "truncate_dim"):
        for method in (embedder.encode, embedder.encode_query, embedder.encode_document):
            refuses(name, lambda method=method, **keywords: method("a", **keywords), value)
    for name in ("max_length", "truncate_dim", "memory_limit_bytes"):
        refuses(name, lambda **keywords: cw.Embedder.from_pretrained("candlewick/tiny", **keywords), value)


@out_of_range
def test_reranker(value):
    for name in ("max_length", "memory_limit_bytes"):
        refuses(name, lambda **keywords: cw.Reranker.from_pretrained("candlewick/tiny", **keywords), value)


@out_of_range
def test_generator(model, value):
    generator = cw.Generator(model)
    for name in ("max_new_tokens", "top_k", "logprobs"):
        refuses(name, lambda **keywords: cw.Generator(model, **keywords), value)
        refuses(name, lambda **keywords: generator.generate("a", **keywords), value)
    refuses("stop_token_ids", lambda stop_token_ids: generator.generate("a", stop_token_ids=[stop_token_ids]), value)
    refuses("logit_bias", lambda logit_bias: generator.stream("a", logit_bias={logit_bias: 1.0}), value)
    assert model.tokenizer.id_to_token(value) is None
    refuses("id", lambda id: model.tokenizer.decode_stream().step(id), value)


def test_seeds(model):
    assert len(cw.Generator(model, max_new_tokens=None).generate("a", max_new_tokens=3).token_ids) == 3
    sample = cw.Generator(model, temperature=1.0, max_new_tokens=8)
    assert sample.generate("a", seed=-3).token_ids == sample.generate("a", seed=-3).token_ids
    refuses("seed", lambda **keywords: sample.generate("a", **keywords), HUGE)


@out_of_range
def test_training(model, value):
    rows = [{"text": "The sun set."}]
    required = "batch_size gradient_accumulation_steps epochs max_length warmup_steps keep_last seed"
    for name in [*required.split(), "max_steps", "eval_steps", "early_stopping_patience", "save_steps"]:
        refuses(name, lambda **keywords: cw.Trainer(model, rows, **keywords), value)
    refuses("rank", cw.LoraConfig, value)
    refuses("rank_pattern", lambda rank_pattern: cw.LoraConfig(rank_pattern={"q_proj": rank_pattern}), value)
    refuses("layers_to_transform", cw.LoraConfig, value)
    refuses("max_adapters", lambda **keywords: cw.AdapterRegistry(model, **keywords), value)
    refuses("memory_limit_bytes", lambda **keywords: cw.Model.from_pretrained("candlewick/tiny", **keywords), value)


def test_numbers_of_other_kinds(embedder, model):
    assert embedder.encode("a", truncate_dim=np.int64(4)).shape == (4,)
    assert cw.LoraConfig(rank=np.int32(3)).rank == 3
    for wrong in (1.5, "3", [3]):
        with pytest.raises(TypeError, match="batch_size"):
            embedder.encode("a", batch_size=wrong)
        with pytest.raises(TypeError, match="batch_size"):
            cw.Trainer(model, [{"text": "a"}], batch_size=wrong)


def test_signatures_show_what_is_usual():
    import inspect

    assert inspect.signature(cw.Trainer).parameters["batch_size"].default == 4
    assert inspect.signature(cw.Generator).parameters["max_new_tokens"].default == 256
    assert inspect.signature(cw.LoraConfig).parameters["rank"].default == 8
    assert inspect.signature(cw.AdapterRegistry).parameters["max_adapters"].default == 16
