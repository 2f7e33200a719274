#!/usr/bin/env bash
# Builds a wheel for macOS on Apple Silicon, with Metal, on a Linux machine, and checks its binary.
#
#   .ci/mac_wheel.sh OUT_DIR
#
# Exit 3, with a reason on stderr, means that this machine cannot have the toolchain (see darwin_sysroot.sh). Needs
# maturin and PyPI's lief. It links with the lld that comes with Rust against a stub SDK that names libraries and
# symbols and holds nothing of Apple's. Such a wheel has not run on a Mac until somebody ran it there. Not a part of
# .ci/run, and not yet run to its end for this crate.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mkdir -p "${1:?usage: mac_wheel.sh OUT_DIR}" && cd "$1" && pwd)
cache=${CANDLEWICK_CACHE:-$HOME/.cache/candlewick}
bin=$("$here/darwin_sysroot.sh" "$cache/darwin")
toolchain=$(dirname "$bin")
host=$(rustc -vV | sed -n 's/^host: //p')

export MAC_STUB_SDK=$cache/darwin/sdk MAC_RUST_LLD=$toolchain/lib/rustlib/$host/bin/rust-lld
"$here/mac_sdk.sh" "$MAC_STUB_SDK"
[ -x "$MAC_RUST_LLD" ] || { echo "no rust-lld at $MAC_RUST_LLD" >&2; exit 3; }
export PATH=$bin:$PATH SDKROOT=$MAC_STUB_SDK
# candle's Metal kernels use a class of macOS 15 unconditionally.
export MACOSX_DEPLOYMENT_TARGET=15.0
export LD_LIBRARY_PATH=$toolchain/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} # for rust-objcopy
export CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$here/mac_ld.py
# The C parts of dependencies are compiled with zig's clang, which brings headers for macOS.
cc=$cache/darwin/bin/zig-cc
printf '#!/usr/bin/env bash\nargs=()\nfor a in "$@"; do case $a in --target=* | -arch | arm64 | -mmacosx-version-min=* | -isysroot | "$SDKROOT") ;; *) args+=("$a") ;; esac; done\nexec "%s" -m ziglang cc -target aarch64-macos "${args[@]}"\n' "${PYTHON:-python3}" >"$cc"
chmod +x "$cc"
export CC_aarch64_apple_darwin=$cc

cd "$here/.."
maturin build --release --locked --target aarch64-apple-darwin --features python,metal --out "$out"
"${PYTHON:-python3}" "$here/check_macho.py" "$(ls -t "$out"/candlewick-*-macosx_*_arm64.whl | head -n 1)" _native
