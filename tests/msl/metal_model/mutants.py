"""Planted bugs, everywhere: each barrier deleted, each barrier's flag wrong, each index and pointer one too far.

All mutants of a kernel are compiled as one; which of them is alive the runtime is told before a launch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
from metal_model import toolchain
from metal_model.capture import Kernel
from metal_model.lint import STATEMENTS
from metal_model.simulated import KernelFault, simulated_metal
from metal_model.syntax import Token, closing, tokens
from mlxgpt.kernels.verify import Case, check

BARRIERS = ("threadgroup_barrier", "simdgroup_barrier")
SPACES = ("device", "constant", "threadgroup")


@dataclass(frozen=True)
class Mutant:
    """One planted bug: its number in the compiled kernel, what it is, and the line it is in."""

    number: int
    kernel: str
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.what}: {self.source}"


def instrument(kernel: Kernel, first: int = 0) -> tuple[Kernel, list[Mutant]]:
    """The kernel with all of its mutants in it, numbered from `first`, none alive."""
    mutants: list[Mutant] = []
    changed = {}
    for part, text in (("header", kernel.header), ("source", kernel.source)):
        edits: list[tuple[int, int, str]] = []  # from, to, text
        lines = text.splitlines()
        names = set(kernel.input_names + kernel.output_names) if part == "source" else set()
        for token, what, make in _mutations(text, names):
            number = first + len(mutants)
            mutants.append(Mutant(number, kernel.name, what, lines[token.line - 1].strip()))
            edits += make(f"msl_pick({number})")
        for start, end, inserted in sorted(edits, key=lambda e: -e[0]):
            text = text[:start] + inserted + text[end:]
        changed[part] = text
    return replace(kernel, **changed), mutants


Edits = list[tuple[int, int, str]]
Mutation = tuple[Token, str, Callable[[str], Edits]]


def _mutations(text: str, names: set[str]) -> Iterator[Mutation]:
    words = tokens(text)
    names = names | set(_pointers(words)) | set(_arrays(words))
    for i, word in enumerate(words):
        following = words[i + 1].text if i + 1 < len(words) else ""
        before = words[i - 1] if i else None
        if word.text in BARRIERS and following == "(":
            yield from _barrier(words, i)
        elif word.text in names and following == "[" and not _is_type(before):
            at = i + 1
            while at < len(words) and words[at].text == "[":
                end = closing(words, at)
                yield word, f"index {text[words[at].start + 1 : words[end].start]} + 1", _plus(words[at], words[end])
                at = end + 1
        elif word.text in names and before and before.text == "*" and following == "=":
            end = next(j for j in range(i, len(words)) if words[j].text == ";")
            yield word, "pointer + 1", _plus(words[i + 1], words[end])


def _plus(left: Token, right: Token) -> Callable[[str], Edits]:
    """One more than the expression between two words."""
    after = left.start + len(left.text)
    return lambda pick: [(after, after, " ("), (right.start, right.start, f") + {pick}")]


def _barrier(words: list[Token], i: int) -> Iterator[Mutation]:
    start = words[i - 2] if i > 1 and words[i - 1].text == "::" else words[i]
    end = closing(words, i + 1)
    yield words[i], f"{words[i].text} deleted", lambda pick: [(start.start, start.start, f"if (!{pick}) ")]
    flags = {w.text for w in words[i + 2 : end]} & {"mem_threadgroup", "mem_device"}
    for flag in sorted({"mem_threadgroup", "mem_device"} - (flags if len(flags) == 1 else set())) if flags else ():
        opening = words[i + 1].start + 1

        def edits(pick: str, flag: str = flag, opening: int = opening) -> Edits:
            return [(opening, opening, f"{pick} ? mem_flags::{flag} : ("), (words[end].start, words[end].start, ")")]

        yield words[i], f"{words[i].text} with {flag} alone", edits


def _is_type(token: Token | None) -> bool:
    return token is not None and (token.text == ">" or (token.kind == "name" and token.text not in STATEMENTS))


def _pointers(words: list[Token]) -> Iterator[str]:
    """Names declared as pointers into memory that is shared."""
    for i, word in enumerate(words[1:-1], 1):
        if word.text == "*" and words[i + 1].kind == "name":
            back = i - 1
            while back >= 0 and words[back].text not in ("(", ",", ";", "{", "}", "="):
                back -= 1
            if any(w.text in SPACES for w in words[back + 1 : i]):
                yield words[i + 1].text


def _arrays(words: list[Token]) -> Iterator[str]:
    for i, word in enumerate(words):
        if word.text == "threadgroup":
            end = next((j for j in range(i, len(words)) if words[j].text in (";", "[", "*", "&", "(")), i)
            if end < len(words) and words[end].text == "[":
                yield words[end - 1].text


def survivors(cases: list[Case], dtype: mx.Dtype = mx.float32) -> tuple[list[Mutant], list[Mutant]]:
    """All mutants of the kernels that the cases launch, and those that no case notices, by a finding or by a value."""
    found: dict[Kernel, tuple[Kernel, list[Mutant]]] = {}

    def change(kernel: Kernel) -> Kernel:
        if kernel not in found:
            found[kernel] = instrument(kernel, sum(len(mutants) for _, mutants in found.values()))
        return found[kernel][0]

    toolchain.runtime().msl_select(-1)
    with simulated_metal(change):
        wrong = [c.name for c in cases if not check(c, dtype).passed]
        assert not wrong, f"cases that fail without any mutant: {wrong}"
    mutants = [m for _, several in found.values() for m in several]
    alive, order = [], list(cases)
    try:
        for mutant in mutants:
            toolchain.runtime().msl_select(mutant.number)
            killer = next((c for c in order if _notices(c, dtype, change)), None)
            if killer is None:
                alive.append(mutant)
            else:
                order.sort(key=lambda c: c is not killer)
    finally:
        toolchain.runtime().msl_select(-1)
    return mutants, alive


def _notices(case: Case, dtype: mx.Dtype, change: Callable[[Kernel], Kernel]) -> bool:
    try:
        with simulated_metal(change):
            return not check(case, dtype).passed
    except KernelFault as fault:
        if any(f.kind in ("compile", "launch") for f in fault.findings):
            raise  # that is no mutant: it could not even be run
        return True
