"""The coroutine behind ``agenerate``: waiting is Python's, the work is the engine's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable


class Pending(Protocol):
    """Generations under way, as the compiled module hands them over."""

    def future(self) -> Awaitable[Any]:
        """Give a future of the running event loop that gets the result."""

    def cancel(self) -> None:
        """End all of them within one token."""


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
