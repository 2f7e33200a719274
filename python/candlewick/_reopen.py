"""How a pickled handle comes back: by loading its source again."""

from __future__ import annotations

from typing import Any

from ._native import Embedder, Model, Reranker


def model(source: str, options: dict[str, Any]) -> Model:
    """Load a model as it was loaded before.

    Args:
        source: What it was loaded from.
        options: The keywords of ``Model.from_pretrained``.

    Returns:
        The model.
    """
    return Model.from_pretrained(source, **options)


def embedder(source: str, options: dict[str, Any]) -> Embedder:
    """Load an embedder as it was loaded before.

    Args:
        source: What it was loaded from.
        options: The keywords of ``Embedder.from_pretrained``.

    Returns:
        The embedder.
    """
    return Embedder.from_pretrained(source, **options)


def reranker(source: str, options: dict[str, Any]) -> Reranker:
    """Load a reranker as it was loaded before.

    Args:
        source: What it was loaded from.
        options: The keywords of ``Reranker.from_pretrained``.

    Returns:
        The reranker.
    """
    return Reranker.from_pretrained(source, **options)
