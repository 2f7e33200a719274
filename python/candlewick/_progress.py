"""Progress bars, where tqdm is installed and somebody wants to see them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._native import StepMetrics


def wanted(show_progress_bar: bool | None) -> bool:
    """Whether to show a bar.

    Args:
        show_progress_bar: The caller's wish; None means if the logger ``candlewick`` shows INFO.

    Returns:
        True if a bar is to be shown.
    """
    if show_progress_bar is None:
        hidden = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in {"1", "ON", "YES", "TRUE"}
        return not hidden and logging.getLogger("candlewick").isEnabledFor(logging.INFO)
    return show_progress_bar


class Downloads:
    """One bar for each file that is being downloaded.

    Args:
        show_progress_bar: As for ``wanted``.
    """

    def __init__(self, show_progress_bar: bool | None) -> None:
        self._bars: dict[str, Any] = {}
        self._new: Any = None
        if wanted(show_progress_bar):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                logging.getLogger("candlewick").info("install tqdm to see progress bars")
            else:
                self._new = tqdm

    def update(self, file: str, done: int, total: int | None) -> None:
        """Show how far a file is.

        Args:
            file: Its name.
            done: Bytes that are there.
            total: All bytes, where known.
        """
        if self._new is None:
            return
        bar = self._bars.get(file)
        if bar is None:
            bar = self._new(total=total, desc=file, unit="B", unit_scale=True)
            self._bars[file] = bar
        bar.update(done - bar.n)

    def close(self) -> None:
        """Leave the bars as they are."""
        for bar in self._bars.values():
            bar.close()


class Texts:
    """A bar over the texts of one call.

    Args:
        show_progress_bar: As for ``wanted``.
        total: Number of texts.
        unit: What they are called.
    """

    def __init__(self, show_progress_bar: bool | None, total: int, unit: str) -> None:
        self._bar: Any = None
        if wanted(show_progress_bar):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                logging.getLogger("candlewick").info("install tqdm to see progress bars")
            else:
                self._bar = tqdm(total=total, unit=unit)

    def update(self, done: int) -> None:
        """Show how many are done.

        Args:
            done: That many in all.
        """
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Steps:
    """A bar over the optimizer steps of a run, with loss and tokens per second.

    Args:
        show_progress_bar: As for ``wanted``.
        done: Steps taken before.
        total: All steps.
    """

    def __init__(self, show_progress_bar: bool | None, done: int, total: int) -> None:
        self._bar: Any = None
        if wanted(show_progress_bar):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                logging.getLogger("candlewick").info("install tqdm to see progress bars")
            else:
                self._bar = tqdm(initial=done, total=total, desc="training", unit="step")

    def update(self, metrics: StepMetrics) -> None:
        """Show how far the run is.

        Args:
            metrics: Those of the last step.
        """
        if self._bar is None:
            return
        shown = {"loss": f"{metrics.loss:.4f}", "tok/s": f"{metrics.tokens_per_second:.0f}"}
        if metrics.eval_loss is not None:
            shown["eval"] = f"{metrics.eval_loss:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(metrics.step - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
