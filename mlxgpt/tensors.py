"""safetensors files on disk, checked before anything is mapped or allocated: what they hold, and where.

The format (huggingface/safetensors): eight bytes with the header's length, a JSON header of names, types, shapes and
offsets, and the tensors one after the other. A file from anywhere may lie in each of them.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxgpt import files
from mlxgpt.errors import Error

MOST_JSON = 16_000_000  # bytes; an index of 100,000 tensors
MOST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MOST_SIZE = 1 << 31  # MLX's shapes
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor as a header describes it; `begin` and `end` are byte offsets into the data after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file really has room for, by name. Reads the header alone. Raises Error."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise Error(f"{path} is not a safetensors file or cut short: {size} bytes, a header of {length}")
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise Error(f"{path} is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise Error(f"{path} is not a safetensors file: its header is not a table of tensors")
    entries = {name: _entry(path, name, value) for name, value in header.items() if name != "__metadata__"}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise Error(f"{path} is damaged: tensor {name!r} overlaps its neighbour or leaves a gap before it")
        position = entry.end
    if position != size - 8 - length:
        raise Error(f"{path} is cut short or damaged: {size - 8 - length} bytes of tensors, not {position}")
    return entries


def _entry(path: Path, name: str, value: object) -> Entry:
    table = value if isinstance(value, dict) else {}
    dtype, shape, offsets = table.get("dtype"), _sizes(table.get("shape")), _sizes(table.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise Error(f"{path} is damaged: the header's entry for {name[:80]!r} is malformed")
    if dtype not in BITS:
        raise Error(f"{path}: tensor {name[:80]!r} has type {dtype[:20]!r}, which mlxgpt does not read")
    if any(n >= MOST_SIZE for n in shape):
        raise Error(f"{path}: tensor {name[:80]!r} has a shape beyond what MLX can hold: {shape}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise Error(f"{path} is damaged: tensor {name[:80]!r} of {dtype} {shape} cannot be {end - begin} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _sizes(value: object) -> list[int] | None:
    """`value` if it is a list of sizes: a few whole numbers, none negative, none beyond what a file can hold."""
    if not isinstance(value, list) or len(value) > 8:
        return None
    fit = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in value)
    return value if fit else None


def shards(folder: Path, stem: str = "model") -> list[Path]:
    """The weight files of a folder, in order: `stem`.safetensors, else those its index names, else those called
    `stem`-00001-of-00002.safetensors and so on.

    Raises Error where there are none, and for an index that names a missing file or one outside the folder.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        table = read_json(index)
        names = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
            raise Error(f"{index} has no weight_map of tensor names to files")
        found = [folder / name for name in sorted(set(names.values()))]
        for path in found:
            if path.parent != folder or path.name in ("", ".", "..") or os.sep in path.name or "\0" in str(path):
                raise Error(f"{index} names a file outside its folder: {str(path)[:200]!r}")
            if path.suffix != ".safetensors" or not path.is_file():
                raise Error(f"{index} names {path.name[:80]!r}, which is not in {folder}: download it again")
        return found
    found = sorted(folder.glob(f"{stem}-*-of-*.safetensors"))
    if not found:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        hint = f"; {others[0]} is a pickle, which mlxgpt does not open: convert it to safetensors" if others else ""
        raise Error(f"{folder} has no weights: {whole.name} is missing{hint}")
    return found


def read_json(path: Path) -> Any:
    """The JSON at `path`. Raises Error when it is missing, broken or larger than such a file ever is."""
    if path.is_file() and (size := path.stat().st_size) > MOST_JSON:
        raise Error(f"{path} is {size} bytes long: a file of that name has at most {MOST_JSON}")
    return files.read_json(path)


def read(paths: list[Path]) -> dict[str, mx.array]:
    """Every tensor of the files by name, lazily: headers are checked now, data is read when used. Raises Error."""
    tensors: dict[str, mx.array] = {}
    for path in paths:
        names = read_header(path).keys()
        if twice := names & tensors.keys():
            raise Error(f"{path} holds {sorted(twice)[0]!r}, which another file of the folder holds too")
        try:
            tensors.update(mx.load(str(path), format="safetensors"))  # type: ignore[arg-type]
        except (RuntimeError, ValueError) as error:
            raise Error(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    return tensors
