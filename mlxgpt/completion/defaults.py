"""What a project says in `.mlxgpt.toml` of how to complete in it: `complete`, `serve`, `lsp` and `eval` need no options
then.

    [complete]
    model = ".mlxgpt/model"
    root = "."
    false_show = 0.3

Paths are relative to the file's folder. Options of a command win.
"""

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from mlxgpt import files
from mlxgpt.completion.opening import Names
from mlxgpt.completion.suggest import Using
from mlxgpt.config import from_table, nearest
from mlxgpt.errors import UsageError

NAME = ".mlxgpt.toml"
SECTION = "complete"


@dataclass(frozen=True)
class Defaults:
    """The keys of the file's one section, which are the options that they stand for; None is what is not said. In the
    file `model` is a folder, and as an option also an alias or a Hub id."""

    model: str | None = None
    root: str | None = None
    using: Using | None = None
    threshold: float | None = None
    false_show: float | None = None
    context: bool | None = None

    def names(self, quantize: str | None = None) -> Names:
        """What a suggester is opened from."""
        root = None if self.root is None else Path(self.root)
        return Names(self.model, root, self.using, quantize, bool(self.context))

    def under(self, given: "Defaults") -> "Defaults":
        """These where `given` says nothing. Of another model `using` is not known, and what is shown is said once."""
        kept = dataclasses.asdict(self)
        if given.model is not None:
            kept["using"] = None
        if given.threshold is not None or given.false_show is not None:
            kept["threshold"] = kept["false_show"] = None
        return Defaults(**(kept | {k: v for k, v in dataclasses.asdict(given).items() if v is not None}))


def find(folder: Path) -> Path | None:
    """The file in `folder` or in the nearest folder above it that has one."""
    folder = folder.absolute()
    return next((place for f in (folder, *folder.parents) if (place := f / NAME).is_file()), None)


def read(path: Path) -> Defaults:
    """What the file at `path` says, its paths absolute. Raises UsageError, also where what it names is not there."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, no TOML
        raise UsageError(f"{path} cannot be read: {error}") from None
    if unknown := [name for name in table if name != SECTION]:
        raise UsageError(f"{path}: unknown section or key '{unknown[0]}'{nearest(unknown[0], [SECTION])}")
    section = table.get(SECTION, {})
    if not isinstance(section, dict):
        raise UsageError(f"{path}: {SECTION} must be a table")
    try:
        found = from_table(Defaults, section, SECTION)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    for name in ("threshold", "false_show"):
        if (value := getattr(found, name)) is not None and not 0 <= value <= 1:
            raise UsageError(f"{path}: {SECTION}.{name} must be from 0 to 1, not {value!r}")
    if found.threshold is not None and found.false_show is not None:
        raise UsageError(f"{path}: {SECTION}.threshold and {SECTION}.false_show exclude each other")
    return dataclasses.replace(found, model=_model(path, found), root=_root(path, found))


def write(path: Path, found: Defaults) -> None:
    """Write the file at `path`, whole or not at all. Raises Error."""
    lines = [
        "# What `mlxgpt complete`, `serve`, `lsp` and `eval` go by in this folder; options of a command win.",
        f"[{SECTION}]",
        *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in dataclasses.asdict(found).items() if v is not None),
    ]  # fmt: skip
    files.write(path, lambda partial: partial.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _model(path: Path, found: Defaults) -> str | None:
    if found.model is None:
        return None
    folder = path.parent / Path(found.model).expanduser()
    # No alias nor Hub id: a repository that somebody else wrote is not to have anything downloaded.
    if not folder.is_dir() and found.using != "ngrams":
        raise UsageError(f"{path}: {SECTION}.model: there is no folder {folder}; `mlxgpt setup --again` trains one")
    return str(folder)


def _root(path: Path, found: Defaults) -> str | None:
    if found.root is None:
        return None
    root = path.parent / found.root
    if not root.is_dir():
        raise UsageError(f"{path}: {SECTION}.root: there is no folder {root}")
    return str(root.resolve())


def settle(given: Defaults, folder: Path | None = None) -> Defaults:
    """The options of a command, and for what they leave open those of the project that `folder` (None: the working
    directory) lies in. Raises UsageError."""
    path = find(Path.cwd() if folder is None else folder)
    return given if path is None else read(path).under(given)
