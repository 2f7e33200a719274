"""Models that integrations open when they are first needed, and share while somebody uses them.

Frameworks build components long before they run them, copy them and send them to other processes. A component
therefore keeps an `Opened` instead of a model: copies share it, a pickle of it is a name and some keywords, and two
components of the same settings hold one model in memory.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import candlewick as cw

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

_OPEN: dict[str, Callable[..., Any]] = {
    "embedder": cw.Embedder.from_pretrained,
    "model": cw.Model.from_pretrained,
    "reranker": cw.Reranker.from_pretrained,
}

_shared: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _renew_lock() -> None:
    """Another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Opened(Generic[T]):
    """A model that is opened when it is first asked for.

    Args:
        kind: ``"embedder"``, ``"model"`` or ``"reranker"``.
        source: What it is loaded from.
        options: The keywords of ``from_pretrained``.
    """

    def __init__(self, kind: str, source: str, options: Mapping[str, Any]) -> None:
        self.kind = kind
        self.source = source
        self.options = dict(options)
        self._handle: T | None = None
        self._process = os.getpid()

    @classmethod
    def of(cls, handle: Any) -> Opened[T]:
        """Wrap a model that is open already.

        Args:
            handle: An ``Embedder``, a ``Model`` or a ``Reranker``.

        Returns:
            The wrapper; it reopens the model by its source elsewhere.
        """
        source, options = handle.__reduce__()[1]
        opened = cls(type(handle).__name__.lower(), source, options)
        opened._handle = handle
        return opened

    def get(self) -> T:
        """Give the model, from any thread.

        Returns:
            The model; other components with the same settings get the same.
        """
        # A forked child cannot use what its parent has opened.
        process = os.getpid()
        if self._handle is not None and process == self._process:
            return self._handle
        key = (self.kind, process, self.source, repr(sorted(self.options.items())))
        with _lock:
            handle = _shared.get(key)
            if handle is None:
                handle = _shared[key] = _OPEN[self.kind](self.source, **self.options)
        self._handle, self._process = handle, process
        return handle  # type: ignore[no-any-return]

    async def aget(self) -> T:
        """Give the model without blocking the event loop while it is loaded.

        Returns:
            As `get`.
        """
        if self._handle is not None and os.getpid() == self._process:
            return self._handle
        return await asyncio.to_thread(self.get)

    def __copy__(self) -> Opened[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Opened[T]:
        return self

    def __reduce__(self) -> tuple[type[Opened[T]], tuple[str, str, dict[str, Any]]]:
        return type(self), (self.kind, self.source, self.options)

    def __repr__(self) -> str:
        return f"Opened({self.kind!r}, {self.source!r})"


def repository(name: str | os.PathLike[str]) -> str:
    """The source that a name of an embedding model means.

    Args:
        name: A directory, a hub id, or the bare name of a model of the organisation ``sentence-transformers``.

    Returns:
        The source for ``Embedder.from_pretrained``.
    """
    text = os.fspath(name)
    if "/" in text or "\\" in text or Path(text).exists():
        return text
    return f"sentence-transformers/{text}"


def encoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of ``Embedder.encode``, from those or from their names in sentence-transformers.

    Args:
        options: Keywords of either kind.

    Returns:
        The keywords; those that only choose a container for the result are left out.
    """
    known = dict(options)
    if "normalize_embeddings" in known:
        # There, False leaves it to the repository's own modules.
        known["normalize"] = True if known.pop("normalize_embeddings") else known.get("normalize")
    for name in ("convert_to_numpy", "convert_to_tensor", "device"):
        known.pop(name, None)
    return known
