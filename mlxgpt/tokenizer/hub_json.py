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


def make_literal(spec: dict[str, Any]) -> bool:
    """Take out of a tokenizer.json what adds to a text or rewrites it: of its normalizer only what spells spaces
    stays, and neither the pre-tokenizer nor the normalizer puts a space in front, which the decoder then strips.

    Whether there was such a space is returned.
    """
    prefixed = any(part["type"] == "Prepend" for part in parts(spec.get("normalizer")))
    spec["normalizer"] = _without(spec.get("normalizer"), lambda kind: kind not in ("Replace", "ByteLevel"))
    spec["decoder"] = _without(spec.get("decoder"), lambda kind: kind == "Strip")
    before = parts(spec.get("pre_tokenizer"))
    for part in before + parts(spec.get("decoder")):
        if part.get("type") in ("ByteLevel", "Metaspace"):
            puts_space = part.get("add_prefix_space", True) and part.get("prepend_scheme") != "never"
            prefixed |= puts_space and part in before
            part["add_prefix_space"] = False
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
    return prefixed


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
_SPELLING = {b: c for c, b in _ALPHABET.items()}


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a piece spelled in GPT-2's alphabet."""
    try:
        return bytes(map(_ALPHABET.__getitem__, piece))
    except KeyError:
        return piece.encode()


def byte_level_piece(data: bytes) -> str:
    """Bytes spelled in GPT-2's alphabet."""
    return data.decode("latin-1").translate(_SPELLING)


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


def spec(
    model: dict[str, Any],
    control: dict[str, int],
    normalizer: dict | None,
    decoder: dict,
    pre_tokenizer: dict | None = None,
) -> dict[str, Any]:
    """A tokenizer.json, as a table, in the `tokenizers` library's format."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": piece, **flags} for piece, i in control.items()],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def write(folder: Path, table: dict[str, Any]) -> None:
    """`tokenizer.json` in `folder`."""
    (folder / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def write_config(folder: Path, bos: str | None, eos: str | None, opens: bool = True) -> None:
    """`tokenizer_config.json`, with the tokens that open and close a document; `opens`: whether texts begin so.

    Without a space in front, which llama.cpp puts before a SentencePiece model's text unless its converter reads here
    that there is none (convert_hf_to_gguf.py).
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    config |= {name: token for name, token in (("bos_token", bos), ("eos_token", eos)) if token}
    config |= {} if opens or not bos else {"add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def control_tokens(folder: Path, spec: dict[str, Any]) -> tuple[str | None, str | None]:
    """The opening and the closing token that `tokenizer_config.json` names, or else `config.json` by the ids of the
    tokenizer.json `spec`, as GPT-2's does; None for each that neither names."""
    named, numbered = read_table(folder / "tokenizer_config.json"), read_table(folder / "config.json")
    added = {t["id"]: t["content"] for t in spec.get("added_tokens", [])}

    def token(kind: str) -> str | None:
        name, number = named.get(f"{kind}_token"), numbered.get(f"{kind}_token_id")
        name = name.get("content") if isinstance(name, dict) else name
        if not isinstance(name, str | None):
            raise TypeError(f"tokenizer_config.json: {kind}_token must be text")
        return name or (added.get(number) if isinstance(number, int) else None)

    return token("bos"), token("eos")


def says_opens(folder: Path) -> bool | None:
    """Whether, as `tokenizer_config.json` says, texts begin with the opening token; None where it does not say."""
    opens = read_table(folder / "tokenizer_config.json").get("add_bos_token")
    if not isinstance(opens, bool | None):
        raise TypeError("tokenizer_config.json: add_bos_token must be true or false")
    return opens


def read_table(path: Path) -> dict[str, Any]:
    """A file of JSON; an empty table where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def opens_with(post_processor: dict[str, Any] | None, bos: str | None) -> bool:
    """Whether a tokenizer.json puts the opening token `bos` before a text; one that says nothing of it may."""
    if post_processor is None:
        return True
    steps = post_processor.get("processors", [post_processor])
    firsts = [step["single"][0] for step in steps if step["type"] == "TemplateProcessing" and step["single"]]
    return any(first.get("SpecialToken", {}).get("id") == bos for first in firsts)
