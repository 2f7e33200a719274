"""Embedders, a chat generator and a ranker for Haystack.

Components load in ``warm_up``, or when they first run; components of the same settings share one model. ``run_async``
is really asynchronous. Pipelines with them are written and read as YAML; whom to trust with that is the program's
choice: ``Pipeline.loads(text, allowed_modules=["candlewick.integrations.haystack"])``. Calling tools is not here.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component
from haystack.dataclasses import ChatMessage, ComponentInfo, StreamingChunk
from haystack.dataclasses.streaming_chunk import (
    StreamingCallbackT,
    _invoke_streaming_callback,
    select_streaming_callback,
)
from haystack.utils import Secret

import candlewick as cw

from ._haystack import Component, EmbedderComponent, content_of, conversation_of, device_of, embedded

__all__ = ["CandlewickChatGenerator", "CandlewickDocumentEmbedder", "CandlewickRanker", "CandlewickTextEmbedder"]

_TOKEN = ["HF_API_TOKEN", "HF_TOKEN"]


@component
class CandlewickTextEmbedder(EmbedderComponent):
    """Embeds a query; takes the place of ``SentenceTransformersTextEmbedder``.

    The query gets the prompt that the model has for queries, or `prefix`.

    Args:
        model: A hub id, a directory, or ``"candlewick/tiny"``.
        device: As for ``Embedder.from_pretrained``, or a ``ComponentDevice``; None means the best there is.
        token: Access token for the hub.
        prefix: What goes before the text, in place of the model's own prompt.
        suffix: What goes after the text.
        batch_size: The most texts of one pass; None lets the number of tokens decide.
        progress_bar: Whether to show a bar.
        normalize_embeddings: Whether vectors get length 1 even if the repository does not say so.
        local_files_only: Never touch the network.
        truncate_dim: Keep this many dimensions.
        model_kwargs: Further keywords of ``Embedder.from_pretrained``.
        precision: ``"float32"``, ``"binary"`` or ``"ubinary"``; and for documents ``"int8"`` or ``"uint8"``.
        encode_kwargs: Further keywords of ``Embedder.encode``.
        revision: Branch, tag or commit on the hub.

    Examples:
        >>> from candlewick.integrations.haystack import CandlewickTextEmbedder
        >>> len(CandlewickTextEmbedder(model="candlewick/tiny").run("Where does the dog sleep?")["embedding"])
        128
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-mpnet-base-v2",
        device: Any = None,
        token: Secret | None = Secret.from_env_var(_TOKEN, strict=False),  # noqa: B008 - as in Haystack's own
        prefix: str = "",
        suffix: str = "",
        batch_size: int | None = None,
        progress_bar: bool = False,
        normalize_embeddings: bool = False,
        local_files_only: bool = False,
        truncate_dim: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        precision: str = "float32",
        encode_kwargs: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self._keep(
            model=model,
            device=device_of(device),
            token=token,
            prefix=prefix,
            suffix=suffix,
            batch_size=batch_size,
            progress_bar=progress_bar,
            normalize_embeddings=normalize_embeddings,
            local_files_only=local_files_only,
            truncate_dim=truncate_dim,
            model_kwargs=model_kwargs,
            precision=precision,
            encode_kwargs=encode_kwargs,
            revision=revision,
        )

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Args:
            text: The query.

        Returns:
            Its vector as ``embedding``.
        """
        vector = self._opened().get().encode_query(self._text(text), **self._options())
        return {"embedding": vector.tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As ``run``, from an event loop; concurrent callers share batches.

        Args:
            text: The query.

        Returns:
            Its vector as ``embedding``.
        """
        embedder = await self._opened().aget()
        vector = await embedder.aencode_query(self._text(text), **self._async_options())
        return {"embedding": vector.tolist()}

    def _text(self, text: Any) -> str:
        if not isinstance(text, str):
            raise TypeError(f"text: got {type(text).__name__}, expected a str; for documents there is another embedder")
        return f"{self.prefix}{text}{self.suffix}"


@component
class CandlewickDocumentEmbedder(EmbedderComponent):
    """Embeds documents; takes the place of ``SentenceTransformersDocumentEmbedder``.

    Documents get the prompt that the model has for them, or `prefix`.

    Args:
        model: As for ``CandlewickTextEmbedder``, like all arguments that do not follow here.
        device: As there.
        token: As there.
        prefix: As there.
        suffix: As there.
        batch_size: As there.
        progress_bar: As there.
        normalize_embeddings: As there.
        meta_fields_to_embed: Names of metadata to put before a document's text.
        embedding_separator: What goes between them.
        local_files_only: As there.
        truncate_dim: As there.
        model_kwargs: As there.
        precision: As there.
        encode_kwargs: As there.
        revision: As there.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-mpnet-base-v2",
        device: Any = None,
        token: Secret | None = Secret.from_env_var(_TOKEN, strict=False),  # noqa: B008 - as in Haystack's own
        prefix: str = "",
        suffix: str = "",
        batch_size: int | None = None,
        progress_bar: bool = False,
        normalize_embeddings: bool = False,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        local_files_only: bool = False,
        truncate_dim: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        precision: str = "float32",
        encode_kwargs: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> None:
        self._keep(
            model=model,
            device=device_of(device),
            token=token,
            prefix=prefix,
            suffix=suffix,
            batch_size=batch_size,
            progress_bar=progress_bar,
            normalize_embeddings=normalize_embeddings,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            local_files_only=local_files_only,
            truncate_dim=truncate_dim,
            model_kwargs=model_kwargs,
            precision=precision,
            encode_kwargs=encode_kwargs,
            revision=revision,
        )

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Args:
            documents: The documents, which stay as they are.

        Returns:
            Copies with their vectors as ``documents``.
        """
        texts = self._texts(documents)
        return embedded(documents, self._opened().get().encode_document(texts, **self._options()))

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As ``run``, from an event loop; concurrent callers share batches.

        Args:
            documents: The documents, which stay as they are.

        Returns:
            Copies with their vectors as ``documents``.
        """
        texts = self._texts(documents)
        embedder = await self._opened().aget()
        return embedded(documents, await embedder.aencode_document(texts, **self._async_options()))

    def _texts(self, documents: Any) -> list[str]:
        if not isinstance(documents, list) or any(not isinstance(document, Document) for document in documents):
            raise TypeError("documents: expected a list of Document; for a text there is another embedder")
        names, separator = self._arguments["meta_fields_to_embed"], self._arguments["embedding_separator"]
        return [self.prefix + content_of(document, names, separator) + self.suffix for document in documents]


@component
class CandlewickRanker(Component):
    """Orders documents with a cross-encoder; takes the place of ``SentenceTransformersSimilarityRanker``.

    Args:
        model: A hub id or directory of a cross-encoder.
        device: As for ``Reranker.from_pretrained``, or a ``ComponentDevice``; None means the best there is.
        token: Access token for the hub.
        top_k: How many documents to return; None means all.
        query_prefix: What goes before the query.
        query_suffix: What goes after the query.
        document_prefix: What goes before each document.
        document_suffix: What goes after each document.
        meta_fields_to_embed: Names of metadata to put before a document's text.
        embedding_separator: What goes between them.
        scale_score: Whether scores go through a sigmoid; otherwise they are as the model gives them.
        score_threshold: Leave out documents of lower scores.
        local_files_only: Never touch the network.
        model_kwargs: Further keywords of ``Reranker.from_pretrained``.
        batch_size: The most pairs of one pass; None lets the number of tokens decide.
        revision: Branch, tag or commit on the hub.
    """

    _kind = "reranker"

    def __init__(
        self,
        model: str = "cross-encoder/ms-marco-MiniLM-L-6-v2",
        device: Any = None,
        token: Secret | None = Secret.from_env_var(_TOKEN, strict=False),  # noqa: B008 - as in Haystack's own
        top_k: int | None = 10,
        query_prefix: str = "",
        query_suffix: str = "",
        document_prefix: str = "",
        document_suffix: str = "",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        scale_score: bool = True,
        score_threshold: float | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        revision: str | None = None,
    ) -> None:
        if top_k is not None and top_k <= 0:
            raise ValueError(f"top_k must be positive, got {top_k}")
        self._keep(
            model=model,
            device=device_of(device),
            token=token,
            top_k=top_k,
            query_prefix=query_prefix,
            query_suffix=query_suffix,
            document_prefix=document_prefix,
            document_suffix=document_suffix,
            meta_fields_to_embed=meta_fields_to_embed,
            embedding_separator=embedding_separator,
            scale_score=scale_score,
            score_threshold=score_threshold,
            local_files_only=local_files_only,
            model_kwargs=model_kwargs,
            batch_size=batch_size,
            revision=revision,
        )

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """Order documents by how well they answer a query.

        Args:
            query: The query.
            documents: The documents, which stay as they are; of equal ones the first counts.
            top_k: In place of the constructor's, like the others.
            scale_score: As for the class.
            score_threshold: As for the class.

        Returns:
            Copies with their scores as ``documents``, best first.

        Raises:
            ValueError: ``top_k`` is not positive.
        """
        arguments = self._arguments
        top_k = arguments["top_k"] if top_k is None else top_k
        if top_k is not None and top_k <= 0:
            raise ValueError(f"top_k must be positive, got {top_k}")
        documents = list({document.id: document for document in reversed(documents)}.values())[::-1]
        names, separator = arguments["meta_fields_to_embed"], arguments["embedding_separator"]
        texts = [
            arguments["document_prefix"] + content_of(document, names, separator) + arguments["document_suffix"]
            for document in documents
        ]
        scale = arguments["scale_score"] if scale_score is None else scale_score
        threshold = arguments["score_threshold"] if score_threshold is None else score_threshold
        ranked = (
            self._opened()
            .get()
            .rank(
                arguments["query_prefix"] + query + arguments["query_suffix"],
                texts,
                top_k=top_k,
                activation="sigmoid" if scale else "identity",
                batch_size=arguments["batch_size"],
            )
        )
        found = [replace(documents[row["corpus_id"]], score=row["score"]) for row in ranked]
        return {"documents": [document for document in found if threshold is None or document.score >= threshold]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        scale_score: bool | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """As ``run``, on a thread of its own.

        Args:
            query: The query.
            documents: The documents.
            top_k: In place of the constructor's, like the others.
            scale_score: As for the class.
            score_threshold: As for the class.

        Returns:
            Copies with their scores as ``documents``, best first.
        """
        return await asyncio.to_thread(self.run, query, documents, top_k, scale_score, score_threshold)


@component
class CandlewickChatGenerator(Component):
    """Answers conversations; takes the place of ``HuggingFaceLocalChatGenerator``.

    Args:
        model: A hub id, a directory, a ``.gguf`` file, or ``"candlewick/tiny"``.
        device: As for ``Model.from_pretrained``, or a ``ComponentDevice``; None means the best there is.
        token: Access token for the hub.
        generation_kwargs: Keywords of ``Generator.generate``.
        streaming_callback: Is called with each piece of an answer.
        model_kwargs: Further keywords of ``Model.from_pretrained``.
        local_files_only: Never touch the network.
        revision: Branch, tag or commit on the hub.

    Examples:
        >>> from haystack.dataclasses import ChatMessage
        >>> from candlewick.integrations.haystack import CandlewickChatGenerator
        >>> generator = CandlewickChatGenerator(model="candlewick/tiny", generation_kwargs={"temperature": 0.0})
        >>> reply = generator.run([ChatMessage.from_user("Who are you?")])["replies"][0]
        >>> reply.meta["usage"]["completion_tokens"] > 0
        True
    """

    _kind = "model"

    def __init__(
        self,
        model: str,
        device: Any = None,
        token: Secret | None = Secret.from_env_var(_TOKEN, strict=False),  # noqa: B008 - as in Haystack's own
        generation_kwargs: dict[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        model_kwargs: dict[str, Any] | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> None:
        self._keep(
            model=model,
            device=device_of(device),
            token=token,
            generation_kwargs=generation_kwargs,
            streaming_callback=streaming_callback,
            model_kwargs=model_kwargs,
            local_files_only=local_files_only,
            revision=revision,
        )

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answer a conversation.

        Args:
            messages: The conversation, or a question.
            streaming_callback: In place of the constructor's.
            generation_kwargs: Besides the constructor's, which they win over.

        Returns:
            The answer as ``replies``.
        """
        callback = self._callback(streaming_callback, requires_async=False)
        generator, options = cw.Generator(self._opened().get()), self._options(generation_kwargs)
        if callback is None:
            return self._replies(generator.generate(conversation_of(messages), **options))
        with generator.stream(conversation_of(messages), **options) as stream:
            for token in stream:
                callback(self._chunk(token))
        return self._replies(stream.result)

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """As ``run``, from an event loop, which is not blocked; the callback may be a coroutine function.

        Args:
            messages: The conversation, or a question.
            streaming_callback: In place of the constructor's.
            generation_kwargs: Besides the constructor's, which they win over.

        Returns:
            The answer as ``replies``.
        """
        callback = self._callback(streaming_callback, requires_async=True)
        generator, options = cw.Generator(await self._opened().aget()), self._options(generation_kwargs)
        if callback is None:
            return self._replies(await generator.agenerate(conversation_of(messages), **options))
        async with generator.stream(conversation_of(messages), **options) as stream:
            async for token in stream:
                await _invoke_streaming_callback(callback, self._chunk(token))
        return self._replies(stream.result)

    def _callback(self, given: Any, *, requires_async: bool) -> Any:
        return select_streaming_callback(self._arguments["streaming_callback"], given, requires_async=requires_async)

    def _options(self, given: dict[str, Any] | None) -> dict[str, Any]:
        options = {**(self._arguments["generation_kwargs"] or {}), **(given or {})}
        return {"max_new_tokens" if key == "max_tokens" else key: value for key, value in options.items()}

    def _chunk(self, token: Any) -> StreamingChunk:
        return StreamingChunk(
            content=token.text,
            meta={"model": self._arguments["model"]},
            component_info=ComponentInfo.from_component(self),
            index=0,
            start=token.index == 0,
            finish_reason=token.finish_reason,
        )

    def _replies(self, result: Any) -> dict[str, Any]:
        meta = {
            "model": self._arguments["model"],
            "index": 0,
            "finish_reason": result.finish_reason,
            "usage": {
                "prompt_tokens": result.prompt_tokens,
                "completion_tokens": result.generated_tokens,
                "total_tokens": result.prompt_tokens + result.generated_tokens,
            },
        }
        return {"replies": [ChatMessage.from_assistant(result.text, meta=meta)]}
