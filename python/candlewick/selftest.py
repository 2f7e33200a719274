"""Whether a device computes what the CPU computes: what ``candlewick selftest`` runs.

Every kernel, forward and backward, is compared with plain operations in float32 on the CPU, and the bundled model as a
whole (logits, generation, embeddings, training) with itself on the CPU. It measures no speed; the first use of a kernel
includes compiling it.
"""

from __future__ import annotations

from typing import NamedTuple

from ._native import _selftest

__all__ = ["Check", "run", "table"]


class Check(NamedTuple):
    """What one check found.

    Attributes:
        name: What was computed.
        dtype: In which dtype.
        difference: The largest difference, relative to the largest value where that is above 1.
        tolerance: The largest difference that counts as rounding.
        seconds: How long it took.
        error: Why nothing could be compared, if so.
    """

    name: str
    dtype: str
    difference: float
    tolerance: float
    seconds: float
    error: str | None

    @property
    def passed(self) -> bool:
        """Whether the device computed what it should."""
        return self.error is None and self.difference <= self.tolerance


def run(device: str = "auto") -> list[Check]:
    """Run every check on a device.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"metal"``, ``"cuda"`` or ``"cuda:N"``.

    Returns:
        The checks in the order in which they ran.

    Raises:
        DeviceError: The device is not there.
        InvalidArgumentError: There is no such device.
    """
    return [Check(*row) for row in _selftest(device)]


def table(checks: list[Check]) -> str:
    """Lay the checks out as text, one on a line."""
    width = max((len(check.name) for check in checks), default=0)
    lines = [f"      {'check':{width}}  dtype  difference  tolerance  seconds"]
    for check in checks:
        found = f"{check.difference:10.2e}  {check.tolerance:9.0e}  {check.seconds:7.3f}"
        state = "ok" if check.passed else "BAD"
        lines.append(f"{state:4}  {check.name:{width}}  {check.dtype:5}  {check.error or found}")
    return "\n".join(lines)
