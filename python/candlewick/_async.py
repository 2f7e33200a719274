"""The coroutines behind ``agenerate`` and ``aencode``: waiting is Python's, the work is the core's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Pending(Protocol):
    """Generations under way, as the compiled module hands them over."""

    def future(self) -> Awaitable[Any]:
        """Give a future of the running event loop that gets the result."""

    def cancel(self) -> None:
        """End all of them within one token."""


class Beginning(Pending, Protocol):
    """Generations that have not begun, as their prompts take time to encode."""

    def begin(self) -> None:
        """Encode the prompts and hand them to the engine."""


async def generate(pending: Beginning) -> Any:
    """Begin generations on another thread, so that the event loop goes on, and wait for them.

    Args:
        pending: The generations.

    Returns:
        One result, or a list of them.
    """
    try:
        await asyncio.to_thread(pending.begin)
    except asyncio.CancelledError:
        pending.cancel()
        raise
    return await finish(pending)


async def finish(pending: Pending) -> Any:
    """Wait for generations under way; being cancelled cancels them.

    Args:
        pending: The generations.

    Returns:
        One result, or a list of them.
    """
    try:
        return await pending.future()
    except asyncio.CancelledError:
        pending.cancel()
        raise


async def fail(error: BaseException) -> Any:
    """Tell of a mistake where it is awaited.

    Args:
        error: What is wrong.
    """
    raise error


async def elsewhere(call: Callable[..., Any], texts: Any, keywords: dict[str, Any]) -> Any:
    """Do on a thread what is not gathered with the work of others.

    Args:
        call: What to do.
        texts: Its argument.
        keywords: Its keywords.

    Returns:
        What it gives.
    """
    return await asyncio.to_thread(call, texts, **keywords)
