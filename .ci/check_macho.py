#!/usr/bin/env python3
"""Checks the extension module of a macOS wheel without a Mac; needs PyPI's lief.

check_macho.py WHEEL MODULE
"""

import sys
import tempfile
import zipfile

import lief

# Libraries of the system, by the beginnings of their names.
SYSTEM = ("/usr/lib/lib", "/System/Library/Frameworks/")


def problems(path: str, module: str) -> list[str]:
    """What is wrong with the one binary of a wheel."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith((".so", ".dylib"))]
        if len(names) != 1:
            return [f"expected one binary, found {names}"]
        binaries = lief.MachO.parse(wheel.extract(names[0], folder))
    if binaries is None or len(binaries) != 1:
        return ["expected one thin Mach-O binary"]
    binary, found = binaries.at(0), []
    if binary.header.cpu_type != lief.MachO.Header.CPU_TYPE.ARM64:
        found.append(f"architecture {binary.header.cpu_type}, expected ARM64")
    if list(binary.build_version.minos)[:1] != [15]:
        found.append(f"minimum macOS {binary.build_version.minos}, expected 15")
    libraries = [library.name for library in binary.libraries]
    found += [f"links {name}" for name in libraries if not name.startswith((*SYSTEM, "@rpath"))]
    if not any("Metal.framework" in name for name in libraries):
        found.append(f"does not link Metal: {libraries}")
    exported = {symbol.name for symbol in binary.exported_symbols}
    if f"_PyInit_{module}" not in exported:
        found.append(f"does not export _PyInit_{module}")
    if not binary.has_code_signature:
        found.append("has no code signature, which Apple Silicon demands")
    for symbol in binary.imported_symbols:
        from_library = symbol.has_binding_info and symbol.binding_info.has_library
        if not from_library and not symbol.name.startswith(("_Py", "__Py")):
            found.append(f"imports {symbol.name} from nowhere")
    if not found:
        imports = len(list(binary.imported_symbols))
        sys.stdout.write(f"{path}: arm64, macOS {binary.build_version.minos}, {imports} imports, signed\n")
    return found


if __name__ == "__main__":
    wrong = problems(*sys.argv[1:3])
    for problem in wrong:
        sys.stderr.write(f"{sys.argv[1]}: {problem}\n")
    sys.exit(1 if wrong else 0)
