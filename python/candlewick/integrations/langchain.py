"""Embeddings, a chat model and a reranker for LangChain.

Everything loads when it is first used, shares models between components of the same settings, is really asynchronous
where LangChain is, and pickles by the model's source. Calling tools and structured output are not here: their methods
raise ``NotImplementedError``, as LangChain's own do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, ClassVar, cast

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr

import candlewick as cw

from ._opened import Opened, encoding, repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
    from langchain_core.messages.ai import UsageMetadata

__all__ = ["CandlewickEmbeddings", "CandlewickReranker", "ChatCandlewick"]

_MODEL = AliasChoices("model", "model_name")


class CandlewickEmbeddings(BaseModel, Embeddings):
    """Embeddings for LangChain; takes the place of ``HuggingFaceEmbeddings``.

    Documents and queries get the prompts that the model has for them.

    Args:
        model: A hub id, a directory, ``"candlewick/tiny"``, or an open ``Embedder``.
        cache_folder: Where downloads are kept, instead of the hub's standard cache.
        model_kwargs: Keywords of ``Embedder.from_pretrained``.
        encode_kwargs: Keywords of ``Embedder.encode``.
        query_encode_kwargs: The same for queries, if they differ.
        show_progress: Whether to show a progress bar over documents.

    Examples:
        >>> from candlewick.integrations.langchain import CandlewickEmbeddings
        >>> embeddings = CandlewickEmbeddings(model="candlewick/tiny")
        >>> len(embeddings.embed_query("Where does the dog sleep?"))
        128
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model: str = Field(default="sentence-transformers/all-mpnet-base-v2", validation_alias=_MODEL)
    cache_folder: str | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    show_progress: bool = False

    _opened: Opened[cw.Embedder] = PrivateAttr()

    def __init__(self, **data: Any) -> None:
        handle = _take(data, cw.Embedder)
        super().__init__(**data)
        options = self.model_kwargs
        if self.cache_folder is not None:
            options = {"cache_dir": self.cache_folder, **options}
        self._opened = handle or Opened("embedder", repository(self.model), options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Turn documents into vectors.

        Args:
            texts: The documents.

        Returns:
            One vector for each.
        """
        options = {"show_progress_bar": self.show_progress, **encoding(self.encode_kwargs)}
        return _lists(self._opened.get().encode_document(list(texts), **options))

    def embed_query(self, text: str) -> list[float]:
        """Turn a query into a vector.

        Args:
            text: The query.

        Returns:
            Its vector.
        """
        return cast("list[float]", self._opened.get().encode_query(text, **self._query_options()).tolist())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As ``embed_documents``; concurrent callers share batches.

        Args:
            texts: The documents.

        Returns:
            One vector for each.
        """
        embedder = await self._opened.aget()
        return _lists(await embedder.aencode_document(list(texts), **encoding(self.encode_kwargs)))

    async def aembed_query(self, text: str) -> list[float]:
        """As ``embed_query``; concurrent callers share batches.

        Args:
            text: The query.

        Returns:
            Its vector.
        """
        embedder = await self._opened.aget()
        vector = await embedder.aencode_query(text, **self._query_options())
        return cast("list[float]", vector.tolist())

    def _query_options(self) -> dict[str, Any]:
        return encoding(self.query_encode_kwargs or self.encode_kwargs)


class ChatCandlewick(BaseChatModel):
    """A chat model for LangChain on a model of one's own machine.

    Args:
        model: A hub id, a directory, a ``.gguf`` file, ``"candlewick/tiny"``, an open ``Model`` (whose registered
            adapters can then be named), or a generator, such as ``candlewick.testing.ScriptedModel``.
        model_kwargs: Keywords of ``Model.from_pretrained``.
        temperature: As for ``Generator``, like ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
            ``presence_penalty``, ``frequency_penalty``, ``seed`` and ``adapter``; None means the model's default.
        max_tokens: The most tokens to generate.
        stop: Strings that end an answer before them.
        timeout: Seconds until an answer is given up with a ``TimeoutError``.
        max_retries: Taken, as ``api_key`` is, because LangChain gives it to every model; neither has an effect here.
        streaming: Whether ``invoke`` streams for the sake of callbacks.
        generate_kwargs: Further keywords of ``Generator.generate``.

    Examples:
        >>> from candlewick.integrations.langchain import ChatCandlewick
        >>> chat = ChatCandlewick(model="candlewick/tiny", temperature=0.0, max_tokens=32)
        >>> message = chat.invoke("What is the capital of France?")
        >>> message.usage_metadata["total_tokens"] > 0
        True
        >>> "".join(chunk.text for chunk in chat.stream("What is the capital of France?")) == message.text
        True
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model: str = Field(validation_alias=_MODEL)
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    temperature: float | None = None
    max_tokens: int | None = Field(default=None, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    adapter: str | bool | None = None
    stop: list[str] | str | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    timeout: float | None = Field(default=None, validation_alias=AliasChoices("timeout", "request_timeout"))
    max_retries: int | None = None
    streaming: bool = False
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)

    _opened: Opened[cw.Model] | None = PrivateAttr(default=None)
    _generator: Any = PrivateAttr(default=None)

    #: Fields that a generator takes under their own name.
    _SAMPLING: ClassVar[tuple[str, ...]] = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "adapter",
    )

    def __init__(self, **data: Any) -> None:
        # LangChain gives a key to every model.
        data.pop("api_key", None)
        generator = data.get("model", data.get("model_name"))
        if hasattr(generator, "agenerate"):
            model = getattr(generator, "model", None)
            data = {key: value for key, value in data.items() if key != "model_name"}
            data["model"] = type(generator).__name__ if model is None else model
        else:
            generator = None
        opened = _take(data, cw.Model)
        super().__init__(**data)
        self._generator = generator
        if opened is None and generator is None:
            opened = Opened("model", self.model, self.model_kwargs)
        self._opened = opened

    @property
    def _llm_type(self) -> str:
        return "candlewick-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "model_kwargs": self.model_kwargs, **self._options(None, {})}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **kwargs)
        stop = stop or _strings(self.stop)
        if stop:
            params["ls_stop"] = stop
        return params

    def __getstate__(self) -> dict[Any, Any]:
        # The generator belongs to this process; the other one opens its own.
        state = super().__getstate__()
        private = dict(state["__pydantic_private__"] or {})
        if private.get("_opened") is not None:
            private["_generator"] = None
        return {**state, "__pydantic_private__": private}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ChatCandlewick:
        return cast("ChatCandlewick", self.model_copy())

    def _get_generator(self, name: str | None) -> Any:
        if name is not None and name != self.model:
            return cw.Generator(Opened[cw.Model]("model", name, self.model_kwargs).get())
        if self._generator is None and self._opened is not None:
            self._generator = cw.Generator(self._opened.get())
        return self._generator

    async def _aget_generator(self, name: str | None) -> Any:
        if self._generator is not None and name in (None, self.model):
            return self._generator
        return await asyncio.to_thread(self._get_generator, name)

    def _options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keywords of one call, without those that are None."""
        options: dict[str, Any] = {name: getattr(self, name) for name in self._SAMPLING}
        options |= {"max_new_tokens": self.max_tokens, "stop": stop or self.stop or None}
        options |= self.generate_kwargs
        given = {key: value for key, value in kwargs.items() if key not in ("model", "stream", "timeout")}
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        return {key: value for key, value in (options | given).items() if value is not None}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        name, timeout = kwargs.get("model"), kwargs.get("timeout", self.timeout)
        generator, options = self._get_generator(name), self._options(stop, kwargs)
        if timeout is None:
            return self._result(generator.generate(_conversation(messages), **options), generator, name)
        deadline = time.monotonic() + timeout
        with generator.stream(_conversation(messages), **options) as stream:
            for _ in stream:
                _check(deadline, timeout)
        return self._result(stream.result, generator, name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        name, timeout = kwargs.get("model"), kwargs.get("timeout", self.timeout)
        generator, options = await self._aget_generator(name), self._options(stop, kwargs)
        result = await asyncio.wait_for(generator.agenerate(_conversation(messages), **options), timeout)
        return self._result(result, generator, name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        name, timeout = kwargs.get("model"), kwargs.get("timeout", self.timeout)
        generator, options = self._get_generator(name), self._options(stop, kwargs)
        deadline = time.monotonic() + timeout if timeout is not None else None
        with generator.stream(_conversation(messages), **options) as stream:
            for token in stream:
                if token.text:
                    chunk = ChatGenerationChunk(message=AIMessageChunk(content=token.text))
                    if run_manager is not None:
                        run_manager.on_llm_new_token(token.text, chunk=chunk)
                    yield chunk
                if deadline is not None:
                    _check(deadline, timeout)
        yield self._last_chunk(stream.result, generator, name)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        name, timeout = kwargs.get("model"), kwargs.get("timeout", self.timeout)
        generator, options = await self._aget_generator(name), self._options(stop, kwargs)
        deadline = time.monotonic() + timeout if timeout is not None else None
        async with contextlib.aclosing(generator.stream(_conversation(messages), **options)) as stream:
            while True:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                try:
                    token = await asyncio.wait_for(stream.__anext__(), left)
                except StopAsyncIteration:
                    break
                if token.text:
                    chunk = ChatGenerationChunk(message=AIMessageChunk(content=token.text))
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(token.text, chunk=chunk)
                    yield chunk
        yield self._last_chunk(stream.result, generator, name)

    def _result(self, result: Any, generator: Any, name: str | None) -> ChatResult:
        metadata = self._metadata(result, generator, name)
        message = AIMessage(content=result.text, response_metadata=metadata, usage_metadata=_usage(result))
        info = {"finish_reason": result.finish_reason}
        return ChatResult(
            generations=[ChatGeneration(message=message, generation_info=info)],
            llm_output={"model_name": metadata["model_name"], "token_usage": dict(_usage(result))},
        )

    def _last_chunk(self, result: Any, generator: Any, name: str | None) -> ChatGenerationChunk:
        message = AIMessageChunk(
            content="",
            response_metadata=self._metadata(result, generator, name),
            usage_metadata=_usage(result),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info={"finish_reason": result.finish_reason})

    def _metadata(self, result: Any, generator: Any, name: str | None) -> dict[str, Any]:
        metadata = {
            "model_name": name or self.model,
            "model_provider": "candlewick",
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_reason,
            "adapter": result.adapter,
            "tokens_per_second": result.tokens_per_second,
            "time_to_first_token_s": result.time_to_first_token_s,
        }
        if result.logprobs is not None:
            decode = generator.model.tokenizer.decode
            metadata["logprobs"] = {
                "content": [
                    {
                        "token": decode([token], skip_special_tokens=False),
                        "logprob": logprob,
                        "top_logprobs": [
                            {"token": decode([other], skip_special_tokens=False), "logprob": value}
                            for other, value in top
                        ],
                    }
                    for token, (logprob, top) in zip(result.token_ids, result.logprobs, strict=True)
                ]
            }
        return metadata

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, by the model's own tokenizer.

        Args:
            text: The text.

        Returns:
            The ids.
        """
        return cast("list[int]", self._get_generator(None).model.tokenizer.encode(text, add_special_tokens=False))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation as the model reads it, through its chat template.

        Args:
            messages: The conversation.
            tools: Must be None.

        Returns:
            Their number.
        """
        if tools is not None:
            raise NotImplementedError("tools are not supported")
        tokenizer = self._get_generator(None).model.tokenizer
        return len(tokenizer.apply_chat_template(_conversation(messages), tokenize=True))


class CandlewickReranker(BaseDocumentCompressor, BaseCrossEncoder):
    """Orders documents with a cross-encoder.

    It takes the place of ``CrossEncoderReranker`` and of ``HuggingFaceCrossEncoder``.

    Args:
        model: A hub id or directory of a cross-encoder, or an open ``Reranker``.
        model_kwargs: Keywords of ``Reranker.from_pretrained``.
        top_n: How many documents to keep; None keeps all.
        predict_kwargs: Keywords of ``Reranker.predict``.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    model: str = Field(default="BAAI/bge-reranker-base", validation_alias=_MODEL)
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    top_n: int | None = Field(default=3, validation_alias=AliasChoices("top_n", "top_k"))
    predict_kwargs: dict[str, Any] = Field(default_factory=dict)

    _opened: Opened[cw.Reranker] = PrivateAttr()

    def __init__(self, **data: Any) -> None:
        handle = _take(data, cw.Reranker)
        super().__init__(**data)
        self._opened = handle or Opened("reranker", self.model, self.model_kwargs)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs of texts.

        Args:
            text_pairs: Pairs, such as of a query and a document.

        Returns:
            A score for each; larger is better.
        """
        return cast("list[float]", self._opened.get().predict(list(text_pairs), **self.predict_kwargs).tolist())

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> list[Document]:
        """Keep the documents that answer a query best.

        Args:
            documents: The documents.
            query: The query.
            callbacks: Not used.

        Returns:
            Copies of the best documents, best first, with ``relevance_score`` in their metadata.
        """
        texts = [document.page_content for document in documents]
        ranked = self._opened.get().rank(query, texts, top_k=self.top_n, **self.predict_kwargs)
        return [
            (found := documents[row["corpus_id"]]).model_copy(
                update={"metadata": {**found.metadata, "relevance_score": row["score"]}}
            )
            for row in ranked
        ]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As ``compress_documents``, on a thread of its own.

        Args:
            documents: The documents.
            query: The query.
            callbacks: Not used.

        Returns:
            Copies of the best documents, best first.
        """
        return await asyncio.to_thread(self.compress_documents, documents, query, callbacks)


def _take(data: dict[str, Any], kind: type[Any]) -> Opened[Any] | None:
    """An open model among the arguments of a constructor, which then names it instead."""
    name = "model" if "model" in data else "model_name"
    given = data.get(name)
    if isinstance(given, kind):
        opened: Opened[Any] = Opened.of(given)
        data[name], data["model_kwargs"] = opened.source, opened.options
        return opened
    if hasattr(given, "__fspath__"):
        data[name] = str(given)
    return None


def _lists(vectors: Any) -> list[list[float]]:
    return cast("list[list[float]]", vectors.tolist())


def _strings(stop: list[str] | str | None) -> list[str] | None:
    return [stop] if isinstance(stop, str) else stop


def _check(deadline: float, timeout: float | None) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"the answer took longer than {timeout} s")


def _usage(result: Any) -> UsageMetadata:
    return {
        "input_tokens": result.prompt_tokens,
        "output_tokens": result.generated_tokens,
        "total_tokens": result.prompt_tokens + result.generated_tokens,
        "input_token_details": {"cache_read": result.cached_tokens},
    }


_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (SystemMessage, "system"),
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)


def _conversation(messages: list[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates read them."""
    if not messages:
        raise ValueError("the conversation is empty; give at least one message")
    return [_message(message) for message in messages]


def _message(message: BaseMessage) -> dict[str, Any]:
    role = message.role if isinstance(message, ChatMessage) else None
    role = role or next((name for kind, name in _ROLES if isinstance(message, kind)), None)
    if role is None:
        raise TypeError(f"messages of the type {message.type!r} have no role in a chat template")
    found: dict[str, Any] = {"role": role, "content": _text(message)}
    if message.name is not None:
        found["name"] = message.name
    if isinstance(message, AIMessage) and message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    return found


def _text(message: BaseMessage) -> str:
    """The text of a message, of which text may be all."""
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(block["text"])
        # What an assistant said besides its text is in `tool_calls`, or nothing that a template reads.
        elif not isinstance(message, AIMessage):
            raise ValueError(f"a message has content of the type {block.get('type')!r}; the models here read text only")
    return "".join(parts)
