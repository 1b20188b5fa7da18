"""Text <-> tokens, byte for byte: characters, bytes, SentencePiece (our BPE, Mistral's) and `tokenizer.json`.

Every tokenizer encodes any bytes and gives the same bytes back. Two files carry one in a model folder, in the Hub's
formats: `tokenizer.json` always, and `tokenizer.model` beside it for SentencePiece.
"""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import tokenizer_json
from mlxgpt.config import SMALLEST_BPE, TokenizerConfig
from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer_json import SPACE

BOS, EOS = "<s>", "</s>"
# Protocol buffers merge what is appended: ModelProto.normalizer_spec (field 3) gets an empty precompiled_charsmap (2),
# and add_dummy_prefix (3) and remove_extra_whitespaces (4) set to false: nothing is added, dropped or rewritten.
EVERY_BYTE_IS_TEXT = bytes([3 << 3 | 2, 6, 2 << 3 | 2, 0, 3 << 3, 0, 4 << 3, 0])
LONGEST_LINE = 1 << 12  # characters; SentencePiece is trained on longer lines in parts


class Tokenizer:
    """One interface for all: `encode` bytes to ids, `decode` ids to bytes.

    `token_bytes[i]` are the bytes token i stands for, empty for a control token; `bos_id` and `eos_id` open and
    close a document (None: documents are not marked).
    """

    token_bytes: list[bytes]
    bos_id: int | None = None
    eos_id: int | None = None
    # What is always spelled in bytes: surrogates, which stand for bytes that are not UTF-8.
    _unspeakable = re.compile("([\ud800-\udfff]+)")

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

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
        """The bytes that `ids` stand for; control tokens stand for none."""
        return b"".join([self.token_bytes[i] for i in ids])

    def document(self, data: str | bytes) -> list[int]:
        """A whole document's ids, between its opening and closing tokens where there are such."""
        opening = [] if self.bos_id is None else [self.bos_id]
        closing = [] if self.eos_id is None else [self.eos_id]
        return opening + self.encode(data) + closing

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


class CharTokenizer(Tokenizer):
    """One token a character, unknown characters spelled in bytes; with no characters at all, one token a byte.

    Without `byte_fallback` there is nothing but the characters: no control tokens, and other text is refused.
    """

    def __init__(self, characters: str, byte_fallback: bool = True) -> None:
        self.characters, self.byte_fallback = characters, byte_fallback
        self.pieces = list(characters)
        self.token_bytes = [c.encode() for c in characters]
        if byte_fallback:
            spelled = [b for b in range(256) if b >= 128 or chr(b) not in characters]
            self.pieces += [f"<0x{b:02X}>" for b in spelled] + [BOS, EOS]
            self.token_bytes += [bytes([b]) for b in spelled] + [b"", b""]
            self.bos_id, self.eos_id = len(self.pieces) - 2, len(self.pieces) - 1
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
        model = tokenizer_json.bpe_spec({piece: i for i, piece in enumerate(self.pieces)}, [], self.byte_fallback)
        decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
        control = {} if self.bos_id is None or self.eos_id is None else {self.bos_id: BOS, self.eos_id: EOS}
        tokenizer_json.write(folder, model, control, None, decoder)
        tokenizer_json.write_config(folder, *((BOS, EOS) if control else (None, None)))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model: ours (BPE with byte fallback, trained by `train`) or a ready one such as Mistral's."""

    _unspeakable = re.compile(f"([\ud800-\udfff{SPACE}]+)")

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = model.removesuffix(EVERY_BYTE_IS_TEXT) + EVERY_BYTE_IS_TEXT
        try:
            self._processor = sp = SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise Error(f"not a SentencePiece model: {error}") from None
        self.pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
        self.token_bytes = [self._bytes_of(i) for i in range(sp.vocab_size())]
        self.bos_id = sp.bos_id() if sp.bos_id() >= 0 else None
        self.eos_id = sp.eos_id() if sp.eos_id() >= 0 else None

    def _bytes_of(self, i: int) -> bytes:
        sp = self._processor
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            return b""
        if sp.is_byte(i):
            return bytes([int(self.pieces[i][3:5], 16)])
        return self.pieces[i].replace(SPACE, " ").encode()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "SentencePieceTokenizer":
        """BPE on the lines of `texts`: byte fallback, digits apart, runs of spaces as tokens, none over a newline."""
        from io import BytesIO

        from sentencepiece import SentencePieceTrainer

        model = BytesIO()
        lines = (
            line[start : start + LONGEST_LINE]
            for text in texts
            for line in re.split("[\n\0]", text)
            for start in range(0, len(line), LONGEST_LINE)
        )
        try:
            SentencePieceTrainer.train(
                sentence_iterator=lines, model_writer=model, vocab_size=vocab_size, model_type="bpe",
                byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                split_by_unicode_script=False, character_coverage=0.9999, max_sentence_length=4 * LONGEST_LINE,
                unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise Error(_why_not_trained(str(error), vocab_size)) from None
        return cls(model.getvalue())

    def _encode_text(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def merges(self) -> Iterator[tuple[str, str]]:
        """The merges of a BPE, best first: every way to put a piece together from two, in the pieces' order."""
        known = {p for i, p in enumerate(self.pieces) if self.token_bytes[i] and not self._processor.is_byte(i)}
        ordered = sorted(known, key=lambda p: (-self._processor.get_score(self._processor.piece_to_id(p)), len(p)))
        for piece in ordered:
            for cut in range(1, len(piece)):
                if piece[:cut] in known and piece[cut:] in known:
                    yield piece[:cut], piece[cut:]

    def _rules(self) -> bytes:
        return self._model

    def _model_spec(self) -> dict[str, Any]:
        """The `tokenizers` library's model: BPE, whose scores are the ranks of its merges, or Unigram.

        Of a Unigram, SentencePiece adds the scores up in float32 and the library in float64: near-ties in a long text
        may fall differently.
        """
        sp = self._processor
        scores = [sp.get_score(i) for i in range(self.vocab_size)]
        fallback = any(sp.is_byte(i) for i in range(self.vocab_size))
        if all(score.is_integer() for score in scores):
            return tokenizer_json.bpe_spec(
                {piece: i for i, piece in enumerate(self.pieces)}, list(self.merges()), fallback
            )
        vocabulary = [list(pair) for pair in zip(self.pieces, scores, strict=True)]
        return {"type": "Unigram", "unk_id": sp.unk_id(), "vocab": vocabulary, "byte_fallback": fallback}

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(self._model)
        sp = self._processor
        control = {i: p for i, p in enumerate(self.pieces) if sp.is_control(i) or sp.is_unknown(i)}
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        decoders = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        decoder = {"type": "Sequence", "decoders": decoders}
        tokenizer_json.write(folder, self._model_spec(), control, normalizer, decoder)
        tokenizer_json.write_config(
            folder, *(None if i is None else self.pieces[i] for i in (self.bos_id, self.eos_id))
        )


def _why_not_trained(message: str, vocab_size: int) -> str:
    """SentencePiece's reason for not training, in our words, with what to do."""
    bytes_instead = "--set tokenizer.kind=byte"
    if most := re.search(r"too high.*<= (\d+)", message):
        size = int(most[1])
        smaller = f"--set tokenizer.vocab_size={size}" if size >= SMALLEST_BPE else bytes_instead
        return f"the corpus is too small for a vocabulary of {vocab_size}: add text, or {smaller}"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"a vocabulary of {vocab_size} has no room for the corpus's many characters: "
            f"--set tokenizer.vocab_size={least[1]} or more, or {bytes_instead}"
        )
    if "sentences_.empty()" in message:
        return f"there is no text to train a tokenizer on: add some, or {bytes_instead}"
    return f"the tokenizer could not be trained: {message.splitlines()[-1]}"


class HubTokenizer(Tokenizer):
    """A ready `tokenizer.json` (GPT-2's, Qwen's, …) through the `tokenizers` library.

    As with SentencePiece nothing is added, dropped or rewritten: no space in front, no Unicode normalisation.
    """

    def __init__(self, text: str, bos: str | None = None, eos: str | None = None) -> None:
        import tokenizers

        spec = json.loads(text)
        tokenizer_json.make_literal(spec)
        self._text, self._bos, self._eos = json.dumps(spec, ensure_ascii=False), bos, eos
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._text)
        except Exception as error:  # the library raises bare Exception
            raise Error(f"not a tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True  # a control token's name typed as text stays text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        control = {t["id"] for t in spec.get("added_tokens", []) if t.get("special")}
        byte_level = any(
            p["type"] == "ByteLevel" for name in tokenizer_json.STEPS for p in tokenizer_json.parts(spec.get(name))
        )
        to_bytes = tokenizer_json.byte_level_bytes if byte_level else tokenizer_json.metaspace_bytes
        self._unspeakable = Tokenizer._unspeakable if byte_level else SentencePieceTokenizer._unspeakable
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        self.token_bytes = [b""] * (max(pieces.values(), default=-1) + 1)
        added = {t["content"] for t in spec.get("added_tokens", [])}
        for piece, i in pieces.items():
            if i not in control:
                self.token_bytes[i] = piece.encode() if piece in added else to_bytes(piece)
        self.bos_id = pieces.get(bos) if bos else None
        self.eos_id = pieces.get(eos) if eos else None

    def _rules(self) -> bytes:
        return self._text.encode()

    def _encode_text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(self._text, encoding="utf-8")
        tokenizer_json.write_config(folder, self._bos, self._eos)


def load(path: Path) -> Tokenizer:
    """The tokenizer in a folder, or the one a `tokenizer.model` or `tokenizer.json` file holds. Raises Error."""
    if path.is_dir():
        found = next((path / n for n in ("tokenizer.model", "tokenizer.json") if (path / n).is_file()), None)
        if found is None:
            raise Error(f"{path} has no tokenizer: tokenizer.model or tokenizer.json is needed")
        path = found
    try:
        if path.suffix != ".json":
            return SentencePieceTokenizer(path.read_bytes())
        text = path.read_text(encoding="utf-8")
        return _char_tokenizer(json.loads(text)) or HubTokenizer(
            text, *tokenizer_json.control_tokens(path.with_name("tokenizer_config.json"))
        )
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Error(f"{path}: cannot be read as a tokenizer ({type(error).__name__}: {error})") from None


def _char_tokenizer(spec: dict[str, Any]) -> CharTokenizer | None:
    """The CharTokenizer that wrote a tokenizer.json, if one did."""
    model = spec["model"]
    if model["type"] != "BPE" or model["merges"] or spec.get("normalizer") or spec.get("pre_tokenizer"):
        return None
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokenizer = CharTokenizer("".join(p for p in pieces if len(p) == 1), model["byte_fallback"])
    return tokenizer if tokenizer.pieces == pieces else None


def make(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer a recipe asks for; "char" and "bpe" learn from `texts`, the corpus's training text in pieces."""
    if config.kind == "byte":
        return CharTokenizer("")
    if config.kind == "char":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return CharTokenizer("".join(sorted(seen)), config.byte_fallback)
    if config.kind == "bpe":
        return SentencePieceTokenizer.train(texts, config.vocab_size)
    if not config.path:
        raise UsageError('tokenizer.kind = "file" needs tokenizer.path: a tokenizer.model, tokenizer.json or a folder')
    if not Path(config.path).exists():
        raise UsageError(f"tokenizer.path: no such file or folder: {config.path}")
    return load(Path(config.path))
