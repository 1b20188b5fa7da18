"""What git ignores, from .gitignore files and .git/info/exclude: nested, negated, up to the work tree's root."""

import codecs
import os
import re
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

POSIX_CLASSES = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z",
    "xdigit": "0-9A-Fa-f", "space": " \t-\r", "blank": " \t", "punct": ":-@\\[-`{-~!-.",
}  # fmt: skip


class Rule(NamedTuple):
    """One line of a .gitignore; its pattern is for paths without their first `depth` bytes."""

    depth: int
    ignore: bool
    folders_only: bool
    pattern: re.Pattern[str]


def _bytewise(path: str) -> str:
    """`path` with one character a byte: git's `?` and `[...]` match single bytes."""
    return os.fsencode(path).decode("latin-1")


def _rule(line: str, depth: int) -> Rule | None:
    """One compiled line; None for a blank, a comment, and a pattern that cannot match.

    A `GitIgnoreSpec` of a whole file answers for a path and what lies below it, which differs from git once
    lines contradict each other (`*` and `!*/`, `foo/**` and `!foo/keep`). So each line is compiled by itself,
    without its `!` and its final slash, and `ignored` asks about one entry at a time, as git does.
    """
    trimmed = re.fullmatch(r"((?:\\.|[^\\])*?) *", line)
    if trimmed is None or line.startswith("#"):
        return None
    glob = trimmed[1].removeprefix("!")
    folders_only, glob = glob.endswith("/"), glob.removesuffix("/")
    glob = re.sub(r"(?<!\\)\s$", r"[\g<0>]", glob)  # pathspec would strip a space that git keeps
    glob = re.sub(r"\[:(\w+):\]", lambda match: POSIX_CLASSES.get(match[1], match[0]), glob)
    try:
        [compiled] = GitIgnoreSpec.from_lines(["\\" + glob if glob.startswith(("!", "#")) else glob]).patterns
    except ValueError:
        return None
    regex: re.Pattern[str] | None = compiled.regex
    return None if regex is None else Rule(depth, not line.startswith("!"), folders_only, regex)


def _read_rules(path: str, depth: int) -> list[Rule]:
    """The rules of one file; none where git reads none: it is missing, unreadable or a symbolic link."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            lines = file.read().removeprefix(codecs.BOM_UTF8).decode("latin-1").split("\n")
    except OSError:
        return []
    return [rule for line in lines if (rule := _rule(line.removesuffix("\r"), depth))]


def enter(folder: str, rules: list[Rule]) -> list[Rule]:
    """The rules inside `folder`. A repository of its own does not hear those of the one around it."""
    depth = len(os.fsencode(folder).rstrip(b"/")) + 1
    if os.path.lexists(f"{folder}/.git"):
        rules = _read_rules(f"{folder}/.git/info/exclude", depth)
    return rules + _read_rules(f"{folder}/.gitignore", depth)


def rules_above(folder: str) -> list[Rule]:
    """The rules that reach `folder` from its parents, up to the root of the work tree it lies in, if any."""
    lineage = [folder, *map(str, Path(folder).parents)]
    root = next((i for i, parent in enumerate(lineage) if os.path.lexists(f"{parent}/.git")), 0)
    rules: list[Rule] = []
    for parent in reversed(lineage[1 : root + 1]):
        rules = enter(parent, rules)
    return rules


def ignored(path: str, is_folder: bool, rules: list[Rule]) -> bool:
    """Whether git ignores this entry of a folder it does not ignore: the last line that matches decides."""
    path = _bytewise(path)
    for rule in reversed(rules):
        match = rule.pattern.search(path[rule.depth :]) if is_folder or not rule.folders_only else None
        # pathspec's group ps_d is set when it was a folder above that matched; that one was judged before.
        if match and not match.groupdict().get("ps_d"):
            return rule.ignore
    return False
