"""What the components of ``haystack.py`` share: arguments, the model behind them, translated values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from haystack import default_from_dict, default_to_dict
from haystack.utils import deserialize_callable, deserialize_secrets_inplace, serialize_callable

from ._opened import Opened, encoding, repository

if TYPE_CHECKING:
    from haystack import Document
    from haystack.dataclasses import ChatMessage
    from typing_extensions import Self


class Component:
    """What all components do: keep their arguments for ``to_dict``, and open a model when it is needed."""

    _kind: str

    def _keep(self, **arguments: Any) -> None:
        self._arguments = arguments
        for name, value in arguments.items():
            setattr(self, name, value)

    def _opened(self) -> Opened[Any]:
        opened: Opened[Any] | None = self.__dict__.get("_handle")
        if opened is None:
            arguments = self._arguments
            options = {"device": arguments["device"], **(arguments["model_kwargs"] or {})}
            for name in ("revision", "local_files_only"):
                if arguments[name]:
                    options[name] = arguments[name]
            if arguments["token"] is not None and arguments["token"].resolve_value():
                options["token"] = arguments["token"].resolve_value()
            source = arguments["model"]
            opened = Opened(self._kind, repository(source) if self._kind == "embedder" else source, options)
            self._handle = opened
        return opened

    def warm_up(self) -> None:
        """Load the model. Calling it again does nothing."""
        self._opened().get()

    async def warm_up_async(self) -> None:
        """Load the model without blocking the event loop."""
        await self._opened().aget()

    def to_dict(self) -> dict[str, Any]:
        """Write the component as plain values.

        Returns:
            What ``from_dict`` reads.
        """
        arguments = dict(self._arguments)
        if arguments["token"] is not None:
            arguments["token"] = arguments["token"].to_dict()
        if arguments.get("streaming_callback") is not None:
            arguments["streaming_callback"] = serialize_callable(arguments["streaming_callback"])
        found: dict[str, Any] = default_to_dict(self, **arguments)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make the component that was written.

        Args:
            data: What ``to_dict`` gave.

        Returns:
            The component.
        """
        arguments = dict(data.get("init_parameters", {}))
        if isinstance(arguments.get("token"), dict):
            deserialize_secrets_inplace(arguments, keys=["token"])
        if isinstance(arguments.get("streaming_callback"), str):
            arguments["streaming_callback"] = deserialize_callable(arguments["streaming_callback"])
        made: Self = default_from_dict(cls, {**data, "init_parameters": arguments})
        return made


class EmbedderComponent(Component):
    """What both embedders do."""

    _kind = "embedder"

    prefix: str
    suffix: str

    def _options(self) -> dict[str, Any]:
        arguments = self._arguments
        return {
            "batch_size": arguments["batch_size"],
            "show_progress_bar": arguments["progress_bar"],
            "normalize": True if arguments["normalize_embeddings"] else None,
            "truncate_dim": arguments["truncate_dim"],
            "precision": arguments["precision"],
            # A prefix takes the place of the model's own prompt.
            **({"prompt": ""} if self.prefix else {}),
            **encoding(arguments["encode_kwargs"] or {}),
        }

    def _async_options(self) -> dict[str, Any]:
        return {key: value for key, value in self._options().items() if key != "show_progress_bar"}


def device_of(given: Any) -> str:
    if given is None:
        return "auto"
    name = given if isinstance(given, str) else given.to_torch_str()
    return "metal" if name.partition(":")[0] == "mps" else name


def content_of(document: Document, names: list[str] | None, separator: str) -> str:
    fields = [str(document.meta[name]) for name in names or [] if document.meta.get(name) is not None]
    return separator.join([*fields, document.content or ""])


def embedded(documents: list[Document], vectors: Any) -> dict[str, Any]:
    pairs = zip(documents, vectors.tolist(), strict=True)
    return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}


def conversation_of(messages: list[ChatMessage] | str) -> list[dict[str, Any]]:
    """Messages as chat templates read them."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not messages:
        raise ValueError("the conversation is empty; give at least one message")
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> dict[str, Any]:
    if message.images or message.files:
        raise ValueError("a message has something besides text; the models here read text only")
    results = [str(result.result) for result in message.tool_call_results]
    found: dict[str, Any] = {"role": message.role.value, "content": "".join([*message.texts, *results])}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call.tool_name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return found
