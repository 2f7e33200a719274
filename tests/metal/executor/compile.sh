#!/usr/bin/env bash
# Compiles a Metal source into a shared object that a CPU runs.
#
#   compile.sh FILE.metal OUT.so [KERNEL]      all kernels, or one
#
# Address spaces are checked by the compiler, as Metal does, where the source allows it. Candle's do not all: they copy
# structs out of threadgroup memory, for which clang has no constructor. With MSL_STRICT=1 there is no second attempt.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$1 out=$2 kernel=${3:-}
python=${PYTHON:-python3}
flags=(-std=c++17 "-O${MSL_OPTIMIZE:-1}" -fPIC "-I$here/include" -Wno-unknown-attributes -shared)

"$python" "$here/translate.py" "$source" "$out.cpp" "$kernel" "-I$(dirname "$source")"
compile() { "$python" -m ziglang c++ "${flags[@]}" "$@" "$out.cpp" "$here/runtime.cpp" -o "$out.part"; }
if ! compile -DMSL_STRICT_AS 2>"$out.strict.log"; then
  if [ -n "${MSL_STRICT:-}" ]; then cat "$out.strict.log" >&2; exit 1; fi
  compile
fi
mv "$out.part" "$out"
