#!/usr/bin/env bash
# Makes `cargo check --target aarch64-apple-darwin` possible on a Linux machine, for code that only a Mac compiles.
#
#   darwin_sysroot.sh DIR [TARGET]      prints the folder to put first in PATH; progress goes to stderr
#
# Exit 3, with a reason on stderr, means that this machine cannot have it; any other failure is a fault.
# It links nothing and runs nothing: DIR/bin holds a compiler stand-in that writes empty objects, which is all
# that build scripts need when only types are checked.
#
# rustup may not be able to reach the target, but Debian packages the sources of Rust's standard library.
# With the sources of exactly the installed rustc, std is compiled once into a private toolchain folder of
# hard links; the installed toolchain and the machine's package lists stay as they are.
set -euo pipefail

out=${1:?usage: darwin_sysroot.sh DIR [TARGET]}
target=${2:-aarch64-apple-darwin}
suites=${CANDLEWICK_DEBIAN_SUITES:-trixie-backports sid testing experimental}

say() { echo "darwin_sysroot: $*" >&2; }
cannot() { say "$*"; exit 3; }

host=$(rustc -vV | sed -n 's/^host: //p')
version=$(rustc -vV | sed -n 's/^release: //p')
installed=$(rustc --print sysroot)
mkdir -p "$out/bin"
out=$(cd "$out" && pwd)

# --- a C compiler and archiver for build scripts: they only have to leave a file behind -------------------
cat >"$out/bin/empty-cc" <<'CC'
#!/usr/bin/env bash
# Writes an empty object wherever a compiler, or an archive wherever an archiver, was asked to.
previous=
for argument in "$@"; do
  if [ "$previous" = -o ]; then : >"$argument"; fi
  case $argument in *.a) [ -e "$argument" ] || printf '!<arch>\n' >"$argument" ;; esac
  previous=$argument
done
CC
chmod +x "$out/bin/empty-cc"

use() { # the folder with cargo and rustc
  echo "$1"
  exit 0
}

# --- a toolchain that already has the target needs nothing ------------------------------------------------
has_std() { compgen -G "$1/lib/rustlib/$target/lib/libstd-*.rlib" >/dev/null; }
if has_std "$installed"; then use "$installed/bin"; fi

stamp=$out/ready-$version-$target
toolchain=$out/toolchain-$version
if [ -e "$stamp" ] && has_std "$toolchain"; then use "$toolchain/bin"; fi

# --- the sources of std, of exactly this version ----------------------------------------------------------
sources=$installed/lib/rustlib/src/rust/library
if [ ! -d "$sources" ]; then
  sources=$out/source-$version/library
fi
if [ ! -d "$sources" ]; then
  for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null || cannot "no $target in this toolchain and no $tool to fetch std's sources with"
  done
  keyring=$(compgen -G '/usr/share/keyrings/debian-archive-keyring.*' | head -n 1) || true
  [ -n "$keyring" ] || cannot "no Debian archive keyring in /usr/share/keyrings"
  mirror=$(awk '/^URIs:/ && /\/debian\/?$/ { print $2; exit }' /etc/apt/sources.list.d/*.sources 2>/dev/null) || true
  apt=$out/apt
  rm -rf "$apt"
  mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,parts,preferences,download}
  : >"$apt/state/status"
  cat >"$apt/parts/debian.sources" <<SOURCES
Types: deb
URIs: ${mirror:-http://deb.debian.org/debian}
Suites: $suites
Components: main
Signed-By: $keyring
SOURCES
  cat >"$apt/apt.conf" <<CONF
Dir::State "$apt/state";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/parts";
Dir::Etc::preferencesparts "$apt/preferences";
Acquire::Languages "none";
APT::Sandbox::User "$(id -un)";
CONF
  say "fetching the sources of std $version from Debian"
  APT_CONFIG=$apt/apt.conf apt-get update -qq >&2 || cannot "the Debian archive cannot be reached"
  package=$(APT_CONFIG=$apt/apt.conf apt-cache madison rust-src |
    awk -v version="$version" 'index($3, version "+") == 1 || index($3, version "-") == 1 { print $3; exit }')
  if [ -z "$package" ]; then
    have=$(APT_CONFIG=$apt/apt.conf apt-cache madison rust-src | awk '{ print $3 }' | sort -u | paste -sd' ')
    cannot "Debian has no rust-src $version (it has: ${have:-none}); try: rustup target add $target"
  fi
  (cd "$apt/download" && APT_CONFIG=$apt/apt.conf apt-get download -qq "rust-src=$package" >&2) ||
    cannot "rust-src $package could not be downloaded"
  rm -rf "$out/source-$version.part"
  mkdir -p "$out/source-$version.part"
  dpkg-deb --fsys-tarfile "$apt"/download/rust-src_*.deb |
    tar -x -C "$out/source-$version.part" --strip-components=4 --wildcards './usr/src/rustc-*/library/*'
  mv "$out/source-$version.part" "$out/source-$version"
  rm -rf "$apt"
fi

# --- a private toolchain with std for the target ----------------------------------------------------------
if [ ! -x "$toolchain/bin/rustc" ]; then
  rm -rf "$toolchain.part"
  # Hard links where the file system allows them; documentation is not needed.
  mkdir -p "$toolchain.part"
  for part in bin lib libexec; do
    [ -d "$installed/$part" ] || continue
    cp -al "$installed/$part" "$toolchain.part/" 2>/dev/null || cp -a "$installed/$part" "$toolchain.part/"
  done
  mv "$toolchain.part" "$toolchain"
fi
mkdir -p "$toolchain/lib/rustlib/src/rust"
[ -e "$toolchain/lib/rustlib/src/rust/library" ] || ln -s "$sources" "$toolchain/lib/rustlib/src/rust/library"

say "compiling std $version for $target (once)"
build=$out/build
rm -rf "$build"
mkdir -p "$build/src"
cat >"$build/Cargo.toml" <<MANIFEST
[package]
name = "std-for-target"
version = "0.0.0"
edition = "2021"
[profile.release]
debug = 0
MANIFEST
: >"$build/src/lib.rs"
(cd "$build" && PATH=$toolchain/bin:$PATH RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$build/target \
  cargo build -q --release --target "$target" -Zbuild-std=std,panic_unwind,panic_abort,proc_macro,test >&2)
library=$toolchain/lib/rustlib/$target/lib
mkdir -p "$library"
find "$build/target/$target/release" -name 'lib*.rlib' ! -name 'libstd_for_target*' -exec cp {} "$library/" \;
has_std "$toolchain" || { say "std for $target was not built"; exit 1; }
rm -rf "$build"
: >"$stamp"
say "built for $host: $(find "$library" -name '*.rlib' | wc -l) libraries, $(du -sh "$library" | cut -f1)"
use "$toolchain/bin"
