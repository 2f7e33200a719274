"""HTML for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values.

    Args:
        title: The caption.
        rows: Pairs of name and value; both are escaped.

    Returns:
        HTML without scripts or outside resources.
    """
    body = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in rows
    )
    caption = f'<caption style="text-align:left;font-weight:bold">{escape(title)}</caption>'
    return f"<table>{caption}<tbody>{body}</tbody></table>"
