"""SentencePiece models: the BPE that mlxgpt trains, and Llama's and Mistral's `tokenizer.model`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlxgpt.config import SMALLEST_BPE
from mlxgpt.errors import Error
from mlxgpt.tokenizer import hub_json
from mlxgpt.tokenizer.base import SURROGATES_AND_SPACE, Tokenizer
from mlxgpt.tokenizer.hub_json import SPACE

# Protocol buffers merge what is appended: ModelProto.normalizer_spec (field 3) gets an empty precompiled_charsmap (2),
# and add_dummy_prefix (3) and remove_extra_whitespaces (4) set to false: nothing is added, dropped or rewritten.
EVERY_BYTE_IS_TEXT = bytes([3 << 3 | 2, 6, 2 << 3 | 2, 0, 3 << 3, 0, 4 << 3, 0])
LONGEST_LINE = 1 << 12  # characters; SentencePiece is trained on longer lines in parts


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model: ours (BPE with byte fallback, trained by `train`) or a ready one such as Mistral's.

    Of a ready one's normalisation only the space in front is kept, as the `dummy_prefix`, and only where the opening
    token, without which it could not be told from text, `opens` every text.
    """

    _unspeakable = SURROGATES_AND_SPACE

    def __init__(self, model: bytes, opens: bool = True) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = model.removesuffix(EVERY_BYTE_IS_TEXT) + EVERY_BYTE_IS_TEXT
        try:
            self._processor = sp = SentencePieceProcessor(model_proto=self._model)
            prefixed = SentencePieceProcessor(model_proto=model).normalize("x").startswith(SPACE)
        except RuntimeError as error:
            raise Error(f"not a SentencePiece model: {error}") from None
        self.pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
        self.token_bytes = [self._bytes_of(i) for i in range(sp.vocab_size())]
        self.bos_id = sp.bos_id() if sp.bos_id() >= 0 else None
        self.eos_id = sp.eos_id() if sp.eos_id() >= 0 else None
        self.control = {p: i for i, p in enumerate(self.pieces) if sp.is_control(i) or sp.is_unknown(i)}
        self.opens = opens
        self.dummy_prefix = b" " if prefixed and opens and self.bos_id is not None else b""

    def _bytes_of(self, i: int) -> bytes:
        sp = self._processor
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            return b""
        if sp.is_byte(i):
            return bytes([int(self.pieces[i][3:5], 16)])
        return self.pieces[i].replace(SPACE, " ").encode()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, extra: Sequence[str] = ()) -> "SentencePieceTokenizer":
        """BPE on the lines of `texts`: byte fallback, digits apart, runs of spaces as tokens, none over a newline.

        `extra` names control tokens beside the three that are always there; they count as of the vocabulary.
        """
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
                unk_id=0, bos_id=1, eos_id=2, pad_id=-1, control_symbols=list(extra), minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise Error(_why_not_trained(str(error), vocab_size)) from None
        return cls(model.getvalue())

    def _encode_text(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def merges(self) -> list[tuple[str, str]]:
        """The merges of a BPE, best first: every way to put a piece together from two, by the scores of the pieces.

        SentencePiece merges the leftmost of equals, so Mistral's runs of spaces, all of one score, grow from the left
        until they are the longest: that is the order of the longest left part first.
        """
        sp = self._processor
        scores = {p: sp.get_score(i) for i, p in enumerate(self.pieces) if self.token_bytes[i] and not sp.is_byte(i)}
        pairs = [
            (piece[:cut], piece[cut:])
            for piece in scores
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ]
        return sorted(pairs, key=lambda pair: (-scores["".join(pair)], -len(pair[0]), -len(pair[1])))

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
            return hub_json.bpe_spec({piece: i for i, piece in enumerate(self.pieces)}, self.merges(), fallback)
        vocabulary = [list(pair) for pair in zip(self.pieces, scores, strict=True)]
        return {"type": "Unigram", "unk_id": sp.unk_id(), "vocab": vocabulary, "byte_fallback": fallback}

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model`, and `tokenizer.json` and `tokenizer_config.json` which mean the same, into `folder`.

        Without a dummy prefix: it is how a model trained with this tokenizer reads text, for every reader.
        """
        (folder / "tokenizer.model").write_bytes(self._model)
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        decoders = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        decoder = {"type": "Sequence", "decoders": decoders}
        hub_json.write(folder, hub_json.spec(self._model_spec(), self.control, normalizer, decoder))
        bos, eos = (None if i is None else self.pieces[i] for i in (self.bos_id, self.eos_id))
        hub_json.write_config(folder, bos, eos, self.opens)


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
