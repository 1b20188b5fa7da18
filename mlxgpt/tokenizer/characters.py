"""Characters and bytes as tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt.tokenizer import hub_json
from mlxgpt.tokenizer.base import Tokenizer

BOS, EOS = "<s>", "</s>"


class CharTokenizer(Tokenizer):
    """One token a character, unknown characters spelled in bytes; with no characters at all, one token a byte.

    Without `byte_fallback` there is nothing but the characters: no control tokens, and other text is refused. `extra`
    names control tokens beside those that open and close a document.
    """

    def __init__(self, characters: str, byte_fallback: bool = True, extra: Sequence[str] = ()) -> None:
        self.characters, self.byte_fallback = characters, byte_fallback
        self.pieces = list(characters)
        self.token_bytes = [c.encode() for c in characters]
        if byte_fallback:
            spelled = [b for b in range(256) if b >= 128 or chr(b) not in characters]
            self.pieces += [f"<0x{b:02X}>" for b in spelled]
            self.token_bytes += [bytes([b]) for b in spelled]
            self.bos_id, self.eos_id = len(self.pieces), len(self.pieces) + 1
        names = [BOS, EOS, *extra] if byte_fallback else []
        self.control = {name: len(self.pieces) + i for i, name in enumerate(names)}
        self.pieces += names
        self.token_bytes += [b""] * len(names)
        self._id_of = np.full(max(map(ord, characters), default=0) + 2, -1, np.int32)  # the last entry: unknown
        for i, character in enumerate(characters):
            self._id_of[ord(character)] = i

    def _encode_text(self, text: str) -> list[int]:
        if not self.characters:
            return (np.frombuffer(text.encode(), np.uint8)).tolist()
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        if ids.min(initial=0) >= 0:
            return ids.tolist()
        return [t for c, i in zip(text, ids.tolist(), strict=True) for t in ([i] if i >= 0 else self._spell(c))]

    def _encode_exactly(self, text: str) -> list[int]:
        return self._encode_text(text)  # exact by construction

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, which has no merges, and `tokenizer_config.json` into `folder`."""
        model = hub_json.bpe_spec({piece: i for i, piece in enumerate(self.pieces)}, [], self.byte_fallback)
        decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
        hub_json.write(folder, hub_json.spec(model, self.control, None, decoder))
        hub_json.write_config(folder, *((BOS, EOS) if self.control else (None, None)))


def from_hub_json(spec: dict[str, Any]) -> CharTokenizer | None:
    """The CharTokenizer that wrote a tokenizer.json, if one did."""
    model = spec["model"]
    if model["type"] != "BPE" or model["merges"] or spec.get("normalizer") or spec.get("pre_tokenizer"):
        return None
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    extra = pieces[pieces.index(EOS) + 1 :] if EOS in pieces else []
    tokenizer = CharTokenizer("".join(p for p in pieces if len(p) == 1), model["byte_fallback"], extra)
    return tokenizer if tokenizer.pieces == pieces else None
