"""Where torch meets arrays. Nothing here imports it: only what the program has imported itself is used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


def torch() -> Any:
    """Torch, if the program has imported it, else None."""
    return sys.modules.get("torch")


def tensor(values: Any) -> Any:
    """A tensor of an array where torch is, else the array."""
    module = torch()
    return values if module is None else module.from_numpy(np.asarray(values, order="C"))


def required_tensor(values: Any) -> Any:
    """A tensor of an array.

    Raises:
        ModuleNotFoundError: Torch is not installed.
    """
    import torch as module

    return module.from_numpy(np.asarray(values, order="C"))


def device(name: str) -> Any:
    """A device of torch where torch is, else its name."""
    module = torch()
    return name if module is None else module.device(name.replace("metal", "mps"))


def array(values: Any) -> Any:
    """An array of a tensor, an array, or a list of either."""
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, (list, tuple)):
        return np.asarray([array(value) for value in values])
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_sparse:
            values = values.to_dense()
        module = torch()
        if module is not None and values.dtype is module.bfloat16:
            values = values.float()
        return values.numpy()
    return np.asarray(values)


def floats(values: Any) -> Floats:
    """Rows of numbers as float32 ``[rows, width]``; a single row is one of them."""
    found = np.atleast_2d(np.asarray(array(values), dtype=np.float32))
    return found if found.size else found.reshape(0, found.shape[-1])


def name_of(value: Any) -> str | None:
    """The name of a torch dtype or device, or of a string that is one."""
    return None if value is None else str(value).removeprefix("torch.")
