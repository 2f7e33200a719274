#!/usr/bin/env python3
"""Stands in for Apple's compiler driver as rustc's linker: calls the Mach-O linker that comes with Rust.

Environment: MAC_STUB_SDK (the folder that mac_sdk.sh wrote), MAC_RUST_LLD, MACOSX_DEPLOYMENT_TARGET.
"""

import os
import subprocess
import sys
from pathlib import Path

# Options of the driver that the linker has no use for: with a value, alone, and libraries that are parts of libSystem.
WITH_VALUE = {"-arch", "-target", "-isysroot"}
ALONE = ("-mmacosx-version-min", "-m64", "-nodefaultlibs", "-fuse-ld", "-O")
IN_LIBSYSTEM = {"-lc", "-lm", "-lpthread", "-ldl"}


def expanded(arguments: list[str]) -> list[str]:
    """The arguments with response files replaced by their lines."""
    found = []
    for argument in arguments:
        is_file = argument.startswith("@") and Path(argument[1:]).is_file()
        found += Path(argument[1:]).read_text().split("\n") if is_file else [argument]
    return [argument for argument in found if argument]


def linker_arguments(arguments: list[str]) -> list[str]:
    """What the driver would hand to the linker."""
    found, rest = [], iter(arguments)
    for argument in rest:
        if argument.startswith("-Wl,"):
            found += argument[4:].split(",")
        elif argument == "-Xlinker":
            found.append(next(rest))
        elif argument in WITH_VALUE:
            next(rest)
        elif argument == "-dynamiclib":
            found.append("-dylib")
        elif not argument.startswith(ALONE) and argument not in IN_LIBSYSTEM:
            found.append(argument)
    return found


def main() -> int:
    """Link."""
    lld, sdk = os.environ["MAC_RUST_LLD"], os.environ["MAC_STUB_SDK"]
    minimum = os.environ["MACOSX_DEPLOYMENT_TARGET"]
    system = ["-arch", "arm64", "-platform_version", "macos", minimum, minimum, "-syslibroot", sdk]
    options = ["-fixup_chains", "-adhoc_codesign", "-dead_strip"]
    given = linker_arguments(expanded(sys.argv[1:]))
    library = lld.split("/lib/rustlib/")[0] + "/lib"
    return subprocess.call(
        [lld, "-flavor", "darwin", *system, *options, *given, "-lSystem"],
        env={**os.environ, "LD_LIBRARY_PATH": library},
    )


if __name__ == "__main__":
    sys.exit(main())
