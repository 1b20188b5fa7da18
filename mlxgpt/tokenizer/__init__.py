"""Text <-> tokens, byte for byte: characters, bytes, SentencePiece (our BPE, Mistral's), `tokenizer.json` and tekken.

Every tokenizer encodes any bytes and gives the same bytes back; a control token's name in a text stays text. Two files
carry one in a model folder, in the Hub's formats: `tokenizer.json` always, and `tokenizer.model` beside it for
SentencePiece. Mistral's own releases hold a `tekken.json` or a `tokenizer.model.v3` instead.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlxgpt.config import TokenizerConfig
from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer import characters, hub_json, tekken
from mlxgpt.tokenizer.base import FIM, Fim, Tokenizer
from mlxgpt.tokenizer.characters import CharTokenizer
from mlxgpt.tokenizer.hub import HubTokenizer
from mlxgpt.tokenizer.sentencepiece import SentencePieceTokenizer

__all__ = [
    "FIM", "CharTokenizer", "Fim", "HubTokenizer", "SentencePieceTokenizer", "Tokenizer", "candidates", "load", "make",
]  # fmt: skip

# tekken.json is what Mistral itself reads; the tokenizer.json that some of its repositories add cuts words otherwise.
NAMES = ("tokenizer.model", "tekken.json", "tokenizer.json")
RELEASED = re.compile(r"tokenizer\.model\.v(\d+)(?:m(\d+))?")  # its version, and that for images


def candidates(folder: Path) -> list[Path]:
    """The files in `folder` that hold a tokenizer, the one to use first."""
    versions = {p: [int(n or 0) for n in m.groups()] for p in folder.iterdir() if (m := RELEASED.fullmatch(p.name))}
    newest_first = sorted(versions, key=versions.__getitem__, reverse=True)
    return [path for path in [*(folder / name for name in NAMES), *newest_first] if path.is_file()]


def load(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer in a folder, or the one that a file of any kind holds. Raises Error.

    Of several in a folder: the first with no more than a model's `vocab_size` tokens, and where none fits, the first.
    """
    if not path.is_dir():
        return _read(path)
    try:
        found = candidates(path)
    except OSError as error:
        raise Error(f"{path} cannot be read: {error.strerror}") from None
    if not found:
        names = "tokenizer.model, tokenizer.json, tekken.json or tokenizer.model.v3"
        raise Error(f"{path} has no tokenizer: {names} is needed")
    first = _read(found[0])
    if vocab_size is None or first.vocab_size <= vocab_size:
        return first
    others = (_read(other) for other in found[1:])
    return next((other for other in others if other.vocab_size <= vocab_size), first)


def _read(path: Path) -> Tokenizer:
    try:
        opens = hub_json.says_opens(path.parent)
        if path.suffix != ".json":
            return SentencePieceTokenizer(path.read_bytes(), opens is not False)
        text = path.read_text(encoding="utf-8")
        spec = json.loads(text)
        if "model" not in spec and "config" in spec:
            return HubTokenizer(json.dumps(tekken.as_hub_json(spec), ensure_ascii=False), tekken.BOS, tekken.EOS)
        bos, eos = hub_json.control_tokens(path.parent, spec)
        return characters.from_hub_json(spec) or HubTokenizer(text, bos, eos, opens)
    except Error as error:
        raise Error(f"{path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Error(f"{path}: cannot be read as a tokenizer ({type(error).__name__}: {error})") from None


def make(config: TokenizerConfig, texts: Iterable[str], fim: bool = False) -> Tokenizer:
    """The tokenizer a recipe asks for; "char" and "bpe" learn from `texts`, the corpus's training text in pieces.

    A ready one has no `dummy_prefix` here: a model that is trained with it learns from text as it is. `fim`: with the
    control tokens for fill-in-the-middle, which a ready one must have. Raises Error, UsageError.
    """
    tokenizer = _make(config, texts, FIM if fim else ())
    if fim and (tokenizer.fim is None or tokenizer.eos_id is None):
        lacks = f"{', '.join(FIM)} and a token that ends a text"
        other = "tokenizer.byte_fallback = true" if config.kind == "char" else 'tokenizer.kind = "bpe"'
        raise Error(f"data.fim_rate above 0 needs a tokenizer with {lacks}: this one lacks some; set {other}")
    return tokenizer


def _make(config: TokenizerConfig, texts: Iterable[str], extra: Sequence[str]) -> Tokenizer:
    if config.kind == "byte":
        return CharTokenizer("", extra=extra)
    if config.kind == "char":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return CharTokenizer("".join(sorted(seen)), config.byte_fallback, extra)
    if config.kind == "bpe":
        return SentencePieceTokenizer.train(texts, config.vocab_size, extra)
    if not config.path:
        raise UsageError('tokenizer.kind = "file" needs tokenizer.path: a tokenizer.model, tokenizer.json or a folder')
    if not Path(config.path).exists():
        raise UsageError(f"tokenizer.path: no such file or folder: {config.path}")
    tokenizer = load(Path(config.path))
    tokenizer.dummy_prefix = b""
    return tokenizer
