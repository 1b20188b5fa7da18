"""Metal Shading Language to CUDA, word by word: what remains after it, include/cuda.cuh defines.

Address spaces go, threadgroup variables become shared memory, names of types get one meaning, and each function of a
header is marked as the device's. The words of a body that only Metal has stay as they are.
"""

import re
from functools import cache
from pathlib import Path

PRELUDE = Path(__file__).with_name("include") / "cuda.cuh"
WORD = re.compile(r"#[^\n]*|[A-Za-z_]\w*|\d[\w.]*(?:(?<=[eE])[+-]\d+\w*)?|\[\[\s*\w+\s*\]\]|\s+|.", re.DOTALL)
SPACES = {"device", "thread", "threadgroup"}
SCALARS = {
    "uint": "metal::uint", "ushort": "metal::ushort", "uchar": "metal::uchar", "ulong": "metal::ulong",
    "half": "metal::half", "bfloat": "metal::bfloat", "float16_t": "metal::half", "bfloat16_t": "metal::bfloat",
    "uint8_t": "metal::uchar", "uint16_t": "metal::ushort", "uint32_t": "metal::uint", "uint64_t": "metal::ulong",
    "int8_t": "metal::int8", "int16_t": "short", "int32_t": "int", "int64_t": "metal::int64",
    "as_type": "metal::as_type",
}  # fmt: skip
ELEMENTS = ("float", "half", "bfloat", "char", "uchar", "short", "ushort", "int", "uint")
VECTORS = {
    f"{element}{n}": f"metal::vec<{SCALARS.get(element, element)}, {n}>" for element in ELEMENTS for n in (2, 3, 4)
}
TYPES = SCALARS | VECTORS


@cache
def prelude() -> str:
    """What translated source stands on: CUDA that defines the part of Metal's library that kernels use."""
    return PRELUDE.read_text(encoding="utf-8")


def to_cuda(text: str, body: bool = False) -> str:
    """A header, or with `body` the body of a kernel, in CUDA. Lines stay where they are."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)
    text = re.sub(rf"\bmetal\s*::\s*(?=(?:{'|'.join(TYPES)})\b)", "", text)
    words = WORD.findall(text)
    if not body:
        words = _marked(words)
    out: list[str] = []
    starts = True  # a statement
    for i, word in enumerate(words):
        if word == "threadgroup" and body and starts and _declares_memory(words[i:]):
            out.append("__shared__")
        elif word == "constant":
            out.append("__constant__ const" if starts and not body else "const")
        elif word.startswith("#"):
            out.append(re.sub(r"\w+", lambda m: "" if m[0] in SPACES else TYPES.get(m[0], m[0]), word))
        elif word in SPACES or word.startswith("[["):
            out.append("")
        else:
            out.append(TYPES.get(word, word))
        starts = word in (";", "{", "}") or (starts and (word.isspace() or word == "const"))
    return "".join(out).replace("const const", "const")


def _declares_memory(words: list[str]) -> bool:
    """Whether the statement that begins here declares threadgroup memory, not a pointer or reference to some."""
    end = next((i for i, word in enumerate(words) if word in ("[", ";")), len(words))
    return not {"*", "&", "(", "="} & set(words[:end])


def _marked(words: list[str]) -> list[str]:
    """A header's words with `__device__` before each function, at its top, in a namespace or in a struct."""
    out = list(words)
    scopes: list[str] = []
    begin = 0  # where the statement begins, after its template<...>
    angles, statement = 0, list[str]()
    for i, word in enumerate(words):
        if word.isspace() or word.startswith("#"):
            continue
        outside = not scopes or scopes[-1] in ("struct", "namespace")
        if outside and not statement:
            begin = i
        statement.append(word)
        if outside and statement[0] == "template" and angles >= 0:
            angles += (word == "<") - (word == ">")
            if word == ">" and angles == 0:
                begin, angles = i + 1, -1
        if word == "{":
            kind = "namespace" if "namespace" in statement else "other"
            if outside and "(" in statement:
                out[begin] = f"__device__ {out[begin]}" if not out[begin].isspace() else f"{out[begin]}__device__ "
                kind = "function"
            elif outside and {"struct", "class"} & set(statement):
                kind = "struct"
            scopes.append(kind)
        elif word == "}" and scopes:
            scopes.pop()
        if word in (";", "{", "}") and (not scopes or scopes[-1] in ("struct", "namespace")):
            statement, angles = [], 0
    return out
