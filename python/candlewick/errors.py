"""The exceptions that candlewick raises, grouped by what the caller can do about them.

File errors, wrong argument types and Ctrl-C are not here: they are Python's own ``FileNotFoundError``,
``PermissionError``, ``OSError``, ``TypeError`` and ``KeyboardInterrupt``. Every class below is also one of
Python's own, so code that catches ``ValueError`` or ``MemoryError`` keeps working.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "CandlewickError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "DeviceError",
    "InternalError",
    "InvalidArgumentError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "TrainingDivergedError",
    "UnsupportedModelError",
]


class CandlewickError(Exception):
    """The base of every exception that is candlewick's own."""


class ModelNotFoundError(CandlewickError, FileNotFoundError):
    """A model or adapter is neither on this machine nor on the hub."""


class UnsupportedModelError(CandlewickError, ValueError):
    """The checkpoint is of an architecture that candlewick does not have; the message lists those it has."""


class ConfigError(CandlewickError, ValueError):
    """A configuration file lacks a field, or holds a value that cannot be honoured."""


class CheckpointError(CandlewickError, ValueError):
    """Tensors of a checkpoint are missing, malformed or of the wrong shape; the message lists all of them."""


class AdapterError(CandlewickError, ValueError):
    """An adapter cannot be applied as its files say, so none of it was applied.

    Attributes:
        code: A stable name of the reason for programs, such as ``"shape_mismatch"``.
    """

    code: str

    def __init__(self, message: str, code: str = "invalid_adapter") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[AdapterError], tuple[str, str]]:
        return type(self), (self.args[0], self.code)


class InvalidArgumentError(CandlewickError, ValueError):
    """An argument has a value outside of what is allowed."""


class DataError(CandlewickError, ValueError):
    """A row of input or training data cannot be used; the message names the file and the line.

    Attributes:
        source: The file, or what the data was given as; None if that is not known.
        line: The line of the file, counted from 1, or None.
    """

    source: str | None
    line: int | None

    def __init__(self, message: str, source: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str | None, int | None]]:
        return type(self), (self.args[0], self.source, self.line)


class ContextLengthError(CandlewickError, ValueError):
    """A prompt is longer than the model or the request allows."""


class DeviceError(CandlewickError, RuntimeError):
    """The device does not exist or cannot be opened here."""


class OutOfMemoryError(CandlewickError, MemoryError):
    """The work would need more memory than there is, or than was allowed; nothing was started."""


class TrainingDivergedError(CandlewickError, ArithmeticError):
    """Training produced a loss or a gradient that is not finite; the adapter is as of the last good step.

    Attributes:
        step: The optimizer step that was given up, counted from 1.
        loss: The loss seen.
    """

    step: int
    loss: float

    def __init__(self, message: str, step: int = 0, loss: float = float("nan")) -> None:
        super().__init__(message)
        self.step = step
        self.loss = loss

    def __reduce__(self) -> tuple[type[TrainingDivergedError], tuple[str, int, float]]:
        return type(self), (self.args[0], self.step, self.loss)


class InternalError(CandlewickError, RuntimeError):
    """A fault of candlewick or of a library below it, not of the caller."""
