"""Loads the compiled module with an allocator that keeps freed memory for two seconds.

A training step, or a long prompt, needs the same large buffers again and again; giving each back to the system at once
means that the system clears its pages every time, a large part of a training step. ``MIMALLOC_PURGE_DELAY``
(milliseconds) in the environment wins. Source: the options of mimalloc.
"""

import os

_OPTION = "MIMALLOC_PURGE_DELAY"
_MILLISECONDS = "2000"

if _OPTION in os.environ:
    from . import _native
else:
    # Read once, while the module is loaded; nobody else should inherit it.
    os.environ[_OPTION] = _MILLISECONDS
    try:
        from . import _native
    finally:
        del os.environ[_OPTION]

__all__ = ["_native"]
