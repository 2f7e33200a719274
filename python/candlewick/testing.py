"""A pytest plugin and a scripted model for test suites of programs that use candlewick.

pytest loads this module by itself wherever candlewick is installed, which adds the fixtures ``tiny_model`` and
``tiny_embedder``. It deliberately does not fake token probabilities or timing: a test about those belongs on the
bundled model, which is small, offline and deterministic.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    import candlewick as cw

__all__ = ["ScriptedGeneration", "ScriptedModel", "ScriptedStream", "ScriptedToken", "tiny_embedder", "tiny_model"]

#: The token id that ends every scripted text.
EOS_TOKEN_ID = 0


@pytest.fixture(scope="session")
def tiny_model() -> Iterator[cw.Model]:
    """The bundled model ``candlewick/tiny``: offline, deterministic, loaded once per session."""
    import candlewick as cw

    with cw.Model.from_pretrained("candlewick/tiny", device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def tiny_embedder() -> Iterator[cw.Embedder]:
    """The bundled model as an embedder: offline, deterministic, loaded once per session."""
    import candlewick as cw

    with cw.Embedder.from_pretrained("candlewick/tiny", device="cpu") as embedder:
        yield embedder


@dataclass(frozen=True)
class ScriptedToken:
    """What a ``StreamToken`` holds; every scripted token is certain."""

    token_id: int
    text: str
    index: int
    is_eos: bool = False
    finish_reason: str | None = None
    logit: float = 0.0
    probability: float = 1.0
    logprob: float = 0.0
    top_logprobs: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class ScriptedGeneration:
    """What a ``Generation`` holds."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    tokens_per_second: float = 0.0
    time_to_first_token_s: float = 0.0
    logprobs: list[Any] | None = None
    adapter: str | None = None


class ScriptedStream(Iterator[ScriptedToken], AsyncIterator[ScriptedToken]):
    """What a ``TokenStream`` does: iterate, with or without ``async``, close, and know the result at the end."""

    def __init__(self, tokens: list[ScriptedToken], whole: ScriptedGeneration) -> None:
        self._tokens = tokens
        self._whole = whole
        self._position = 0
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ScriptedToken:
        if self._closed or self._position == len(self._tokens):
            raise StopIteration
        self._position += 1
        return self._tokens[self._position - 1]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ScriptedToken:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """End the stream; what was not read is not generated."""
        self._closed = True

    async def aclose(self) -> None:
        """End the stream; what was not read is not generated."""
        self.close()

    @property
    def result(self) -> ScriptedGeneration:
        """What was generated: all of it at the end, what was read after ``close()``."""
        if self._position == len(self._tokens):
            return self._whole
        if not self._closed:
            raise RuntimeError("the stream has not ended; read it to the end or close it first")
        read = self._tokens[: self._position]
        return replace(
            self._whole,
            text="".join(token.text for token in read),
            token_ids=[token.token_id for token in read],
            finish_reason="cancelled",
            stop_reason=None,
            generated_tokens=len(read),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ScriptedModel:
    """Stands in for a ``Generator`` and answers with the given texts, one per request, in order.

    Args:
        texts: The answers. A request after the last one fails the test; give ``itertools.cycle([...])`` for as
            many as are asked for.

    Attributes:
        requests: What was asked so far: pairs of prompt and keywords.

    Examples:
        >>> model = ScriptedModel(["Hello there.", "Goodbye."])
        >>> [token.text for token in model.stream("Hi")]
        ['Hello', ' there.', '']
        >>> model.generate([{"role": "user", "content": "Bye"}], temperature=0.0).text
        'Goodbye.'
        >>> model.requests[1][1]
        {'temperature': 0.0}
    """

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise TypeError(f"texts: got the str {texts!r}, expected a list of texts, one for each request")
        self._texts = iter(texts)
        self.requests: list[tuple[Any, dict[str, Any]]] = []

    def generate(self, prompt: Any, **overrides: Any) -> Any:
        """Answer a prompt with the next text, or a list of prompts with a list of the next texts."""
        if _is_batch(prompt):
            return [self.generate(one, **overrides) for one in prompt]
        stream = self.stream(prompt, **overrides)
        for _ in stream:
            pass
        return stream.result

    async def agenerate(self, prompt: Any, **overrides: Any) -> Any:
        """The same as `generate`, to be awaited."""
        return self.generate(prompt, **overrides)

    def stream(
        self,
        prompt: Any,
        *,
        max_new_tokens: int | None = None,
        stop: str | list[str] | None = None,
        **overrides: Any,
    ) -> ScriptedStream:
        """Answer a prompt with the next text, word by word."""
        unknown = sorted(overrides.keys() - _KEYWORDS)
        if unknown:
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
        given = {"max_new_tokens": max_new_tokens, "stop": stop}
        self.requests.append((prompt, {k: v for k, v in given.items() if v is not None} | overrides))
        text = next(self._texts, None)
        if text is None:
            raise AssertionError(f"request {len(self.requests)} came, but there was a text only for each before it")
        stop_reason: str | int | None
        text, stop_reason = _cut(text, [stop] if isinstance(stop, str) else stop or [])
        pieces = _pieces(text)
        ids = [1 + zlib.crc32(piece.encode()) for piece in pieces]
        reason = "stop"
        if stop_reason is None:
            pieces, ids, stop_reason = [*pieces, ""], [*ids, EOS_TOKEN_ID], EOS_TOKEN_ID
        if max_new_tokens is not None and max_new_tokens < len(pieces):
            pieces, ids, stop_reason, reason = pieces[:max_new_tokens], ids[:max_new_tokens], None, "length"
        tokens = [
            ScriptedToken(id_, piece, index, id_ == EOS_TOKEN_ID, reason if index == len(pieces) - 1 else None)
            for index, (id_, piece) in enumerate(zip(ids, pieces, strict=True))
        ]
        whole = ScriptedGeneration("".join(pieces), ids, reason, stop_reason, _prompt_tokens(prompt), len(ids))
        return ScriptedStream(tokens, whole)


#: What a request may be given besides ``max_new_tokens`` and ``stop``; recorded, and without effect on the text.
_KEYWORDS = {
    "adapter",
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
}


def _is_batch(prompt: Any) -> bool:
    """Whether this is a list of prompts, not one list of ids or one conversation."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))


def _pieces(text: str) -> list[str]:
    """Words with the space before them; together they are the text."""
    return re.findall(r"\s*\S+|\s+$", text)


def _cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the first stop string, and that string."""
    found = min(((text.find(stop), stop) for stop in stops if stop in text), default=None)
    return (text, None) if found is None else (text[: found[0]], found[1])


def _prompt_tokens(prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(_pieces(prompt))
    return sum(len(_pieces(str(part.get("content", "")))) if isinstance(part, dict) else 1 for part in prompt)
