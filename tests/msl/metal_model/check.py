"""Pass A: is it MSL? clang's OpenCL C++ front end with the address spaces enforced, then the lint."""

import re
from dataclasses import dataclass
from functools import cache

from metal_model import lint, toolchain
from metal_model.syntax import DECLARATION, Generated, blank_comments

FLAGS = (
    "-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-Xclang",
    "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space", "-fsyntax-only", "-DMSL_CHECK",
    "-Wno-unknown-attributes", "-Werror=implicit-float-conversion", "-Werror=uninitialized",
    "-Werror=sometimes-uninitialized", "-Werror=return-type", "-Werror=vla",
    "-fno-color-diagnostics", "-fno-caret-diagnostics",
)  # fmt: skip
UNQUALIFIED = re.compile(
    r"(?:ParmVarDecl|VarDecl) 0x\w+ <[^>]*> [^'\n]* (?P<name>\w+) '[^'\n]*__generic [^'\n]*[*&][^'\n]*'"
)


@dataclass(frozen=True)
class Complaint:
    """Why a source is refused: "body:3" or "header:12", and the reason."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def declarations(generated: Generated) -> str:
    """The template's arguments as the names they have in the body."""
    lines = []
    for declaration, value in generated.template:
        kind, name = declaration.split()
        lines.append(f"using {name} = {value};" if kind == "typename" else f"constexpr {kind} {name} = {value};")
    return " ".join(lines)


def check_source(generated: Generated) -> str:
    """The kernel for the type-check. OpenCL takes no bool*, references or atomics as a kernel's arguments, so each
    buffer comes as bytes and is bound to its own name and type within."""
    arguments, bindings = [], []
    for p in generated.parameters:
        if not p.is_buffer:
            arguments.append(f"{p.type} {p.name}")
            continue
        space = "constant" if re.search(r"\bconstant\b", p.type) else "device"
        const = "const " if p.type.startswith("const") or space == "constant" else ""
        arguments.append(f"{const}{space} uchar* raw_{p.name}")
        star = "" if p.reference == "*" else "*"
        bindings.append(f"{p.type}{p.reference} {p.name} = {star}(({p.type}*)raw_{p.name});")
    return "\n".join([
        f'#include "{toolchain.STDLIB}"', '#line 1 "header"', generated.header, '#line 1 "signature"',
        f"kernel void {generated.name}({', '.join(arguments)}) {{ {' '.join(bindings)} {declarations(generated)}",
        '#line 1 "body"', _referred(generated.body), "}", "",
    ])  # fmt: skip


def _referred(body: str) -> str:
    """The body with each single threadgroup variable as a reference: clang holds it for the thread's own, and would
    miss the value that another thread gives it."""

    def refer(m: re.Match[str]) -> str:
        if m["dimensions"]:
            return m[0]
        kind, name = m["type"], m["name"]
        return f"{m['space']}threadgroup {kind} msl_t_{name}[1]; threadgroup {kind}& {name} = msl_t_{name}[0];"

    return DECLARATION.sub(refer, blank_comments(body))


@cache
def check(generated: Generated) -> tuple[Complaint, ...]:
    """Everything Apple's compiler would refuse, as far as clang and the lint know; nothing where it is well."""
    source = check_source(generated)

    def make(path) -> None:
        path.write_text("\n".join(f"{c.place}\t{c.message}" for c in _type_check(source)))

    lines = toolchain.cached("check", source, make).read_text().splitlines()
    complaints = [Complaint(*line.split("\t", 1)) for line in lines]
    return (*complaints, *(Complaint(place, message) for place, message in lint.lint(generated)))


def _type_check(source: str) -> list[Complaint]:
    try:
        tree = toolchain.clang(*FLAGS, "-Xclang", "-ast-dump", "-", source=source)
    except toolchain.CompileError as error:
        found = re.findall(r"^([^\n:]+):(\d+):\d+: (?:fatal )?error: (.*)$", str(error), re.MULTILINE)
        return [Complaint(f"{name}:{line}", message) for name, line, message in found] or [Complaint("?", str(error))]
    return _unqualified(tree)


def _unqualified(tree: str) -> list[Complaint]:
    """Pointers and references declared without an address space: OpenCL makes them generic, Metal has no such thing."""
    if not UNQUALIFIED.search(tree):  # the usual case; what follows reads places, each told from the one before
        return []
    complaints, file, line = [], "", ""
    for row in tree.splitlines():
        for name, number in re.findall(r"([^\s,<>:]+):(\d+):\d+", row.partition("'")[0]):
            file, line = (file if name == "line" else name), number
        if (match := UNQUALIFIED.search(row)) and file in ("body", "header"):
            message = f"{match['name']}: a pointer or reference without an address space"
            complaints.append(Complaint(f"{file}:{line}", message))
    return complaints
