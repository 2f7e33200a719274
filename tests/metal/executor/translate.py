#!/usr/bin/env python3
"""Turns a Metal source into C++ for `msl_shim.h`, with a table of its kernels.

    translate.py FILE.metal OUT.cpp KERNEL [-I DIR…]      KERNEL may be empty: all of them

It rewrites what C++ does not know: threadgroup variables inside of kernels become static, so that the fibers of a group
share them; function constants become variables; instantiations with a `host_name` become entries of the table. Every
kernel gets a function that binds its arguments by their `[[attributes]]`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

CLANG = os.environ.get("MSL_CXX", sys.executable + " -m ziglang c++").split()

# What an attribute of an argument is among the numbers that runtime.cpp gives a thread: vectors, then scalars.
VECTORS = {
    "thread_position_in_grid": "tpig",
    "threadgroup_position_in_grid": "tgpig",
    "thread_position_in_threadgroup": "tpitg",
    "threads_per_threadgroup": "tptg",
    "dispatch_threads_per_threadgroup": "tptg",
    "threads_per_grid": "tpg",
    "threadgroups_per_grid": "tgpg",
}
SCALARS = {
    "thread_index_in_threadgroup": "tiitg",
    "thread_index_in_simdgroup": "tiisg",
    "simdgroup_index_in_threadgroup": "sgitg",
    "simdgroups_per_threadgroup": "sgptg",
}
KERNEL = re.compile(
    r"(?P<template>template\s*<[^;{}]*?>\s*)?"
    r"(?:\[\[\s*(?:kernel|max_total_threads_per_threadgroup\([^)]*\))\s*(?:,[^\]]*)?\]\]\s*)?"
    r"(?P<keyword>\bkernel\s+)?(?:\[\[[^\]]*\]\]\s*)*void\s+(?P<name>\w+)\s*\("
)


def preprocess(text: str, include: list[str]) -> str:
    """The source after the preprocessor, with nothing left that it would not find."""
    text = re.sub(r"#\s*include\s*<metal_[a-z_]+>", "", text)
    # Constructors that are qualified with an address space.
    text = re.sub(
        r"\b(?:constexpr\s+)?\w+(<\w+>)?\s*\(\)\s*(?:thread|threadgroup|device|constant)\s*=\s*default;", "", text
    )
    flags = ["-D__METAL_VERSION__=320", "-D__HAVE_BFLOAT__=1", "-DMETAL_FUNC=METAL_FUNC"]
    command = [*CLANG, "-E", "-P", "-x", "c++", "-std=c++17", *flags, *include, "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def rewrite(text: str) -> str:
    """What Metal allows and clang's C++ does not."""
    # Threadgroup variables that are declared in a body: no parameters, no pointers.
    one = r"\w+\s*(?:\[[^;]*?\])*\s*"
    text = re.sub(
        rf"(?<=[;{{}}:\n])(\s*)threadgroup\s+((?:[\w:]+\s*(?:<[^;(){{}}]*?>)?\s+)+)({one}(?:,\s*{one})*;)",
        r"\1MSL_TG threadgroup \2\3",
        text,
    )
    # Copies of whole structs between address spaces, for which clang has no constructor.
    text = re.sub(
        r"\*\s*\(\(threadgroup (\w+)\s*\*\)\s*\((.*?)\)\)\s*=\s*"
        r"\*\s*\(\((?:const )?device (?:const )?\1\s*\*\)\s*\((.*?)\)\);",
        r"msl_copy<\1>(\2, \3);",
        text,
        flags=re.S,
    )
    text = re.sub(r"\bstatic_cast\s*<", "msl_cast<", text)

    def half_literal(found: re.Match) -> str:
        digits = found.group(1)
        return f"((half){digits if '.' in digits or 'e' in digits.lower() else digits + '.0'}f)"

    text = re.sub(r"(?<![\w.])(\d+\.\d*(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\d+\.?)h\b", half_literal, text)
    # Casts to vectors.
    names = "float|half|bfloat|int|uint|short|ushort|char|uchar"
    return re.sub(rf"\(({names})([234])\)\s*(?=[\w(*])", r"msl_to<\1\2>()->*", text)


def split_arguments(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts, depth, current = [], 0, ""
    for letter in text:
        depth += {"(": 1, "<": 1, "[": 1, "{": 1, ")": -1, ">": -1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += letter
    return parts + ([current.strip()] if current.strip() else [])


def closing(text: str, start: int) -> int:
    """The parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    sys.exit(f"unbalanced parentheses after {text[start : start + 80]!r}")


def binding(parameters: str, function: str) -> tuple[str, str]:
    """For each buffer index `r`ead, `w`ritten or `-`, and the function that calls a kernel with its arguments."""
    arguments, buffer, threadgroup, kinds = [], 0, 0, {}
    for parameter in split_arguments(parameters):
        attributes = {
            name: value
            for group in re.findall(r"\[\[(.*?)\]\]", parameter)
            for name, value in re.findall(r"(\w+)(?:\s*\(([^)]*)\))?", group)
        }
        body = re.sub(r"\[\[.*?\]\]", "", parameter)
        vector = next((VECTORS[a] for a in attributes if a in VECTORS), None)
        scalar = next((SCALARS[a] for a in attributes if a in SCALARS), None)
        if "threads_per_simdgroup" in attributes:
            arguments.append("MslId{uint3{32,0,0}}")
        elif vector:
            arguments.append(f"MslId{{ids.{vector}}}")
        elif scalar:
            arguments.append(f"MslId{{uint3{{ids.{scalar},0,0}}}}")
        elif re.search(r"\bthreadgroup\b", body):
            index = int(attributes.get("threadgroup") or threadgroup)
            threadgroup = index + 1
            arguments.append(f"MslPtr{{tg[{index}]}}")
        else:
            index = int(attributes.get("buffer") or buffer)
            buffer = index + 1
            arguments.append(f"{'MslRef' if '&' in body else 'MslPtr'}{{bufs[{index}]}}")
            read_only = re.search(r"\b(const|constant)\b", body)
            kinds[index] = "-" if "function_constant" in attributes else "r" if read_only else "w"
    access = "".join(kinds.get(i, "-") for i in range(max(kinds, default=-1) + 1))
    unused = "(void)ids; (void)bufs; (void)tg;"
    call = f"{function}({', '.join(arguments)});"
    return access, f"[](void** bufs, void** tg) {{ const MslIds& ids = *msl_ids(); {unused} {call} }}"


def translate(text: str) -> tuple[str, list, list]:
    """The C++, the kernels as (name, binding), and the function constants as (index, name)."""
    constants = []

    def constant(found: re.Match) -> str:
        kind, name, index = found.groups()
        constants.append((index, name))
        return f"static {kind} {name}; static bool {name}__defined;"

    attribute = r"\[\[\s*function_constant\((\d+)\)\s*\]\]"
    text = re.sub(rf"\bconstant\s+([\w ]+?)\s+(\w+)\s*{attribute}\s*;", constant, text)
    text = re.sub(r"is_function_constant_defined\((\w+)\)", r"\1__defined", text)

    kernels, templates = [], {}
    for found in KERNEL.finditer(text):
        if not found["keyword"] and not re.search(r"\[\[\s*kernel", found.group(0)):
            continue
        end = closing(text, found.end() - 1)
        if text[end + 1 :].lstrip()[:1] == ";":
            continue  # an explicit instantiation, below
        parameters = text[found.end() : end]
        if found["template"]:
            templates[found["name"]] = parameters
        else:
            kernels.append((found["name"], binding(parameters, found["name"])))

    def instantiation(found: re.Match) -> str:
        name, what = "".join(re.findall(r'"([^"]*)"', found.group(1))), found.group(2)
        function = (
            re.search(r"decltype\(\s*(\w+)\s*<(.*)>\s*\)\s*\w+", what, re.S)
            or re.search(r"void\s+(\w+)\s*<(.*?)>\s*\(", what, re.S)
            or re.search(r"(\w+)\s*<(.*)>\s*$", what, re.S)
        )
        if function and function[1] in templates:
            full = f"{function[1]}<{function[2]}>"
            kernels.append((name, binding(templates[function[1]], full)))
        return ""

    text = re.sub(r'template\s*\[\[\s*host_name\(\s*((?:"[^"]*"\s*)+)\)\s*\]\]\s*([^;]*);', instantiation, text)
    # Every other attribute was read above and means nothing here.
    return re.sub(r"\[\[[^\[\]]*?\]\]", "", text), kernels, constants


def main() -> None:
    source, out, only, include = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    text, kernels, constants = translate(rewrite(preprocess(source.read_text(), include)))
    kernels = [kernel for kernel in kernels if only in ("", kernel[0])]
    table = "".join(f'  {{"{name}", "{access}", {call}}},\n' for name, (access, call) in kernels)
    values = "".join(f"{{{index}, &{name}, sizeof({name}), &{name}__defined}}, " for index, name in constants)
    out.write_text(
        '#include "msl_shim.h"\nusing namespace metal;\n'
        f"{text}\n"
        f'extern "C" MslKernel msl_kernels[] = {{\n{table}  {{nullptr, nullptr, nullptr}}}};\n'
        f'extern "C" MslConst msl_consts[] = {{{values}{{0, nullptr, 0, nullptr}}}};\n'
    )
    if not kernels:
        sys.exit(f"{source}: no kernel {only}")


if __name__ == "__main__":
    main()
