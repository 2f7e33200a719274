#!/usr/bin/env bash
# Lets candlewick's own tests run on `Device::Metal` on Linux, where there is no Metal: for correctness, not for speed.
#
#   pretend.sh COMMAND…      runs COMMAND (a cargo command, say) in a folder with the same crate, with feature `metal`
#                            compiled against a pretend Objective-C runtime and Metal (fake/), whose shaders a CPU
#                            executes (executor/)
#
# Exit 3, with a reason on stderr, means that this machine cannot have it; any other failure is a fault of the build or
# of COMMAND. Needs g++, Python with PyPI's `ziglang` (a clang that knows bf16), and an x86-64 machine.
# CANDLEWICK_CACHE (default: ~/.cache/candlewick) keeps compiled shaders by content.
#
# Two crates are patched, for this only and never for a release: candle-core (one call that exists on Apple only) and
# objc2-metal (a framework is linked where there are frameworks).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${CANDLEWICK_CACHE:-$HOME/.cache/candlewick}/pretend-metal
python=${PYTHON:-python3}

say() { echo "pretend.sh: $*" >&2; }
cannot() { say "$*"; exit 3; }

[ "$(uname -sm)" = "Linux x86_64" ] || cannot "the executor's fibers are written for x86-64 Linux"
command -v g++ >/dev/null || cannot "no g++"
"$python" -c 'import ziglang' 2>/dev/null || cannot "no clang for the shaders: $python -m pip install ziglang"
mkdir -p "$cache"

# --- the pretend library ----------------------------------------------------------------------------------
lib=$cache/lib
made_of=$(cat "$here"/fake/* | sha256sum)
if [ "$(cat "$lib/made-of" 2>/dev/null)" != "$made_of" ]; then
  mkdir -p "$lib"
  g++ -std=c++17 -O1 -fPIC -shared "$here/fake/fake_metal.cpp" -o "$lib/libobjc.so" -ldl
  for name in gnustep-base dispatch BlocksRuntime Metal; do echo | gcc -shared -x c - -o "$lib/lib$name.so"; done
  echo "$made_of" >"$lib/made-of"
fi

# --- the patched crates, from the registry's sources of the locked versions -------------------------------
version_of() { awk -v name="$1" '$0 == "name = \"" name "\"" { getline; gsub(/[^0-9.]/, ""); print }' "$root/Cargo.lock"; }
edited() { # file expression: applies the expression and fails if it changed nothing
  cp "$1" "$1.before"
  sed -i "$2" "$1"
  if cmp -s "$1" "$1.before"; then say "$1: nothing to patch for $2"; exit 1; fi
  rm "$1.before"
}
patched=$cache/patched-$(version_of candle-core)-$(version_of objc2-metal)
if [ ! -e "$patched" ]; then
  (cd "$root" && cargo fetch --locked --quiet)
  rm -rf "$patched.part"
  mkdir -p "$patched.part"
  for name in candle-core objc2-metal; do
    cp -r "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-$(version_of $name)" "$patched.part/$name"
  done
  edited "$patched.part/objc2-metal/src/generated/mod.rs" \
    's/^#\[link(name = "Metal", kind = "framework")\]/#[cfg_attr(target_vendor = "apple", link(name = "Metal", kind = "framework"))]/'
  edited "$patched.part/objc2-metal/Cargo.toml" 's/^build = false/build = "build.rs"/'
  printf 'fn main() {\n    println!("cargo:rustc-link-search=native=%s");\n}\n' "$lib" >"$patched.part/objc2-metal/build.rs"
  # Only used to capture GPU traces.
  edited "$patched.part/candle-core/src/metal_backend/device.rs" \
    's/let url = NSURL::from_file_path(path);/let _ = path; let url = NSURL::URLWithString(\&objc2_foundation::NSString::from_str(""));/'
  mv "$patched.part" "$patched"
fi

# --- the same crate, with another manifest ----------------------------------------------------------------
crate=$cache/crate-$(echo "$root" | sha256sum | cut -c1-8)
mkdir -p "$crate"
for entry in "$root"/*; do
  name=$(basename "$entry")
  case $name in Cargo.toml | Cargo.lock | target) ;; *) ln -sfn "$entry" "$crate/$name" ;; esac
done
"$python" - "$root/Cargo.toml" "$patched" >"$crate/Cargo.toml.new" <<'PYTHON'
import re
import sys

manifest, patched = open(sys.argv[1]).read(), sys.argv[2]
# The runtime whose calls the pretend library answers is GNUstep's; its classes do not describe their methods.
runtime, unchecked = '"gnustep-2-1"', '"disable-encoding-assertions"'
manifest = re.sub(r"^objc2 = \{", f"objc2 = {{ features = [{runtime}, {unchecked}],", manifest, flags=re.M)
others = "".join(f'{name} = {{ version = "{version}", features = [{runtime}] }}\n' for name, version in
                 [("block2", "0.6"), ("objc2-foundation", "0.3")])
manifest = manifest.replace("[dependencies]\n", "[dependencies]\n" + others, 1)
patches = "".join(f'{name} = {{ path = "{patched}/{name}" }}\n' for name in ["objc2-metal", "candle-core"])
print(manifest + "\n[patch.crates-io]\n" + patches, end="")
PYTHON
# The locked versions, with what the patches change in their entries.
if ! cmp -s "$crate/Cargo.toml.new" "$crate/Cargo.toml" || [ "$root/Cargo.lock" -nt "$crate/Cargo.lock" ]; then
  mv "$crate/Cargo.toml.new" "$crate/Cargo.toml"
  cp "$root/Cargo.lock" "$crate/Cargo.lock"
else
  rm "$crate/Cargo.toml.new"
fi

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
export LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
executor=$(find "$here/executor" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 cat | sha256sum | cut -c1-12)
export FAKE_METAL_COMPILE=$here/executor/compile.sh FAKE_METAL_CACHE=$cache/shaders-$executor PYTHON=$python
# In candle's kernels threads return before a barrier that others wait at, which hardware forgives.
export MSL_LAX=1
cd "$crate"
"$@"
