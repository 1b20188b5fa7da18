"""The Hub's tokenizer files as a format: what a tokenizer.json says, made literal, and how ours are written."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SPACE = "▁"  # U+2581, SentencePiece's spelling of a space
UNK = "<unk>"
STEPS = ("normalizer", "pre_tokenizer", "decoder")  # of a tokenizer.json, beside its model
BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")


def make_literal(spec: dict[str, Any]) -> None:
    """Take out of a tokenizer.json what adds to a text or rewrites it: of its normalizer only what spells spaces
    stays, and neither the pre-tokenizer nor the normalizer puts a space in front, which the decoder then strips."""
    spec["normalizer"] = _without(spec.get("normalizer"), lambda kind: kind not in ("Replace", "ByteLevel"))
    spec["decoder"] = _without(spec.get("decoder"), lambda kind: kind == "Strip")
    for part in parts(spec.get("pre_tokenizer")) + parts(spec.get("decoder")):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        if part.get("type") in ("ByteLevel", "Metaspace"):
            part["add_prefix_space"] = False


def parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences taken apart."""
    if step is None:
        return []
    inner = next((step[k] for k in ("normalizers", "pretokenizers", "decoders") if k in step), None)
    return [step] if inner is None else [part for s in inner for part in parts(s)]


def _without(step: dict[str, Any] | None, unwanted: Callable[[str], bool]) -> dict[str, Any] | None:
    """A normalizer or decoder without the steps whose type is `unwanted`; None where none is left."""
    if step is None or step["type"] != "Sequence":
        return None if step is None or unwanted(step["type"]) else step
    name = "normalizers" if "normalizers" in step else "decoders"
    kept = [s for inner in step[name] if (s := _without(inner, unwanted))]
    return {"type": "Sequence", name: kept} if kept else None


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a piece spelled in GPT-2's alphabet."""
    return bytes(_ALPHABET[c] for c in piece) if all(c in _ALPHABET for c in piece) else piece.encode()


def metaspace_bytes(piece: str) -> bytes:
    """The bytes of a piece spelled as SentencePiece spells it."""
    byte = BYTE.match(piece)
    return bytes([int(byte.group(1), 16)]) if byte else piece.replace(SPACE, " ").encode()


def bpe_spec(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], byte_fallback: bool) -> dict[str, Any]:
    """The model of a tokenizer.json: a BPE, or with no merges a table of characters and bytes."""
    return {
        "type": "BPE", "unk_token": UNK if UNK in vocabulary else None, "fuse_unk": False,
        "byte_fallback": byte_fallback, "vocab": vocabulary, "merges": [list(pair) for pair in merges],
    }  # fmt: skip


def write(folder: Path, model: dict[str, Any], control: dict[int, str], normalizer: dict | None, decoder: dict) -> None:
    """`tokenizer.json` in the `tokenizers` library's format."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": piece, **flags} for i, piece in control.items()],
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False, indent=1), encoding="utf-8")


def write_config(folder: Path, bos: str | None, eos: str | None) -> None:
    """`tokenizer_config.json`, with the tokens that open and close a document."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    config |= {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def control_tokens(config: Path) -> tuple[str | None, str | None]:
    """The opening and the closing token that a `tokenizer_config.json` names, None for each it does not name."""
    if not config.is_file():
        return None, None
    table = json.loads(config.read_text(encoding="utf-8"))
    names = (table.get("bos_token"), table.get("eos_token"))
    bos, eos = (n.get("content") if isinstance(n, dict) else n for n in names)
    if not isinstance(bos, str | None) or not isinstance(eos, str | None):
        raise TypeError(f"{config.name}: bos_token and eos_token must be text")
    return bos, eos
