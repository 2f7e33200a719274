"""What the constructors of both classes share: that library's keywords, in candlewick's."""

from __future__ import annotations

import logging
from typing import Any

from ._torch import name_of

logger = logging.getLogger("candlewick")

#: Keywords for transformers that say how something is computed or fetched, not what.
_HOW = {
    "attn_implementation",
    "cache_dir",
    "code_revision",
    "device_map",
    "load_in_8bit",
    "local_files_only",
    "low_cpu_mem_usage",
    "revision",
    "token",
    "trust_remote_code",
    "use_fast",
    "use_safetensors",
}


def options(
    *,
    device: Any,
    cache_folder: str | None,
    revision: str | None,
    local_files_only: bool,
    token: bool | str | None,
    model_kwargs: dict[str, Any] | None,
    processor_kwargs: dict[str, Any] | None,
    config_kwargs: dict[str, Any] | None,
    backend: str,
) -> dict[str, Any]:
    """The keywords of ``from_pretrained``.

    Raises:
        ValueError: Something would have an effect on the numbers and cannot be honoured.
    """
    if backend != "torch":
        logger.info("backend=%r: candlewick reads the safetensors of the repository in its place", backend)
    found: dict[str, Any] = {
        "device": device_name(device),
        "cache_dir": cache_folder,
        "revision": revision,
        "local_files_only": local_files_only,
        "token": token if isinstance(token, str) else None,
    }
    for name, given in (
        ("model_kwargs", model_kwargs),
        ("processor_kwargs", processor_kwargs),
        ("config_kwargs", config_kwargs),
    ):
        rest = {key: value for key, value in (given or {}).items() if key not in _HOW}
        if name == "model_kwargs":
            dtype = name_of(rest.pop("dtype", rest.pop("torch_dtype", None)))
            found["dtype"] = dtype or "auto"
        if name == "processor_kwargs":
            found["max_length"] = rest.pop("model_max_length", None)
        if rest:
            raise ValueError(f"{name}: {', '.join(sorted(rest))} cannot be honoured by candlewick")
    return {key: value for key, value in found.items() if value is not None}


def device_name(device: Any) -> str:
    """Candlewick's name of a device."""
    name = name_of(device) or "auto"
    return "metal" if name.partition(":")[0] == "mps" else name
