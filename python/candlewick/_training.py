"""The loop behind ``Trainer.train``, and what it gives back.

Each step is the compiled module's; here are only callbacks, the progress bar and the summary.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _progress, notebook

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._native import StepMetrics, Trainer

#: The methods that an object given as a callback may have.
HOOKS = ("on_train_begin", "on_step", "on_evaluate", "on_save", "on_train_end")


@dataclass(frozen=True)
class TrainingResult:
    """What ``Trainer.train`` did.

    Attributes:
        steps: Optimizer steps taken, those before ``resume`` included.
        loss: Loss of the last step in nats; NaN if there was none.
        eval_loss: The last loss over the evaluation data, or None.
        history: The ``StepMetrics`` of every step that the trainer took.
        seconds: How long the call took.
        tokens_per_second: Tokens processed in a second of all steps, predicted or not.
        peak_memory_bytes: The most that was ever resident in this process, or None where that cannot be told.

    Examples:
        >>> import candlewick as cw
        >>> model = cw.Model.from_pretrained("candlewick/tiny")
        >>> result = cw.Trainer(model, [{"text": "The sun set."}], max_steps=2).train()
        >>> [metrics.step for metrics in result.history]
        [1, 2]
    """

    steps: int
    loss: float
    eval_loss: float | None
    history: list[StepMetrics]
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int | None

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss of every step, and that over the evaluation data.

        Args:
            ax: The matplotlib axes to draw on; default: new ones.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        if ax is None:
            try:
                from matplotlib import pyplot as plt
            except ImportError as error:
                message = "TrainingResult.plot needs matplotlib; pip install 'candlewick[notebook]'"
                raise ImportError(message) from error
            ax = plt.subplots()[1]
        ax.plot([metrics.step for metrics in self.history], [metrics.loss for metrics in self.history], label="loss")
        evaluated = [metrics for metrics in self.history if metrics.eval_loss is not None]
        if evaluated:
            steps, losses = [metrics.step for metrics in evaluated], [metrics.eval_loss for metrics in evaluated]
            ax.plot(steps, losses, marker="o", label="eval loss")
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        evaluated = "" if self.eval_loss is None else f", eval_loss={self.eval_loss:.4f}"
        return (
            f"TrainingResult(steps={self.steps}, loss={self.loss:.4f}{evaluated}, seconds={self.seconds:.1f}, "
            f"tokens_per_second={self.tokens_per_second:.0f})"
        )

    def _repr_html_(self) -> str:
        rows = [("steps", str(self.steps)), ("loss", f"{self.loss:.4f}")]
        if self.eval_loss is not None:
            rows.append(("eval loss", f"{self.eval_loss:.4f}"))
        rows += [("time", f"{self.seconds:.1f} s"), ("speed", f"{self.tokens_per_second:.0f} tokens/s")]
        if self.peak_memory_bytes is not None:
            rows.append(("peak memory", f"{self.peak_memory_bytes / 1e9:.2f} GB"))
        return notebook.table("Training", rows) + notebook.curve([metrics.loss for metrics in self.history])


def run(trainer: Trainer, callbacks: Any, show_progress_bar: bool | None) -> TrainingResult:
    """Take all steps that are left.

    Args:
        trainer: The trainer.
        callbacks: As for ``Trainer.train``.
        show_progress_bar: As for the class.

    Returns:
        The summary.
    """
    hooks = _Hooks(callbacks)
    begun = time.perf_counter()
    bar = _progress.Steps(show_progress_bar, trainer.step_count, trainer.total_steps)
    try:
        goes_on = hooks.call("on_train_begin", trainer)
        saved = trainer.last_checkpoint
        while goes_on and (metrics := next(trainer, None)) is not None:
            bar.update(metrics)
            goes_on = hooks.call("on_step", metrics)
            if metrics.eval_loss is not None:
                goes_on = hooks.call("on_evaluate", metrics) and goes_on
            if trainer.last_checkpoint != saved:
                saved = trainer.last_checkpoint
                goes_on = hooks.call("on_save", saved) and goes_on
    finally:
        bar.close()
    if not goes_on and trainer.save_dir is not None:
        trainer.save(trainer.save_dir)
    result = _summary(trainer, time.perf_counter() - begun)
    hooks.call("on_train_end", result)
    return result


class _Hooks:
    """The functions to call at each event."""

    def __init__(self, callbacks: Any) -> None:
        if callbacks is None:
            callbacks = ()
        elif not isinstance(callbacks, (list, tuple)):
            callbacks = (callbacks,)
        self._hooks: dict[str, list[Callable[[Any], Any]]] = {name: [] for name in HOOKS}
        for callback in callbacks:
            methods = _methods(callback)
            if not methods and callable(callback):
                methods = {"on_step": callback}
            if not methods:
                kind = type(callback).__name__
                raise TypeError(f"callbacks: got {kind}, expected a function, or an object with {', '.join(HOOKS)}")
            for name, method in methods.items():
                self._hooks[name].append(method)

    def call(self, name: str, argument: Any) -> bool:
        """Call all functions of an event; False if one of them gave that."""
        answers = [hook(argument) for hook in self._hooks[name]]
        return all(answer is not False for answer in answers)


def _methods(callback: Any) -> dict[str, Callable[[Any], Any]]:
    return {name: method for name in HOOKS if callable(method := getattr(callback, name, None))}


def _summary(trainer: Trainer, seconds: float) -> TrainingResult:
    history = trainer.history
    evaluated = [metrics.eval_loss for metrics in history if metrics.eval_loss is not None]
    busy = sum(metrics.seconds for metrics in history)
    processed = sum(metrics.tokens_per_second * metrics.seconds for metrics in history)
    return TrainingResult(
        steps=trainer.step_count,
        loss=history[-1].loss if history else math.nan,
        eval_loss=evaluated[-1] if evaluated else None,
        history=history,
        seconds=seconds,
        tokens_per_second=processed / busy if busy else 0.0,
        peak_memory_bytes=peak_memory_bytes(),
    )


def peak_memory_bytes() -> int | None:
    """The most that was ever resident in this process; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says there may be that of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
