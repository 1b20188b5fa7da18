"""Any `tokenizer.json` of the Hub, through the `tokenizers` library."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mlxgpt.errors import Error
from mlxgpt.tokenizer import hub_json
from mlxgpt.tokenizer.base import FIM_FAMILIES, SURROGATES, SURROGATES_AND_SPACE, Tokenizer

if TYPE_CHECKING:
    import tokenizers


class HubTokenizer(Tokenizer):
    """A ready `tokenizer.json` (GPT-2's, Qwen's, …) through the `tokenizers` library.

    As with SentencePiece nothing is dropped or rewritten, and a space in front is the `dummy_prefix`. `opens`: whether
    `bos` opens every text; None: as the file's post-processor says.
    """

    def __init__(self, text: str, bos: str | None = None, eos: str | None = None, opens: bool | None = None) -> None:
        import tokenizers

        spec = json.loads(text)
        prefixed = hub_json.make_literal(spec)
        for token in spec.get("added_tokens", []):  # Qwen's files call those for fill-in-the-middle text
            if any(token["content"] in names for names in FIM_FAMILIES):
                token["special"] = True
        self._original, self._text = text, json.dumps(spec, ensure_ascii=False)
        self._bos, self._eos = bos, eos
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._text)
        except Exception as error:  # the library raises bare Exception
            raise Error(f"not a tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True  # a control token's name typed as text stays text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.control = {t["content"]: t["id"] for t in spec.get("added_tokens", []) if t.get("special")}
        control = set(self.control.values())
        byte_level = any(p["type"] == "ByteLevel" for name in hub_json.STEPS for p in hub_json.parts(spec.get(name)))
        to_bytes = hub_json.byte_level_bytes if byte_level else hub_json.metaspace_bytes
        self._unspeakable = SURROGATES if byte_level else SURROGATES_AND_SPACE
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        self.token_bytes = [b""] * (max(pieces.values(), default=-1) + 1)
        added = {t["content"] for t in spec.get("added_tokens", [])}
        for piece, i in pieces.items():
            if i not in control:
                self.token_bytes[i] = piece.encode() if piece in added else to_bytes(piece)
        self.bos_id = pieces.get(bos) if bos else None
        self.eos_id = pieces.get(eos) if eos else None
        self.opens = hub_json.opens_with(spec.get("post_processor"), bos) if opens is None else opens
        self.dummy_prefix = b" " if prefixed and self.opens and self.bos_id is not None else b""

    def _rules(self) -> bytes:
        return self._text.encode()

    def _encode_text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of a rendered chat template, in which the names of control tokens are those tokens; no opening token is
        added. They are what transformers makes of it: a space in front is put where the file says."""
        ids: list[int] = []
        for i, part in enumerate(SURROGATES.split(text)):
            ids += self._spell(part) if i % 2 else self._as_written.encode(part, add_special_tokens=False).ids
        return ids

    @cached_property
    def _as_written(self) -> "tokenizers.Tokenizer":
        """The library's tokenizer of the file as it is."""
        import tokenizers

        return tokenizers.Tokenizer.from_str(self._original)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, without what adds to a text or rewrites it, and `tokenizer_config.json`."""
        (folder / "tokenizer.json").write_text(self._text, encoding="utf-8")
        hub_json.write_config(folder, self._bos, self._eos, self.opens)
