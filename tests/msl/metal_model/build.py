"""Pass B, first half: a generated kernel as a shared library that tells the runtime of every access it makes.

clang compiles it to LLVM's intermediate text with the calls of two sanitizers, whose runtimes are ours. Each call is
then given the place in the source it was made for, out of the debug information beside it, and the text is made a
library.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from metal_model import toolchain
from metal_model.check import declarations
from metal_model.syntax import DECLARATION, Generated, blank_comments

FRAME = 24 << 10  # bytes of a thread's own memory; a fiber's stack is 128 KB
FLAGS = (
    "-x", "c++", "-std=c++20", "-nostdinc", "-O1", "-gline-tables-only", "-fPIC", "-fno-exceptions", "-fno-rtti",
    "-Wno-everything", f"-Wframe-larger-than={FRAME}",
    "-fno-vectorize", "-fno-slp-vectorize", "-ffp-contract=off", "-fno-stack-protector", "-fsanitize=thread",
    "-fsanitize=array-bounds",
    "-ftrivial-auto-var-init=pattern", "-fno-color-diagnostics", "-fno-caret-diagnostics",
    "-mllvm", "-simplifycfg-hoist-common=0", "-mllvm", "-simplifycfg-sink-common=0",
    "-mllvm", "-tsan-instrument-read-before-write=1", "-mllvm", "-tsan-instrument-func-entry-exit=0",
)  # fmt: skip
FILES = ("", "body", "header", "signature")  # a place's number above its line
ATTRIBUTES = {
    "thread_position_in_grid": "position_in_grid", "thread_position_in_threadgroup": "position_in_group",
    "threadgroup_position_in_grid": "group", "threads_per_threadgroup": "group_size",
    "dispatch_threads_per_threadgroup": "group_size", "threadgroups_per_grid": "groups", "threads_per_grid": "grid",
    "grid_size": "grid", "thread_index_in_simdgroup": "lane", "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups", "dispatch_simdgroups_per_threadgroup": "simdgroups",
    "thread_index_in_threadgroup": "index", "threads_per_simdgroup": "simd_size", "thread_execution_width": "simd_size",
}  # fmt: skip
DRIVER = """
struct msl_attributes {
  uint position_in_grid[3], position_in_group[3], group[3], group_size[3], groups[3], grid[3];
  uint lane, simdgroup, simdgroups, index;
  static constexpr uint simd_size = 32;
};
MSL_INLINE uint3 msl_three(const uint* p) { uint3 v = {p[0], p[1], p[2]}; return v; }
"""
HOOK = re.compile(
    r"^(?P<head>.*@(?:__tsan_(?!init)|__ubsan_|msl_)\w+\()(?P<arguments>.*)(?P<tail>\)(?: #\d+)?(?:, !\w+ !\d+)*)$"
)
DECLARED = re.compile(r"^declare .*@(?:__tsan_(?!init)|__ubsan_|msl_)")
DEBUG = re.compile(r"!dbg !(\d+)")
THREE = re.compile(
    r"^\s+(?:%\S+ = load (?:volatile )?(?P<read><3 x \w+>), |store (?:volatile )?(?P<write><3 x \w+>) .*, )"
    r"ptr (?P<pointer>[^,]+), align"
)
METADATA = re.compile(r"^!(\d+) = (?:distinct )?!(DI\w+)\((.*)\)$", re.MULTILINE)
BYTES = {"float": 4, "half": 2, "bfloat": 2, "i8": 1, "i16": 2, "i32": 4}


def threadgroup_arrays(body: str) -> list[str]:
    """The names of a body's threadgroup variables, in order; their number is what the runtime knows them by."""
    return [match["name"] for match in DECLARATION.finditer(blank_comments(body))]


def track_threadgroup(body: str) -> str:
    """The body with each `threadgroup T a[N];` bound to memory of the runtime's."""
    clean = blank_comments(body)
    pieces, last = [], 0
    for number, m in enumerate(DECLARATION.finditer(clean)):
        kind, name = f"msl_t_{m['name']}", m["name"]
        storage = f"msl_threadgroup({number}, sizeof({kind}), sizeof(typename msl_scalar<{kind}>::type))"
        pieces += [clean[last : m.start()], m["space"]]
        pieces.append(f"typedef {m['type']} {kind}{m['dimensions']}; {kind}& {name} = *({kind}*){storage};")
        last = m.end()
    return "".join([*pieces, clean[last:]])


def execution_source(generated: Generated) -> str:
    """The kernel as C++, with an entry that the runtime calls for each thread."""
    arguments, position = [], 0
    for p in generated.parameters:
        if p.is_buffer:
            pointer = f"({p.type}*)buffers[{position}]"
            arguments.append(pointer if p.reference == "*" else f"*({pointer})")
            position += 1
        elif p.type == "uint3":
            arguments.append(f"msl_three(at->{ATTRIBUTES[p.name]})")
        else:
            arguments.append(f"at->{ATTRIBUTES[p.name]}")
    parameters = ", ".join(f"{p.type}{p.reference} {p.name}" for p in generated.parameters)
    return "\n".join([
        f'#include "{toolchain.STDLIB}"', '#line 1 "header"', generated.header, '#line 1 "signature"',
        f"MSL_INLINE void msl_kernel({parameters}) {{ {declarations(generated)}",
        '#line 1 "body"', track_threadgroup(generated.body), "}", '#line 1 "driver"', DRIVER,
        'extern "C" void msl_entry(void* const* buffers, const msl_attributes* at) {',
        f"  msl_kernel({', '.join(arguments)});", "}", "",
    ])  # fmt: skip


def library(generated: Generated) -> Path:
    """The compiled kernel. Raises toolchain.CompileError."""
    source = execution_source(generated)

    def make(path: Path) -> None:
        text = add_places(toolchain.clang(*FLAGS, "-S", "-emit-llvm", "-o", "-", "-", source=source))
        with tempfile.TemporaryDirectory() as folder:
            compiled = Path(folder) / "kernel.o"
            flags = ("-x", "ir", "-O1", "-fPIC", "-Werror", "-Wno-override-module", "-c", "-o", str(compiled))
            toolchain.clang(*flags, "-", source=text)
            toolchain.link([compiled], path)

    return toolchain.cached("so", source, make)


def add_places(text: str) -> str:
    """LLVM's text with a last argument, the place in the source, on each call of the runtime; and with calls for
    vectors of three, which ThreadSanitizer leaves out."""
    place = _places(text)
    lines = []
    for line in text.splitlines():
        debug = DEBUG.search(line)
        where = place(debug[1]) if debug else 0
        if three := THREE.match(line):
            kind = three["read"] or three["write"]
            size = 3 * BYTES[kind.removeprefix("<3 x ").removesuffix(">")]
            write = int(three["write"] is not None)
            lines.append(f"  call void @msl_access(ptr {three['pointer']}, i64 {size}, i32 {write}, i32 {where})")
        elif DECLARED.match(line):
            if "@msl_access(" in line:
                continue
            head, _, tail = line.rpartition(")")
            line = f"{head}{'' if head.endswith('(') else ', '}i32){tail}"
        elif (hook := HOOK.match(line)) and debug:
            line = f"{hook['head']}{hook['arguments']}{', ' if hook['arguments'] else ''}i32 {where}{hook['tail']}"
        lines.append(line)
    return "\n".join([*lines, "declare void @msl_access(ptr, i64, i32, i32)", ""])


def _places(text: str) -> Callable[[str], int]:
    """A function from a debug location's number to its place: the innermost line that is the kernel author's."""
    table = {m[1]: (m[2], m[3]) for m in METADATA.finditer(text)}

    def field(number: str, name: str) -> str | None:
        match = re.search(rf"\b{name}: (?:!(\d+)|(\d+)|\"([^\"]*)\")", table[number][1])
        return match[1] or match[2] or match[3] if match else None

    def file_of(scope: str | None) -> str:
        while scope and scope in table:
            if table[scope][0] == "DIFile":
                return field(scope, "filename") or ""
            scope = field(scope, "file") or field(scope, "scope")
        return ""

    def place(number: str) -> int:
        at: str | None = number
        while at and at in table:
            name = file_of(field(at, "scope"))
            if name in FILES[1:]:
                return FILES.index(name) << toolchain.LINES | int(field(at, "line") or 0)
            at = field(at, "inlinedAt")
        return 0

    return place
