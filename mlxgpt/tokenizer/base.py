"""What all tokenizers have in common."""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mlxgpt.errors import Error
from mlxgpt.tokenizer.hub_json import SPACE

SURROGATES = re.compile("([\ud800-\udfff]+)")  # which stand for bytes that are not UTF-8
SURROGATES_AND_SPACE = re.compile(f"([\ud800-\udfff{SPACE}]+)")  # where this character would come back as a space

# Qwen2.5-Coder's names, which llama.cpp and others know by their spelling, and then StarCoder's.
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
FIM_FAMILIES = (FIM, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))


class Fim(NamedTuple):
    """The ids of the control tokens before a prefix, a suffix and what stands between them (fill-in-the-middle)."""

    prefix: int
    suffix: int
    middle: int


class Tokenizer:
    """One interface for all: `encode` bytes to ids, `decode` ids to bytes.

    `token_bytes[i]` are the bytes token i stands for, empty for a control token; `bos_id` and `eos_id` open and
    close a document (None: documents are not marked). `control` maps the names of control tokens to their ids.

    `encode` is for text from anywhere, and adds nothing; `begin` is for a text's beginning, such as a prompt: it adds
    what the model saw there when it was trained. That is the opening token (not where `opens` is False), and then, for
    Llama's and Mistral's SentencePiece models, the `dummy_prefix`: a space that makes the first word the same token as
    in the middle of a text. It is not part of the text, and neither `decode` nor generation shows it.
    """

    token_bytes: list[bytes]
    control: dict[str, int]
    bos_id: int | None = None
    eos_id: int | None = None
    opens = True
    dummy_prefix = b""
    _unspeakable = SURROGATES  # what is always spelled in bytes

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    @property
    def fim(self) -> Fim | None:
        """The control tokens for fill-in-the-middle, where the tokenizer has them."""
        families = ([self.control.get(name) for name in names] for names in FIM_FAMILIES)
        return next((Fim(*ids) for ids in families if None not in ids), None)  # type: ignore[arg-type]

    def encode(self, data: str | bytes) -> list[int]:
        """Token ids of text or of any bytes, no control tokens added. `decode(encode(x)) == x`."""
        if isinstance(data, bytes):
            data = data.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for i, part in enumerate(self._unspeakable.split(data)):
            if part:
                ids += self._spell(part) if i % 2 else self._encode_exactly(part)
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; control tokens stand for none, nor does the dummy prefix after one at the
        beginning: `decode(begin(x)) == x`."""
        ids = list(ids)
        return b"".join([self.token_bytes[i] for i in ids]).removeprefix(self.hidden_after(ids[:1]))

    def hidden_after(self, ids: Sequence[int]) -> bytes:
        """The bytes which, where what follows `ids` begins with them, are the dummy prefix and not text: a space where
        the last of `ids` is a control token, in a model trained with such a prefix."""
        return self.dummy_prefix if ids and not self.token_bytes[ids[-1]] else b""

    def begin(self, data: str | bytes) -> list[int]:
        """Ids of a text from its beginning, as a model is to read it: the opening token, the dummy prefix, the text.

        An empty text is the opening token alone, also for a model that reads others without (GPT-2's).
        """
        opening = [self.bos_id] if self.bos_id is not None and (self.opens or not data) else []
        return opening + (self._encode_behind_dummy(data) if data else [])

    def document(self, data: str | bytes) -> list[int]:
        """A whole document's ids, as it begins and with its closing token where there is one."""
        return self.begin(data) + ([] if self.eos_id is None else [self.eos_id])

    def encode_template(self, text: str) -> list[int]:
        """Ids of a rendered chat template, in which the names of control tokens are those tokens; no opening token is
        added. Not for a user's text, which could then speak as someone else.

        With a dummy prefix each part between control tokens begins with one, as in mistral-common, where the template
        does not spell that space itself, as those of transformers do.
        """
        ids: list[int] = []
        for i, part in enumerate(self._controls.split(text)):
            if i % 2:
                ids.append(self.control[part])
            elif part:
                spelled = part.startswith(self.dummy_prefix.decode())
                ids += self.encode(part) if spelled else self._encode_behind_dummy(part)
        return ids

    def completions(self, prefix: bytes) -> list[int]:
        """Ids of the tokens that begin with `prefix` or are a proper beginning of it; control tokens never."""
        order, keys = self._sorted_tokens
        low, high = bisect_left(keys, prefix), bisect_left(keys, prefix + b"\xff" * 64)
        shorter = [self._by_bytes[p] for n in range(1, len(prefix)) if (p := prefix[:n]) in self._by_bytes]
        return order[low:high] + [i for ids in shorter for i in ids]

    def save(self, folder: Path) -> None:
        """Write the Hub's tokenizer files into `folder`."""
        raise TypeError(f"{type(self).__name__} cannot be saved")

    def fingerprint(self) -> str:
        """SHA-256 of what the tokenizer does: its kind, the bytes of every id, the control tokens, how it merges."""
        kind, rules = type(self).__name__, hashlib.sha256(self._rules()).hexdigest()
        content = json.dumps([kind, [b.hex() for b in self.token_bytes], self.bos_id, self.eos_id, rules])
        return hashlib.sha256(content.encode()).hexdigest()

    def _rules(self) -> bytes:
        """What decides between the ways to put a text together from tokens, where there are several."""
        return b""

    def _encode_behind_dummy(self, data: str | bytes) -> list[int]:
        return self.encode(self.dummy_prefix + data if isinstance(data, bytes) else self.dummy_prefix.decode() + data)

    def _encode_text(self, text: str) -> list[int]:
        raise NotImplementedError

    def _encode_exactly(self, text: str) -> list[int]:
        """`_encode_text`, with every part it would not give back (an unknown or rewritten character) narrowed down
        and spelled in bytes; halved at a line's end where there is one, so that the rest is encoded as ever."""
        ids = self._encode_text(text)
        if self.decode(ids) == text.encode():
            return ids
        if len(text) == 1:
            return self._spell(text)
        middle = text.rfind("\n", 0, len(text) // 2) + 1 or len(text) // 2
        return self._encode_exactly(text[:middle]) + self._encode_exactly(text[middle:])

    def _spell(self, text: str) -> list[int]:
        try:
            data = text.encode("utf-8", "surrogateescape")
            return [self._byte_ids[b] for b in data]
        except (KeyError, UnicodeEncodeError):
            raise Error(
                f"this tokenizer has no token for {text[:20]!r}: its vocabulary lacks it and has no bytes"
            ) from None

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        """Splits a text at the names of control tokens, the longest where several begin at one place."""
        names = sorted(self.control, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        return {data[0]: i for i, data in reversed(list(enumerate(self.token_bytes))) if len(data) == 1}

    @cached_property
    def _sorted_tokens(self) -> tuple[list[int], list[bytes]]:
        order = sorted((i for i, b in enumerate(self.token_bytes) if b), key=self.token_bytes.__getitem__)
        return order, [self.token_bytes[i] for i in order]

    @cached_property
    def _by_bytes(self) -> dict[bytes, list[int]]:
        table: dict[bytes, list[int]] = {}
        for i in self._sorted_tokens[0]:
            table.setdefault(self.token_bytes[i], []).append(i)
        return table
