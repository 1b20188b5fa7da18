"""What clang takes and Apple's compiler, or MLX around it, would not: rules on the words of a source."""

import re
from collections.abc import Iterator
from itertools import pairwise

from metal_model.syntax import DECLARATION, Generated, Token, closing, tokens

BANNED = {
    "double": "Metal has no double", "static": "no static variables", "goto": "no goto", "new": "no new",
    "delete": "no delete", "try": "no exceptions", "throw": "no exceptions", "catch": "no exceptions",
    "virtual": "no virtual functions", "typeid": "no RTTI", "dynamic_cast": "no RTTI", "noexcept": "no noexcept",
    "register": "no register variables", "thread_local": "no thread_local", "asm": "no asm", "std": "no std::",
    "printf": "no printf", "long4": "vectors of 64-bit integers are not modelled", "ulong4": "vectors of 64-bit "
    "integers are not modelled",
}  # fmt: skip
# MLX finds these in the body, by substring, and makes each a parameter of the kernel.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup", "dispatch_simdgroups_per_threadgroup", "dispatch_threads_per_threadgroup",
    "grid_origin", "grid_size", "quadgroup_index_in_threadgroup", "quadgroups_per_threadgroup",
    "simdgroup_index_in_threadgroup", "simdgroups_per_threadgroup", "thread_execution_width",
    "thread_index_in_quadgroup", "thread_index_in_simdgroup", "thread_index_in_threadgroup",
    "thread_position_in_grid", "thread_position_in_threadgroup", "threadgroup_position_in_grid",
    "threadgroups_per_grid", "threads_per_grid", "threads_per_simdgroup", "threads_per_threadgroup",
}  # fmt: skip
PRELUDE = {
    "Limits", "ceildiv", "cast_to", "elem_to_loc", "elem_to_loc_1", "elem_to_loc_2", "elem_to_loc_3",
    "elem_to_loc_2_nd", "elem_to_loc_3_nd", "LoopedElemToLoc", "complex64_t", "log1p", "conditional_t",
    "integral_constant", "true_type", "false_type", "instantiate_kernel", "DEFINE_LIMITS", "pointer_element_t",
    "is_integral_v", "MLX_MTL_CONST", "MLX_MTL_LOOP_UNROLL", "uint64_to_uint",
}  # fmt: skip
STATEMENTS = {"return", "else", "do", "case", "sizeof", "in"}
MAX_BUFFERS = 31


def lint(generated: Generated) -> list[tuple[str, str]]:
    """(place, message) for every broken rule."""
    found = [*_signature(generated)]
    for part, text in (("header", generated.header), ("body", generated.body)):
        words = tokens(text)
        for rule in (_banned, _literals, _names, _lambdas, _threadgroup, _recursion):
            found += [(f"{part}:{word.line}", message) for word, message in rule(words, part)]
    return found


def _banned(words: list[Token], part: str) -> Iterator[tuple[Token, str]]:
    for word in words:
        if word.text in BANNED:
            yield word, BANNED[word.text]
        if word.text in PRELUDE:
            yield word, f"{word.text} is a name of MLX's own prelude"


def _literals(words: list[Token], part: str) -> Iterator[tuple[Token, str]]:
    for word in words:
        is_float = re.search(r"[.]|^\d+[eE]", word.text) and not word.text.lower().startswith("0x")
        if word.kind == "number" and is_float and word.text[-1] not in "fFhH":
            yield word, f"{word.text} is a double: write {word.text}f"


def _names(words: list[Token], part: str) -> Iterator[tuple[Token, str]]:
    for before, word in pairwise(words):
        declared = before.kind == "name" and before.text not in STATEMENTS
        if word.text in ATTRIBUTES and declared:
            yield word, f"{word.text} is the name of a Metal attribute"


def _lambdas(words: list[Token], part: str) -> Iterator[tuple[Token, str]]:
    for i, word in enumerate(words):
        before = words[i - 1] if i else None
        begins = before is None or before.text in ("=", "(", ",", "return", "{", ";", "}")
        if word.text == "[" and begins and words[min(i + 1, len(words) - 1)].text != "[":
            yield word, "no lambdas"
        texts = [w.text for w in words[i : i + 5]]
        if len(texts) == 5 and texts[:2] == ["(", "*"] and words[i + 2].kind == "name" and texts[3:] == [")", "("]:
            yield word, "no pointers to functions"


def _threadgroup(words: list[Token], part: str) -> Iterator[tuple[Token, str]]:
    """Every declaration of threadgroup memory is one that the model tracks: `threadgroup T name[N];`."""
    depth = parentheses = 0
    for i, word in enumerate(words):
        depth += (word.text == "{") - (word.text == "}")
        parentheses += (word.text == "(") - (word.text == ")")
        if word.text != "threadgroup" or parentheses:
            continue
        end = next((j for j in range(i, len(words)) if words[j].text == ";"), len(words))
        statement = [w.text for w in words[i:end]]
        before = next((k for k, text in enumerate(statement) if text in "=,("), len(statement))
        if {"*", "&"} & set(statement[:before]):
            continue
        if depth or part == "header":
            yield word, "threadgroup memory is declared at the scope of the kernel"
        elif "=" in statement:
            yield word, "threadgroup memory cannot be initialised where it is declared"
        elif "," in _outside_angles(statement):
            yield word, "declare one threadgroup variable a statement"
        elif not DECLARATION.fullmatch(" ".join([*statement, ";"])) or (i and words[i - 1].text not in (";", "{", "}")):
            yield word, "write threadgroup memory as `threadgroup T name[N];`, T of one word"


def _outside_angles(statement: list[str]) -> list[str]:
    depth, outside = 0, []
    for text in statement:
        depth += (text == "<") - (text == ">")
        if not depth:
            outside.append(text)
    return outside


def _recursion(words: list[Token], part: str) -> Iterator[tuple[Token, str]]:
    if part == "body":
        return
    for i, word in enumerate(words):
        if word.kind != "name" or i + 1 >= len(words) or words[i + 1].text != "(":
            continue
        end = closing(words, i + 1)
        if end + 1 < len(words) and words[end + 1].text == "{":
            inside = words[end + 1 : closing(words, end + 1)]
            for one, after in pairwise(inside):
                if one.text == word.text and after.text == "(":
                    yield one, f"{word.text} calls itself"


def _signature(generated: Generated) -> Iterator[tuple[str, str]]:
    used = {word.text for word in tokens(generated.body)}
    for parameter in generated.parameters:
        implied = not parameter.is_buffer or parameter.name.endswith(("_shape", "_strides", "_ndim"))
        if implied and parameter.name not in used:
            yield "signature:1", f"MLX adds {parameter.name} because a longer name in the body contains it"
    if len(generated.buffers) > MAX_BUFFERS:
        yield "signature:1", f"{len(generated.buffers)} buffers; Metal binds {MAX_BUFFERS}"
