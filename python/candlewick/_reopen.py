"""How a pickled handle comes back: by loading its source again."""

from __future__ import annotations

from typing import Any

from ._native import Model


def model(source: str, options: dict[str, Any]) -> Model:
    """Load a model as it was loaded before.

    Args:
        source: What it was loaded from.
        options: The keywords of ``Model.from_pretrained``.

    Returns:
        The model.
    """
    return Model.from_pretrained(source, **options)
