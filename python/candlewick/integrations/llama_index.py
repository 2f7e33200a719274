"""Embeddings, a language model and a reranker for LlamaIndex.

Everything loads when it is first used, shares models between components of the same settings, is really asynchronous
where LlamaIndex is, and pickles by the model's source. Calling functions is not here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

import candlewick as cw

from ._opened import Opened, encoding, repository

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence

__all__ = ["CandlewickEmbedding", "CandlewickLLM", "CandlewickRerank"]


class CandlewickEmbedding(BaseEmbedding):
    """Embeddings for LlamaIndex; takes the place of ``HuggingFaceEmbedding``.

    Texts and queries get the prompts that the model has for them.

    Args:
        model_name: A hub id, a directory, ``"candlewick/tiny"``, or an open ``Embedder``; may come first, without name.
        model_kwargs: Keywords of ``Embedder.from_pretrained``; ``device``, ``max_length``, ``normalize``,
            ``cache_folder``, ``revision`` and ``token`` may also be given directly.
        encode_kwargs: Keywords of ``Embedder.encode``.
        query_instruction: What goes before a query, in place of the model's own prompt.
        text_instruction: What goes before a text, in place of the model's own prompt.
        embed_batch_size: Texts that LlamaIndex hands over at a time.

    Examples:
        >>> from candlewick.integrations.llama_index import CandlewickEmbedding
        >>> len(CandlewickEmbedding("candlewick/tiny").get_query_embedding("Where does the dog sleep?"))
        128
    """

    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keywords of Embedder.from_pretrained.")
    encode_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keywords of Embedder.encode.")
    query_instruction: str | None = Field(default=None, description="What goes before a query.")
    text_instruction: str | None = Field(default=None, description="What goes before a text.")

    _opened: Opened[cw.Embedder] = PrivateAttr()

    def __init__(self, model_name: str | cw.Embedder = "BAAI/bge-small-en", **data: Any) -> None:
        _sort(type(self), data, {"device": "device", "max_length": "max_length", "normalize": "normalize"} | _HUB)
        opened, data["model_name"] = _take(model_name, cw.Embedder, data)
        data.setdefault("embed_batch_size", 256)
        super().__init__(**data)
        self._opened = opened or Opened("embedder", repository(self.model_name), self.model_kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores it under.

        Returns:
            The name.
        """
        return "CandlewickEmbedding"

    def _options(self, prompt: str | None) -> dict[str, Any]:
        return ({} if prompt is None else {"prompt": prompt}) | encoding(self.encode_kwargs)

    def _get_query_embedding(self, query: str) -> list[float]:
        vector = self._opened.get().encode_query(query, **self._options(self.query_instruction))
        return vector.tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = self._opened.get().encode_document(texts, **self._options(self.text_instruction))
        return vectors.tolist()  # type: ignore[no-any-return]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        embedder = await self._opened.aget()
        vector = await embedder.aencode_query(query, **self._options(self.query_instruction))
        return vector.tolist()  # type: ignore[no-any-return]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        embedder = await self._opened.aget()
        vectors = await embedder.aencode_document(texts, **self._options(self.text_instruction))
        return vectors.tolist()  # type: ignore[no-any-return]


class CandlewickLLM(LLM):
    """A language model for LlamaIndex on one's own machine.

    Args:
        model_name: A hub id, a directory, a ``.gguf`` file, ``"candlewick/tiny"``, an open ``Model`` (whose registered
            adapters can then be named), or a generator, such as ``candlewick.testing.ScriptedModel``; may come first,
            without name.
        model_kwargs: Keywords of ``Model.from_pretrained``; ``device``, ``cache_folder``, ``revision`` and ``token``
            may also be given directly.
        max_new_tokens: The most tokens to generate.
        temperature: 0 is greedy; None means the model's default.
        generate_kwargs: Further keywords of ``Generator.generate``, such as ``top_p``, ``seed`` or ``adapter``.
        context_window: Tokens of prompt and answer; None means what the model allows.
        is_chat_model: Whether messages go through the model's chat template; None means if it has one.

    Examples:
        >>> from candlewick.integrations.llama_index import CandlewickLLM
        >>> llm = CandlewickLLM("candlewick/tiny", max_new_tokens=16, temperature=0.0)
        >>> "".join(part.delta for part in llm.stream_complete("Once upon a time")) == llm.complete(
        ...     "Once upon a time"
        ... ).text
        True
    """

    model_name: str = Field(description="Hub id, directory or file of the model.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keywords of Model.from_pretrained.")
    max_new_tokens: int = Field(default=256, gt=0, description="The most tokens to generate.")
    temperature: float | None = Field(default=None, ge=0.0, description="0 is greedy.")
    generate_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keywords of Generator.generate.")
    context_window: int | None = Field(default=None, gt=0, description="Tokens of prompt and answer.")
    is_chat_model: bool | None = Field(default=None, description="Whether messages go through the chat template.")

    _opened: Opened[cw.Model] | None = PrivateAttr(default=None)
    _generator: Any = PrivateAttr(default=None)

    _RENAMED: ClassVar[dict[str, str]] = {"max_tokens": "max_new_tokens"}

    def __init__(self, model_name: Any, **data: Any) -> None:
        generator = model_name if hasattr(model_name, "agenerate") else None
        if generator is not None:
            model_name = getattr(generator, "model", None) or type(generator).__name__
        _sort(type(self), data, {"device": "device"} | _HUB)
        opened, data["model_name"] = _take(model_name, cw.Model, data)
        super().__init__(**data)
        self._generator = generator
        if opened is None and generator is None:
            opened = Opened("model", self.model_name, self.model_kwargs)
        self._opened = opened

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores it under.

        Returns:
            The name.
        """
        return "CandlewickLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex wants to know; this loads the model where the arguments do not say it."""
        window, chat = self.context_window, self.is_chat_model
        if self._opened is not None and (window is None or chat is None):
            model = self._opened.get()
            window = model.context_length if window is None else window
            chat = model.tokenizer.chat_template is not None if chat is None else chat
        return LLMMetadata(
            context_window=window or 4096,
            num_output=self.max_new_tokens,
            is_chat_model=chat is not False,
            model_name=self.model_name,
        )

    def __getstate__(self) -> dict[Any, Any]:
        # The generator belongs to this process; the other one opens its own.
        state = super().__getstate__()
        private = dict(state["__pydantic_private__"] or {})
        if private.get("_opened") is not None:
            private["_generator"] = None
        return {**state, "__pydantic_private__": private}

    def _get_generator(self) -> Any:
        if self._generator is None and self._opened is not None:
            self._generator = cw.Generator(self._opened.get())
        return self._generator

    async def _aget_generator(self) -> Any:
        return self._generator or await asyncio.to_thread(self._get_generator)

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, **self.generate_kwargs}
        options |= {self._RENAMED.get(key, key): value for key, value in kwargs.items() if key != "formatted"}
        return {key: value for key, value in options.items() if value is not None}

    def _prompt(self, prompt: str, formatted: bool) -> str:
        return prompt if formatted else str(self.completion_to_prompt(prompt))

    def _messages(self, messages: Sequence[ChatMessage]) -> Any:
        if not messages:
            raise ValueError("the conversation is empty; give at least one message")
        if not self.metadata.is_chat_model:
            return self.messages_to_prompt(messages)
        return [{"role": message.role.value, "content": _text(message)} for message in messages]

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text as it stands; ``chat`` goes through the chat template.

        Args:
            prompt: The text.
            formatted: Whether ``completion_to_prompt`` has been applied already.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            What follows.
        """
        return _completion(self._get_generator().generate(self._prompt(prompt, formatted), **self._options(kwargs)))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As ``complete``, from an event loop, which is not blocked.

        Args:
            prompt: The text.
            formatted: Whether ``completion_to_prompt`` has been applied already.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            What follows.
        """
        generator = await self._aget_generator()
        return _completion(await generator.agenerate(self._prompt(prompt, formatted), **self._options(kwargs)))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        """Continue a text piece by piece.

        Args:
            prompt: The text.
            formatted: Whether ``completion_to_prompt`` has been applied already.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            Responses: each has the text so far and, as ``delta``, what is new.
        """
        stream = self._get_generator().stream(self._prompt(prompt, formatted), **self._options(kwargs))
        return (_completion_part(*part) for part in _pieces(stream))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncGenerator[CompletionResponse, None]:
        """As ``stream_complete``, from an event loop.

        Args:
            prompt: The text.
            formatted: Whether ``completion_to_prompt`` has been applied already.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            Responses, asynchronously.
        """
        generator = await self._aget_generator()
        stream = generator.stream(self._prompt(prompt, formatted), **self._options(kwargs))
        return (_completion_part(*part) async for part in _apieces(stream))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation.

        Args:
            messages: The conversation.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            The answer.
        """
        return _chat(self._get_generator().generate(self._messages(messages), **self._options(kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As ``chat``, from an event loop, which is not blocked.

        Args:
            messages: The conversation.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            The answer.
        """
        generator = await self._aget_generator()
        return _chat(await generator.agenerate(self._messages(messages), **self._options(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """Answer a conversation piece by piece.

        Args:
            messages: The conversation.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            Responses: each has the answer so far and, as ``delta``, what is new.
        """
        stream = self._get_generator().stream(self._messages(messages), **self._options(kwargs))
        return (_chat_part(*part) for part in _pieces(stream))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """As ``stream_chat``, from an event loop.

        Args:
            messages: The conversation.
            **kwargs: Keywords of ``Generator.generate``.

        Returns:
            Responses, asynchronously.
        """
        generator = await self._aget_generator()
        stream = generator.stream(self._messages(messages), **self._options(kwargs))
        return (_chat_part(*part) async for part in _apieces(stream))


class CandlewickRerank(BaseNodePostprocessor):
    """Keeps the nodes that answer a query best; takes the place of ``SentenceTransformerRerank``.

    Args:
        model: A hub id or directory of a cross-encoder, or an open ``Reranker``; may come first, without name.
        top_n: How many nodes to keep.
        keep_retrieval_score: Whether the score so far is kept in the metadata as ``retrieval_score``.
        model_kwargs: Keywords of ``Reranker.from_pretrained``; ``device``, ``max_length``, ``cache_folder``,
            ``revision`` and ``token`` may also be given directly.
        predict_kwargs: Keywords of ``Reranker.predict``.
    """

    model: str = Field(description="Hub id or directory of the cross-encoder.")
    top_n: int = Field(default=2, gt=0, description="Number of nodes to keep.")
    keep_retrieval_score: bool = Field(default=False, description="Whether to keep the score so far in the metadata.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keywords of Reranker.from_pretrained.")
    predict_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keywords of Reranker.predict.")

    _opened: Opened[cw.Reranker] = PrivateAttr()

    def __init__(self, model: str | cw.Reranker = "BAAI/bge-reranker-base", **data: Any) -> None:
        _sort(type(self), data, {"device": "device", "max_length": "max_length"} | _HUB)
        opened, data["model"] = _take(model, cw.Reranker, data)
        super().__init__(**data)
        self._opened = opened or Opened("reranker", self.model, self.model_kwargs)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores it under.

        Returns:
            The name.
        """
        return "CandlewickRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("reranking needs a query")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranked = self._opened.get().rank(query_bundle.query_str, texts, top_k=self.top_n, **self.predict_kwargs)
        found = []
        for row in ranked:
            before = nodes[row["corpus_id"]]
            node = before.node
            if self.keep_retrieval_score:
                # A copy: the node also belongs to the index, and its metadata is part of the text that is scored.
                node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": before.score}})
            found.append(NodeWithScore(node=node, score=row["score"]))
        return found


#: What LlamaIndex's own classes call the keywords of a download, and what they are here.
_HUB = {"cache_folder": "cache_dir", "revision": "revision", "token": "token"}


def _sort(kind: Any, data: dict[str, Any], direct: dict[str, str]) -> None:
    """Moves keywords of ``from_pretrained`` to where they belong, and refuses those that nobody knows."""
    options = dict(data.get("model_kwargs") or {})
    for name in direct.keys() & data.keys():
        value = data.pop(name)
        if value is not None:
            options[direct[name]] = value
    if options:
        data["model_kwargs"] = options
    known = {name for field, info in kind.model_fields.items() for name in (field, info.alias, info.validation_alias)}
    unknown = sorted(data.keys() - known)
    if unknown:
        raise TypeError(f"{kind.__name__}() got an unexpected keyword argument {unknown[0]!r}")


def _take(given: Any, kind: type[Any], data: dict[str, Any]) -> tuple[Opened[Any] | None, str]:
    """An open model, which then names itself, or the name that was given."""
    if not isinstance(given, kind):
        return None, str(given)
    opened: Opened[Any] = Opened.of(given)
    data["model_kwargs"] = opened.options
    return opened, opened.source


def _text(message: ChatMessage) -> str:
    if any(not isinstance(block, TextBlock) for block in message.blocks):
        raise ValueError("a message has something besides text; the models here read text only")
    return "".join(block.text for block in message.blocks)


def _facts(result: Any) -> dict[str, Any]:
    """What is said about an answer besides its text."""
    return {
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.generated_tokens,
        "total_tokens": result.prompt_tokens + result.generated_tokens,
    }


def _completion(result: Any) -> CompletionResponse:
    return CompletionResponse(text=result.text, raw=_facts(result), additional_kwargs=_facts(result))


def _chat(result: Any) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=result.text)
    return ChatResponse(message=message, raw=_facts(result), additional_kwargs=_facts(result))


def _pieces(stream: Any) -> Generator[tuple[str, str, dict[str, Any] | None], None, None]:
    """The text so far, what is new, and at the end what is said about it; leaving early cancels."""
    text = ""
    with stream:
        for token in stream:
            if token.text:
                text += token.text
                yield text, token.text, None
    yield text, "", _facts(stream.result)


async def _apieces(stream: Any) -> AsyncIterator[tuple[str, str, dict[str, Any] | None]]:
    text = ""
    async with stream:
        async for token in stream:
            if token.text:
                text += token.text
                yield text, token.text, None
    yield text, "", _facts(stream.result)


def _completion_part(text: str, delta: str, facts: dict[str, Any] | None) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, raw=facts, additional_kwargs=facts or {})


def _chat_part(text: str, delta: str, facts: dict[str, Any] | None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, raw=facts, additional_kwargs=facts or {})
