"""HTML for notebooks."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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


def curve(values: Sequence[float], width: int = 320, height: int = 80) -> str:
    """A line through values at equal distances.

    Args:
        values: The values; those that are not finite are left out.
        width: Pixels.
        height: Pixels.

    Returns:
        SVG without scripts or outside resources; nothing for fewer than two values.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    last = len(values) - 1
    points = " ".join(
        f"{index * width / last:.1f},{height * (1 - (value - low) / span):.1f}"
        for index, value in enumerate(values)
        if math.isfinite(value)
    )
    line = f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    label = escape(f"from {values[0]:.4g} to {values[-1]:.4g}")
    return f'<svg viewBox="-2 -2 {width + 4} {height + 4}" width="{width}" role="img" aria-label="{label}">{line}</svg>'
