"""Runs Metal shaders on the CPU from numpy: for tests of the shaders alone.

A dispatch runs every thread of a threadgroup as a fiber (runtime.cpp). Buffers end at a page that may not be touched,
threadgroup memory starts as NaN, and `seed` changes the order in which threads run between barriers.
"""

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PAGE = 4096
_libc = ctypes.CDLL(None)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def why_not() -> str | None:
    """What is missing here, if anything."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the executor's fibers are written for x86-64 Linux"
    try:
        import ziglang  # noqa: F401
    except ImportError:
        return "no clang for the shaders: pip install ziglang"
    return None


def compile_shader(source: str, folder: Path) -> "Shader":
    """Compiles a Metal source with its address spaces checked, once for each content."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(source.encode())
    for path in sorted(HERE.rglob("*")):
        if path.is_file() and path.suffix in {".h", ".cpp", ".py", ".sh"}:
            digest.update(path.read_bytes())
    shared = folder / f"{digest.hexdigest()[:16]}.so"
    if not shared.exists():
        text = shared.with_suffix(".metal")
        text.write_text(source)
        environment = {**os.environ, "PYTHON": sys.executable, "MSL_STRICT": "1"}
        done = subprocess.run([HERE / "compile.sh", text, shared], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the shader does not compile:\n{done.stdout}{done.stderr}")
    return Shader(shared)


class Buffer:
    """A device buffer with the contents of an array; the first byte after it is out of bounds."""

    def __init__(self, array: np.ndarray):
        array = np.ascontiguousarray(array)
        self.dtype, self.shape, self.bytes = array.dtype, array.shape, array.nbytes
        pages = max(1, -(-self.bytes // PAGE))
        self._memory = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = start + pages * PAGE - self.bytes
        ctypes.memmove(self.address, array.ctypes.data, self.bytes)
        _libc.mprotect(start + pages * PAGE, PAGE, 0)

    def array(self) -> np.ndarray:
        """What the buffer holds now."""
        raw = (ctypes.c_char * self.bytes).from_address(self.address)
        return np.frombuffer(raw, self.dtype).reshape(self.shape).copy()


class Shader:
    """The kernels of one compiled source."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self._library.msl_dispatch.restype = ctypes.c_char_p
        self._library.msl_dispatch.argtypes = [
            ctypes.c_char_p,
            *[ctypes.c_void_p] * 2,
            ctypes.c_uint32,
            *[ctypes.c_void_p] * 2,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_void_p,
        ]
        self._library.msl_kernel_name.restype = ctypes.c_char_p

    def kernels(self) -> list[str]:
        """The names that a dispatch can ask for."""
        names, index = [], 0
        while name := self._library.msl_kernel_name(index):
            names.append(name.decode())
            index += 1
        return names

    def run(self, kernel: str, buffers: list, groups: tuple, threads: tuple, *, seed: int = 0) -> None:
        """Dispatches `groups` threadgroups of `threads`; arrays are copied in, a `Buffer` can be read afterwards."""
        held = [b if isinstance(b, Buffer) else Buffer(np.atleast_1d(b)) for b in buffers]
        pointers = (ctypes.c_void_p * len(held))(*[b.address for b in held])
        none = (ctypes.c_uint32 * 1)()
        grid, group = (ctypes.c_uint32 * 3)(*groups), (ctypes.c_uint32 * 3)(*threads)
        divergent = ctypes.c_uint64()
        fault = self._library.msl_dispatch(
            kernel.encode(), pointers, none, 0, grid, group, 0, seed, ctypes.byref(divergent)
        )
        if fault:
            raise RuntimeError(fault.decode())
