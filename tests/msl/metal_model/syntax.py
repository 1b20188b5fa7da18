"""MSL as text: comments, tokens, and the parts of what MLX generates around a body."""

import re
from dataclasses import dataclass, replace

TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<name>[A-Za-z_]\w*)|(?P<number>(?:0[xX][0-9a-fA-F]+|\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\w*)"
    r'|(?P<string>"(?:\\.|[^"\\])*")|(?P<mark><<=|>>=|->|\+\+|--|&&|\|\||::|[-+*/%&|^<>=!]=|<<|.)'
)
GENERATED = re.compile(
    r"(?P<header>.*?)(?:template <(?P<template>[^>]*)>\n)?"
    r"\[\[kernel\]\] void (?P<name>\w+)\(\n(?P<parameters>.*?)\) \{\n(?P<body>.*)\n\}\n"
    r"(?:\ntemplate \[\[host_name\(\"\w+\"\)\]\] \[\[kernel\]\] decltype\(\w+<(?P<values>[^>]*)>\).*)?\s*\Z",
    re.DOTALL,
)
PARAMETER = re.compile(r"(?P<type>.*?)(?P<reference>[*&]?) ?(?P<name>\w+) \[\[(?P<attribute>\w+)(?:\(\d+\))?\]\]")
DECLARATION = re.compile(
    r"(?:^|(?<=[;{}]))(?P<space>\s*)threadgroup\s+(?P<type>\w+(?:\s*::\s*\w+)*(?:\s*<[^;<>]*>)?)\s+"
    r"(?P<name>\w+)(?P<dimensions>(?:\s*\[[^\];]*\])*)\s*;"
)


@dataclass(frozen=True)
class Token:
    """A word of the source, where it begins, and its line from 1."""

    text: str
    kind: str  # name | number | string | mark
    start: int
    line: int


@dataclass(frozen=True)
class Parameter:
    """One parameter of a generated kernel: "const device float", "*", "x", "buffer"; attributes have no reference."""

    type: str
    reference: str
    name: str
    attribute: str

    @property
    def is_buffer(self) -> bool:
        """Whether the launch binds memory to it; else it is a number of the thread's."""
        return self.attribute == "buffer"


@dataclass(frozen=True)
class Generated:
    """What MLX makes of one launch: its signature, the template's names and values, the header and the body."""

    name: str
    header: str
    body: str
    parameters: tuple[Parameter, ...]
    template: tuple[tuple[str, str], ...]  # ("typename T", "float"), ("int N", "3")

    @property
    def buffers(self) -> list[Parameter]:
        """The parameters that are memory, in the order of their bindings."""
        return [p for p in self.parameters if p.is_buffer]

    def with_source(self, header: str, body: str) -> "Generated":
        """The same launch around another header and body."""
        return replace(self, header=header, body=body)


def parse_generated(text: str) -> Generated:
    """The parts of a source that MLX generated. Raises ValueError for text of another form."""
    match = GENERATED.fullmatch(text)
    if not match:
        raise ValueError("MLX generates kernels in a form that is not known here")
    parameters = []
    for line in match["parameters"].split(",\n"):
        parameter = PARAMETER.fullmatch(line.strip())
        if not parameter:
            raise ValueError(f"MLX generates a parameter in a form that is not known here: {line.strip()}")
        part = parameter.groupdict()
        parameters.append(Parameter(part["type"].strip(), part["reference"], part["name"], part["attribute"]))
    names = [n.strip() for n in match["template"].split(",")] if match["template"] else []
    values = [v.strip() for v in match["values"].split(",")] if match["values"] else []
    pairs = tuple(zip(names, values, strict=True))
    return Generated(match["name"], match["header"], match["body"], tuple(parameters), pairs)


def blank_comments(text: str) -> str:
    """The text with its comments made spaces; every character that is left stays where it was."""

    def blank(match: re.Match[str]) -> str:
        return match[0] if match[0].startswith('"') else re.sub(r"[^\n]", " ", match[0])

    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.DOTALL)


def tokens(text: str) -> list[Token]:
    """The words of a source, without comments and lines for the preprocessor."""
    clean = re.sub(r"^[ \t]*#[^\n]*", lambda m: " " * len(m[0]), blank_comments(text), flags=re.MULTILINE)
    found, line = [], 1
    for match in TOKEN.finditer(clean):
        if match.lastgroup != "space":
            found.append(Token(match[0], str(match.lastgroup), match.start(), line))
        line += match[0].count("\n")
    return found


def closing(words: list[Token], at: int) -> int:
    """The index of the bracket that closes the one at `at`; the last index where none does."""
    pairs = {"(": ")", "[": "]", "{": "}"}
    close, depth = pairs[words[at].text], 0
    for i in range(at, len(words)):
        depth += (words[i].text == words[at].text) - (words[i].text == close)
        if depth == 0:
            return i
    return len(words) - 1
