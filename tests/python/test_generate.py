"""Generating text: greedy and sampled, one and many, stop rules, probabilities, results."""

import inspect
import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import candlewick as cw

PROMPT = "Once upon a time"
PROMPTS = ["Once upon a time", "The dog", "One day a little cat went to the"]


# --- greedy -----------------------------------------------------------------------------------------------


def test_greedy_takes_the_best_logit(tiny_model, greedy):
    prompt = tiny_model.tokenizer.encode(PROMPT)
    result = greedy.generate(prompt)
    logits = tiny_model.logits(prompt + result.token_ids)
    best = logits[len(prompt) - 1 : -1].argmax(axis=1)
    assert result.token_ids == best.tolist()


def test_greedy_is_deterministic(greedy):
    assert greedy.generate(PROMPT).token_ids == greedy.generate(PROMPT).token_ids


def test_text_ids_and_counts_agree(tiny_model, greedy):
    result = greedy.generate(PROMPT)
    assert result.text == tiny_model.tokenizer.decode(result.token_ids)
    assert result.generated_tokens == len(result.token_ids)
    assert result.prompt_tokens == len(tiny_model.tokenizer.encode(PROMPT))
    assert result.finish_reason in {"stop", "length"}
    assert result.tokens_per_second > 0
    assert result.prompt_tokens_per_second > 0
    assert result.time_to_first_token_s > 0
    assert result.adapter is None
    assert 0 <= result.cached_tokens < result.prompt_tokens


def test_prompt_kinds_agree(tiny_model, greedy):
    ids = tiny_model.tokenizer.encode(PROMPT)
    assert greedy.generate(ids).token_ids == greedy.generate(PROMPT).token_ids
    assert greedy.generate(np.array(ids)).token_ids == greedy.generate(PROMPT).token_ids


def test_messages_go_through_the_chat_template(tiny_model, greedy):
    messages = [{"role": "user", "content": "Who are you?"}]
    ids = tiny_model.tokenizer.apply_chat_template(messages, tokenize=True)
    assert greedy.generate(messages).token_ids == greedy.generate(ids).token_ids
    assert greedy.generate(messages).prompt_tokens == len(ids)


# --- batches ----------------------------------------------------------------------------------------------


def test_batch_equals_single(greedy):
    together = greedy.generate(PROMPTS)
    assert [r.token_ids for r in together] == [greedy.generate(p).token_ids for p in PROMPTS]


def test_batch_of_ids_and_of_conversations(tiny_model, greedy):
    ids = [tiny_model.tokenizer.encode(p) for p in PROMPTS]
    assert [r.text for r in greedy.generate(ids)] == [greedy.generate(p).text for p in PROMPTS]
    conversations = [[{"role": "user", "content": q}] for q in ("Who are you?", "What color is the sky?")]
    assert [r.text for r in greedy.generate(conversations)] == [greedy.generate(c).text for c in conversations]


def test_batch_of_one_and_of_none(greedy):
    (only,) = greedy.generate([PROMPT])
    assert only.text == greedy.generate(PROMPT).text


def test_batch_does_not_touch_seeded_samples(sampling):
    alone = [sampling.generate(p, seed=3).token_ids for p in PROMPTS]
    assert [r.token_ids for r in sampling.generate(PROMPTS, seed=3)] == alone


# --- sampling ---------------------------------------------------------------------------------------------


def test_same_seed_same_text(sampling):
    assert sampling.generate(PROMPT, seed=5).token_ids == sampling.generate(PROMPT, seed=5).token_ids


def test_different_seeds_differ(sampling):
    assert len({tuple(sampling.generate(PROMPT, seed=seed).token_ids) for seed in range(8)}) > 1


def test_without_a_seed_texts_differ(sampling):
    assert len({tuple(sampling.generate(PROMPT).token_ids) for _ in range(8)}) > 1


def test_top_k_one_is_greedy(greedy, sampling):
    assert sampling.generate(PROMPT, top_k=1).token_ids == greedy.generate(PROMPT).token_ids


def test_top_k_beyond_the_vocabulary_is_no_filter(tiny_model, sampling):
    wide = sampling.generate(PROMPT, top_k=10 * tiny_model.vocab_size, seed=1)
    assert wide.token_ids == sampling.generate(PROMPT, seed=1).token_ids


def test_call_wins_over_constructor(tiny_model):
    generator = cw.Generator(tiny_model, max_new_tokens=3, temperature=0.0, ignore_eos=True)
    assert generator.generate(PROMPT).generated_tokens == 3
    assert generator.generate(PROMPT, max_new_tokens=5).generated_tokens == 5
    assert generator.generate(PROMPT).generated_tokens == 3


def test_logit_bias_forbids_and_forces(greedy):
    first = greedy.generate(PROMPT, max_new_tokens=1).token_ids[0]
    assert first not in greedy.generate(PROMPT, logit_bias={first: -1e9}).token_ids
    assert set(greedy.generate(PROMPT, logit_bias={first: 1e9}).token_ids) == {first}


def test_presence_penalty_forbids_repetition(greedy):
    ids = greedy.generate(PROMPT, presence_penalty=1e6, ignore_eos=True).token_ids
    assert len(set(ids)) == len(ids)


# --- the end of a text ------------------------------------------------------------------------------------


def test_length(greedy):
    result = greedy.generate(PROMPT, max_new_tokens=4, ignore_eos=True)
    assert (result.generated_tokens, result.finish_reason) == (4, "length")


def test_stop_token(greedy):
    whole = greedy.generate(PROMPT)
    third = whole.token_ids[2]
    end = whole.token_ids.index(third)
    result = greedy.generate(PROMPT, stop_token_ids=[third])
    assert result.token_ids == whole.token_ids[: end + 1]
    assert (result.finish_reason, result.stop_reason) == ("stop", third)


def test_end_of_text(tiny_model):
    eos = tiny_model.tokenizer.eos_token_ids[0]
    generator = cw.Generator(tiny_model, max_new_tokens=8, temperature=0.0, logit_bias={eos: 1e9})
    *_, last = generator.stream(PROMPT)
    assert (last.token_id, last.is_eos, last.finish_reason, last.text) == (eos, True, "stop", "")
    result = generator.generate(PROMPT)
    assert (result.token_ids, result.text) == ([eos], "")
    assert generator.generate(PROMPT, ignore_eos=True).generated_tokens == 8


def whole_text(greedy):
    return greedy.generate(PROMPT, max_new_tokens=40).text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_stop_string_never_leaks(greedy, data):
    whole = whole_text(greedy)
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start + 1, min(start + 12, len(whole))))
    stop = whole[start:end]
    stream = greedy.stream(PROMPT, max_new_tokens=40, stop=[stop])
    text = "".join(token.text for token in stream)
    assert text == whole[: whole.find(stop)]
    assert stream.result.text == text
    assert (stream.result.finish_reason, stream.result.stop_reason) == ("stop", stop)


def test_a_stop_string_that_never_comes_holds_nothing_back(greedy):
    whole = whole_text(greedy)
    stop = whole[-6:] + "\N{SNOWMAN}"
    stream = greedy.stream(PROMPT, max_new_tokens=40, stop=stop)
    assert "".join(token.text for token in stream) == whole


def test_the_earliest_of_several_stop_strings_wins(greedy):
    whole = whole_text(greedy)
    early, late = whole[4:8], whole[12:17]
    result = greedy.generate(PROMPT, max_new_tokens=40, stop=[late, early])
    first = min((s for s in (early, late)), key=whole.find)
    assert result.text == whole[: whole.find(first)]


# --- streams ----------------------------------------------------------------------------------------------


def test_stream_equals_generate(greedy):
    expected = greedy.generate(PROMPT)
    stream = greedy.stream(PROMPT)
    tokens = list(stream)
    assert "".join(token.text for token in tokens) == expected.text
    assert [token.token_id for token in tokens] == expected.token_ids
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert [token.finish_reason for token in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].finish_reason == expected.finish_reason
    assert stream.result.text == expected.text
    assert stream.result.token_ids == expected.token_ids


def test_a_stream_ends_once(greedy):
    stream = greedy.stream(PROMPT, max_new_tokens=2)
    assert len(list(stream)) > 0
    assert list(stream) == []


def test_leaving_early_cancels(greedy):
    with greedy.stream(PROMPT, max_new_tokens=200, ignore_eos=True) as stream:
        first = next(stream)
    assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.token_ids[0] == first.token_id
    assert stream.result.generated_tokens < 200
    assert greedy.generate(PROMPT).generated_tokens > 0


def test_leaving_before_the_first_token_gives_an_empty_result(tiny_model, greedy):
    for _ in range(10):
        stream = greedy.stream(PROMPT, logprobs=2)
        stream.close()
        result = stream.result
        assert (result.finish_reason, result.stop_reason) == ("cancelled", None)
        assert (result.text, result.token_ids, result.generated_tokens, result.logprobs) == ("", [], 0, [])
        assert result.prompt_tokens == len(tiny_model.tokenizer.encode(PROMPT))
    with greedy.stream(PROMPT) as stream:
        pass
    assert stream.result.finish_reason == "cancelled"
    # More than can be computed together: the last ones wait while they are given up.
    streams = [greedy.stream(PROMPT, max_new_tokens=100, ignore_eos=True) for _ in range(70)]
    for stream in reversed(streams):
        stream.close()
    assert {stream.result.finish_reason for stream in streams} == {"cancelled"}


def test_the_result_of_a_stream_left_early_is_what_was_read(greedy):
    whole = greedy.generate(PROMPT, max_new_tokens=20, ignore_eos=True, logprobs=1)
    stream = greedy.stream(PROMPT, max_new_tokens=20, ignore_eos=True, logprobs=1)
    read = [next(stream) for _ in range(3)]
    time.sleep(0.5)  # the engine goes on to the end meanwhile
    stream.close()
    result = stream.result
    assert result.token_ids == [token.token_id for token in read] == whole.token_ids[:3]
    assert result.text == "".join(token.text for token in read)
    assert (result.finish_reason, result.stop_reason, result.generated_tokens) == ("cancelled", None, 3)
    assert len(result.logprobs) == 3
    assert result.tokens_per_second > 0


def test_closing_after_the_last_token_changes_nothing(greedy):
    with greedy.stream(PROMPT, max_new_tokens=5, ignore_eos=True) as stream:
        for token in stream:
            if token.finish_reason is not None:
                break
    assert (stream.result.finish_reason, stream.result.generated_tokens) == ("length", 5)


def test_defaults_are_in_the_signature(tiny_model):
    parameters = inspect.signature(cw.Generator).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "model"}
    assert {name: value for name, value in defaults.items() if value is not None} == {
        "max_new_tokens": 256,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": False,
        "logprobs": 0,
    }
    unset = cw.Generator(tiny_model, max_new_tokens=None, presence_penalty=None, ignore_eos=None, logprobs=None)
    assert unset.generate(PROMPT, max_new_tokens=3, temperature=0.0).generated_tokens == 3


def test_a_token_can_be_forbidden(tiny_model, greedy):
    first = greedy.generate(PROMPT).token_ids[0]
    bias = {first: float("-inf")}
    assert first not in greedy.generate(PROMPT, logit_bias=bias).token_ids
    sampled = cw.Generator(tiny_model, max_new_tokens=24, temperature=1.0, logit_bias=bias, seed=1).generate(PROMPT)
    assert first not in sampled.token_ids
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(cw.InvalidArgumentError, match="logit_bias"):
            greedy.generate(PROMPT, logit_bias={first: wrong})


def test_a_dropped_stream_is_no_burden(greedy):
    expected = greedy.generate(PROMPT).token_ids
    for _ in range(50):
        next(greedy.stream(PROMPT, max_new_tokens=200, ignore_eos=True))
    assert greedy.generate(PROMPT).token_ids == expected


def test_many_streams_side_by_side(greedy):
    expected = [greedy.generate(p).text for p in PROMPTS]
    streams = [greedy.stream(p) for p in PROMPTS]
    texts = [""] * len(streams)
    open_ = set(range(len(streams)))
    while open_:
        for index in sorted(open_):
            token = next(streams[index], None)
            if token is None:
                open_.discard(index)
            else:
                texts[index] += token.text
    assert texts == expected


# --- probabilities ----------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_model():
    with cw.Model.from_pretrained("candlewick/tiny", dtype="float32", device="cpu") as model:
        prompt = model.tokenizer.encode(PROMPT)
        generator = cw.Generator(model, max_new_tokens=24, temperature=1.0, top_k=0, top_p=1.0, seed=2, logprobs=5)
        tokens = list(generator.stream(prompt))
        logits = model.logits(prompt + [t.token_id for t in tokens])[len(prompt) - 1 : -1].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    for row, token in enumerate(tokens):
        assert token.logit == pytest.approx(logits[row, token.token_id], abs=1e-3)
        assert token.logprob == pytest.approx(logprobs[row, token.token_id], abs=1e-3)
        assert token.probability == pytest.approx(np.exp(token.logprob), abs=1e-6)
        assert [id_ for id_, _ in token.top_logprobs] == np.argsort(-logprobs[row])[:5].tolist()
        np.testing.assert_allclose([p for _, p in token.top_logprobs], np.sort(logprobs[row])[::-1][:5], atol=1e-3)


def test_probabilities_are_of_what_was_sampled_from(sampling):
    for token in sampling.stream(PROMPT, top_k=2, temperature=0.5, seed=4, logprobs=2):
        assert sum(np.exp(p) for _, p in token.top_logprobs) == pytest.approx(1.0, abs=1e-5)
        assert token.token_id in {id_ for id_, _ in token.top_logprobs}


def test_logprobs_only_when_asked(greedy):
    assert all(token.top_logprobs == [] for token in greedy.stream(PROMPT))
    assert len(greedy.generate(PROMPT, logprobs=3).logprobs) == greedy.generate(PROMPT).generated_tokens


# --- what is shown ----------------------------------------------------------------------------------------


def test_reprs_are_one_line(tiny_model, greedy):
    stream = greedy.stream(PROMPT)
    shown = [greedy, next(stream), stream, greedy.generate(PROMPT), tiny_model.tokenizer]
    for value in shown:
        assert "\n" not in repr(value)
        assert type(value).__name__ in repr(value)


def test_cached_prefix(tiny_model, greedy):
    prompt = tiny_model.tokenizer.encode("Once upon a time there was a little dog who lived in a house by the sea.")
    first = greedy.generate(prompt)
    again = greedy.generate(prompt)
    assert 0 < again.cached_tokens < len(prompt)
    assert again.token_ids == first.token_ids


def test_streams_that_nobody_reads_hold_nobody_up(greedy):
    unread = [greedy.stream(PROMPT, max_new_tokens=100, ignore_eos=True) for _ in range(70)]
    time.sleep(0.5)
    assert greedy.generate(PROMPT, max_new_tokens=3, ignore_eos=True).generated_tokens == 3
    expected = greedy.generate(PROMPT, max_new_tokens=100, ignore_eos=True).token_ids
    for stream in unread:
        assert [token.token_id for token in stream] == expected


def test_stops_may_come_in_any_iterable(greedy):
    whole = greedy.generate(PROMPT).text
    stop = whole[4:7]
    expected = greedy.generate(PROMPT, stop=stop).text
    assert expected == whole[: whole.index(stop)]
    for kind in (list, tuple, set, frozenset, iter, dict.fromkeys):
        assert greedy.generate(PROMPT, stop=kind([stop, "never said"])).text == expected
    for wrong in (5, [5], [b"x"], b"x"):
        with pytest.raises(TypeError, match="str"):
            greedy.generate(PROMPT, stop=wrong)


def test_stop_strings_need_a_tokenizer(small):
    generator = cw.Generator(small, max_new_tokens=2)
    with pytest.raises(cw.InvalidArgumentError, match=r"stop: .*stop_token_ids"):
        generator.generate([1, 2], stop="x")
    with pytest.raises(cw.InvalidArgumentError, match="stop:"):
        cw.Generator(small, stop=["x"])
    assert generator.generate([1, 2], stop=[]).generated_tokens > 0


def test_prompts_without_tokens(tiny_model, greedy):
    assert greedy.generate([]) == []
    for empty in ([[]], [[], [1]], [[1], []]):
        with pytest.raises(cw.InvalidArgumentError, match="at least one token"):
            greedy.generate(empty)
    for wrong in (b"ab", "ab"):
        with pytest.raises(TypeError, match="input_ids: got"):
            tiny_model.logits(wrong)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "x"), ("top_k", []), ("top_p", "0.9"), ("repetition_penalty", True), ("do_sample", 1)],
)
def test_defaults_of_a_wrong_type_are_named(checkpoint, field, value):
    config = {"do_sample": True, field: value}
    (checkpoint / "generation_config.json").write_text(json.dumps(config))
    with cw.Model.from_pretrained(checkpoint, device="cpu") as model:
        with pytest.raises(cw.ConfigError, match=rf"generation_config\.json.*{field}"):
            cw.Generator(model)
        given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        if field != "do_sample":
            assert cw.Generator(model, **given).generate([1], max_new_tokens=1).generated_tokens == 1
