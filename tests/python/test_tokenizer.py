"""Text to ids and back, at once and in pieces."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import candlewick as cw

SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = [
    "Once upon a time",
    "naïve café",
    "日本語テキスト",
    "👩‍👩‍👧‍👦 family",
    "a\tb\r\n  c",
    "",
    " ",
    "\N{COMBINING ACUTE ACCENT}x",
]


@pytest.fixture
def tokenizer(tiny_model):
    return tiny_model.tokenizer


def streamed(tokenizer, ids):
    stream = tokenizer.decode_stream()
    pieces = [stream.step(id_) for id_ in ids]
    return pieces, stream.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@SETTINGS
@given(text=st.text(max_size=60))
def test_pieces_join_to_the_whole(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


@SETTINGS
@given(data=st.data())
def test_pieces_of_any_ids_join_to_the_whole(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    pieces, rest = streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_characters_never_break(tokenizer, text):
    pieces, rest = streamed(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in [*pieces, rest])


def test_a_stream_does_not_stall(tokenizer):
    """Plain text comes out with its own token, not at the end."""
    ids = tokenizer.encode("Once upon a time there was a dog.", add_special_tokens=False)
    pieces, rest = streamed(tokenizer, ids)
    assert rest == ""
    assert all(pieces)


def test_encode_batch(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_tokens_and_ids(tokenizer):
    assert tokenizer.eos_token_ids
    for id_ in tokenizer.eos_token_ids:
        token = tokenizer.id_to_token(id_)
        assert tokenizer.token_to_id(token) == id_
        assert tokenizer.decode([id_]) == ""
        assert tokenizer.decode([id_], skip_special_tokens=False) == token
    assert tokenizer.token_to_id("no such token at all") is None
    assert tokenizer.id_to_token(tokenizer.vocab_size + 10**6) is None


def test_chat_template(tokenizer):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello <tag> & 'you'"}]
    assert isinstance(tokenizer.chat_template, str)
    text = tokenizer.apply_chat_template(messages)
    assert "Be kind." in text
    assert "Hello <tag> & 'you'" in text
    assert text.startswith(tokenizer.apply_chat_template(messages, add_generation_prompt=False))
    assert tokenizer.apply_chat_template(messages, tokenize=True) == tokenizer.encode(text, add_special_tokens=False)


def test_a_message_without_role_is_refused(tokenizer):
    with pytest.raises((cw.InvalidArgumentError, TypeError), match="role"):
        tokenizer.apply_chat_template([{"content": "no role"}])


def test_ids_that_only_the_model_knows_have_no_text(tokenizer):
    ids = tokenizer.encode("a red hen", add_special_tokens=False)
    unknown = max(tokenizer.vocab_size, 100_000)
    assert tokenizer.decode([unknown, *ids, unknown + 7]) == tokenizer.decode(ids)
    assert tokenizer.decode([unknown]) == ""
