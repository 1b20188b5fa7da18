"""Fill-in-the-middle prompts as editors spell them for one family of models or another -> what is on each side.

Editors put the control tokens of the model that they think they talk to into the text. Whatever model is here, what
they mean is a cursor: its prefix, its suffix, and other files. The templates are those of the models' own cards:
Qwen2.5-Coder and CodeGemma; StarCoder, Granite and Stable Code; SantaCoder; Code Llama (Rozière et al., 2023,
arXiv 2308.12950); DeepSeek-Coder; GLM-4, as Zed spells it; Codestral. Each may also have the suffix first.
"""

import re
from dataclasses import dataclass

MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
OPENING = re.compile(r"(?:<s>|<\|endoftext\|>|<bos>|<｜begin▁of▁sentence｜>)")
FILE = re.compile(r"<\|file_sep\|>|<\|file_separator\|>|<file_sep>|<filename>")
REPOSITORY = re.compile(r"<\|repo_name\|>|<repo_name>|<reponame>")
CODESTRAL_FILE = re.compile(r"^\+\+\+\+\+ .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Middle:
    """A cursor between two texts, and the texts of other files."""

    prefix: str
    suffix: str
    extra: tuple[str, ...] = ()


def parse(prompt: str) -> Middle | None:
    """The cursor that a templated prompt means; None for one that is just a text, also where it mentions the marks."""
    text = OPENING.sub("", prompt, count=1) if OPENING.match(prompt) else prompt
    if text.startswith("[SUFFIX]") and "[PREFIX]" in text:
        suffix, _, rest = text.removeprefix("[SUFFIX]").partition("[PREFIX]")
        *others, prefix = CODESTRAL_FILE.split(rest)
        return Middle(prefix, suffix, tuple(o for o in others if o.strip()))
    for before, after, middle in MARKS:
        found = _cut(text, before, after, middle)
        if found is not None:
            return found
    return None


def _cut(text: str, before: str, after: str, middle: str) -> Middle | None:
    end = text.rfind(middle)
    starts = [i for i in (text.find(before, 0, max(0, end)), text.find(after, 0, max(0, end))) if i >= 0]
    if end < 0 or len(starts) < 2:
        return None
    head, written = text[: min(starts)], text[end + len(middle) :]
    if head and not (FILE.match(head) or REPOSITORY.match(head)):
        return None
    if text.startswith(after, min(starts)):  # the suffix first
        place = text.find(before)
        suffix, prefix = text[min(starts) + len(after) : place], text[place + len(before) : end]
    else:
        place = text.rfind(after, 0, end)
        prefix, suffix = text[min(starts) + len(before) : place], text[place + len(after) : end]
    if middle == "<MID>":  # Code Llama's marks have spaces of their own
        prefix = prefix.removeprefix(" ").removesuffix(" ")
        suffix, written = suffix.removesuffix(" "), written.removeprefix(" ")
    prefix = _without_name(prefix) if FILE.match(prefix) else prefix
    files = FILE.split(REPOSITORY.sub("", head))[1:]
    extra = tuple(body for body in map(_without_name, files) if body.strip())
    return Middle(prefix + written, suffix, extra)


def _without_name(file: str) -> str:
    """A file's text without the line that names it."""
    return FILE.sub("", file, count=1).partition("\n")[2]
