"""The coroutine behind ``agenerate``: waiting is Python's, the work is the engine's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._native import _Pending


async def finish(pending: _Pending) -> Any:
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
