"""Tokenizers: any bytes come back exactly, and what is saved means the same to every reader."""

import io
import itertools
import json
import sysconfig
import time
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tokenizers as hub
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlxgpt.config import TokenizerConfig
from mlxgpt.errors import Error, UsageError
from mlxgpt.tokenizer import FIM, CharTokenizer, HubTokenizer, SentencePieceTokenizer, Tokenizer, hub_json, load, make

STDLIB = Path(sysconfig.get_path("stdlib"))
NASTY = [
    *("▁", "▁▁", " ▁ ", "<s>", "</s>", "<unk>", "<0x0A>", "<|end|>", "<|tél|>", "\0", "\r\n", "\t", "    ", "\n\n"),
    *("😀", "👩‍👩‍👧", "é", "e\u0301", "Å", "ﬁ", "①", "가", "\u1100\u1161", "ẞ", "\u3000", "\u00a0", "\ufeff", "Ġ", "Ċ"),
    *("0123456789", "def f(a):\n    return a\n", "x" * 300, "##ing"),
]
BROKEN = [b"\xff", b"\xe2\x96", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
PIECES = [text.encode() for text in NASTY] + BROKEN
any_bytes = st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
mixed_bytes = st.lists(st.sampled_from(PIECES) | any_bytes, max_size=8).map(b"".join)


@cache
def source(count: int = 60) -> list[str]:
    """Real code: files of the running Python's standard library."""
    return [path.read_text(encoding="utf-8") for path in sorted(STDLIB.glob("*.py"))[:count]]


def bpe() -> Tokenizer:
    return SentencePieceTokenizer.train(source(), 1024)


def sentencepiece_model(**options) -> bytes:
    """A model as SentencePiece trains it by default: a space in front of every text, NFKC, Unigram."""
    model = io.BytesIO()
    lines = (line for text in source(12) for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=700, minloglevel=2, **options
    )
    return model.getvalue()


BYTES = [f"<0x{b:02X}>" for b in range(256)]


def trained_json(
    model: hub.models.Model, pre_tokenizer=None, normalizer=None, decoder=None, alphabet=(), special=("<|end|>",)
) -> str:  # fmt: skip
    """A tokenizer.json that the `tokenizers` library trained on real code."""
    tokenizer = hub.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.normalizer, tokenizer.decoder = pre_tokenizer, normalizer, decoder
    trainer = hub.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=list(special), initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(source(20), trainer)
    tokenizer.add_tokens(["<|tél|>"])
    return tokenizer.to_str()


def byte_level(normalizer=None, **options) -> Tokenizer:
    step = hub.pre_tokenizers.ByteLevel(**options)
    model, alphabet = hub.models.BPE(), hub.pre_tokenizers.ByteLevel.alphabet()
    text = trained_json(model, step, normalizer, hub.decoders.ByteLevel(), alphabet)
    return HubTokenizer(text, eos="<|end|>")


def with_bytes(pre_tokenizer, normalizer, decoder) -> Tokenizer:
    """A BPE over characters that spells unknown ones in bytes; trained a word at a time, to be quick."""
    training = hub.pre_tokenizers.Metaspace()
    spec = json.loads(trained_json(hub.models.BPE(), training, special=["<unk>", "<s>", "</s>", *BYTES]))
    tokenizer = hub.Tokenizer(hub.models.BPE())
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    spec["model"] |= {"byte_fallback": True, "unk_token": "<unk>"}
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in BYTES]
    steps = {name: step for name, step in json.loads(tokenizer.to_str()).items() if name in hub_json.STEPS}
    return HubTokenizer(json.dumps(spec | steps), "<s>", "</s>")


def llama_style() -> Tokenizer:
    """Llama's and Mistral's tokenizer.json: a space in front, spaces spelled ▁, unknown characters in bytes."""
    n, d = hub.normalizers, hub.decoders
    decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    return with_bytes(None, n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")]), decoder)


def metaspace() -> Tokenizer:
    d = hub.decoders
    return with_bytes(
        hub.pre_tokenizers.Metaspace(), hub.normalizers.NFKC(), d.Sequence([d.ByteFallback(), d.Metaspace(), d.Fuse()])
    )


MAKERS = {
    "byte": lambda: CharTokenizer(""),
    "char": lambda: make(TokenizerConfig(kind="char"), source(5)),
    "char with ▁": lambda: CharTokenizer("\0\n ab▁é😀"),
    "bpe": bpe,
    "unigram model": lambda: SentencePieceTokenizer(sentencepiece_model(byte_fallback=True)),
    "bpe model": lambda: SentencePieceTokenizer(sentencepiece_model(byte_fallback=True, model_type="bpe")),
    "byte level": byte_level,
    "byte level nfc": lambda: byte_level(hub.normalizers.NFC(), add_prefix_space=False),
    "byte level lower": lambda: byte_level(hub.normalizers.Lowercase()),
    "llama": llama_style,
    "metaspace": metaspace,
}
NAMES = list(MAKERS)
SPACE_IN_FRONT = {"unigram model", "bpe model", "llama", "metaspace"}  # of a text that the opening token begins


@cache
def made(name: str) -> Tokenizer:
    return MAKERS[name]()


@cache
def saved(name: str, root: Path) -> Path:
    folder = root / name.replace(" ", "-").replace("▁", "_")
    folder.mkdir()
    made(name).save(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=150)
@example(data=b"".join(PIECES))
@example(data=bytes(range(256)))
@example(data=b"")
@given(data=mixed_bytes)
def test_any_bytes_come_back(name, data):
    tokenizer = made(name)
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    assert all(tokenizer.token_bytes[i] for i in ids), "no control token comes from text"
    assert tokenizer.decode(tokenizer.begin(data)) == data


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_marked_where_there_are_marks(name):
    tokenizer = made(name)
    ids = tokenizer.document("a = 1\n")
    opening, closing = tokenizer.bos_id, tokenizer.eos_id
    text = "a = 1\n" if name not in SPACE_IN_FRONT else " a = 1\n"
    assert ids == [i for i in (opening, *tokenizer.encode(text), closing) if i is not None]
    assert tokenizer.decode(ids) == b"a = 1\n"
    assert (opening is not None) == (not name.startswith("byte level"))
    assert closing is not None


@pytest.mark.parametrize("name", NAMES)
def test_real_code_is_compressed(name):
    """What is put in front, or rewritten, must not make every text fall back to bytes."""
    text = source()[7]
    share = len(made(name).encode(text)) / len(text.encode())
    assert share <= 1 if name in ("byte", "char", "char with ▁") else share < 0.7


def test_a_token_that_was_added_is_its_own_text():
    for name in ("byte level", "llama"):
        assert [made(name).token_bytes[i] for i in made(name).encode("<|tél|>")] == ["<|tél|>".encode()]


def test_text_as_a_string_and_as_bytes_are_the_same():
    for name in NAMES:
        assert made(name).encode("é = 1\n") == made(name).encode("é = 1\n".encode())


@settings(deadline=None)
@given(data=mixed_bytes)
def test_characters_without_bytes_are_exact_or_refused(data):
    known = "\n abcdefé▁"
    tokenizer = CharTokenizer(known, byte_fallback=False)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (None, None, len(known))
    if set(data.decode("utf-8", "replace")) <= set(known):
        assert tokenizer.decode(tokenizer.encode(data)) == data
        assert len(tokenizer.encode(data)) == len(data.decode())
    else:
        with pytest.raises(Error, match="this tokenizer has no token for "):
            tokenizer.encode(data)


def test_a_model_without_bytes_is_exact_or_refused():
    tokenizer = SentencePieceTokenizer(sentencepiece_model())
    assert tokenizer.decode(tokenizer.encode(" def f(a):  return  a")) == b" def f(a):  return  a"
    for text in ("a\nb", "漢", "▁", b"\xff"):
        with pytest.raises(Error, match="no token for"):
            tokenizer.encode(text)


def test_nothing_is_put_in_front_within_a_text():
    for name in ("bpe", "unigram model", "bpe model", "llama", "metaspace", "byte level"):
        tokenizer = made(name)
        for text in ("return", " return", "  return", "    return x "):
            assert b"".join(tokenizer.token_bytes[i] for i in tokenizer.encode(text)) == text.encode()
    assert len(made("bpe").encode("return")) == 1


# ---------------------------------------------------------------------------------------------- our own BPE


def test_the_bpe_is_as_its_recipe_says():
    tokenizer = made("bpe")
    texts = [t for t in tokenizer.token_bytes if len(t) > 1]
    assert tokenizer.vocab_size == 1024
    assert not any(b"\n" in t for t in texts), "no token crosses a newline"
    assert not any(t[i : i + 1].isdigit() for t in texts for i in range(len(t))), "digits stand alone"
    for run in (2, 4, 8, 12, 16):
        assert b" " * run in texts
        assert [tokenizer.token_bytes[i] for i in tokenizer.encode(" " * run)] == [b" " * run]
    assert {bytes([b]) for b in range(256)} <= set(tokenizer.token_bytes)
    assert (tokenizer.token_bytes[1], tokenizer.token_bytes[2], tokenizer.bos_id, tokenizer.eos_id) == (b"", b"", 1, 2)
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode("2048")] == [b"2", b"0", b"4", b"8"]


def test_pieces_of_a_text_cut_after_newlines_have_the_texts_tokens():
    tokenizer, text = made("bpe"), source()[3] + "▁\r\n\0\n\n  x"
    assert [i for line in text.splitlines(keepends=True) for i in tokenizer.encode(line)] == tokenizer.encode(text)


def test_the_text_around_what_is_spelled_in_bytes_is_encoded_as_ever():
    for name in ("bpe", "unigram model", "llama"):
        encode, text = made(name).encode, source()[7][:2000]
        for spelled in ("▁", b"\xff\xfe", b"\n\xff\n"):
            data = spelled.encode() if isinstance(spelled, str) else spelled
            assert encode(text.encode() + data + text.encode()) == encode(text) + encode(data) + encode(text)


def test_training_is_deterministic():
    assert bpe().fingerprint() == made("bpe").fingerprint()


def test_odd_lines_are_trained_on():
    text = "\n\n" + "word " * 20_000 + "\0naught\0" * 999 + "\r\n" + "x" * 30_000 + " farther" * 999
    tokenizer = SentencePieceTokenizer.train([text, *source(3)], 600)
    assert {b" word", b"naught", b"xxxxxxxx", b" farther"} <= set(tokenizer.token_bytes)
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (
            ["value = value + 1\n" * 99, "import this\n" * 99],
            2048,
            r"too small .* 2048: add text, or --set tok.*=3\d\d$",
        ),
        (["a = 1\n"], 2048, "too small for a vocabulary of 2048: add text, or --set tokenizer.kind=byte$"),
        (["".join(map(chr, range(0x4E00, 0x5800)))], 300, r"no room for .* --set tokenizer.vocab_size=28\d\d or more"),
        (["\n\n", "\0", ""], 300, "there is no text to train a tokenizer on"),
    ],
)
def test_a_corpus_that_does_not_fit_the_vocabulary_says_what_to_set(texts, size, message):
    config = TokenizerConfig(vocab_size=size)
    with pytest.raises(Error, match=message) as caught:
        make(config, texts)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_that_an_error_names_works():
    texts = ["".join(map(chr, range(0x4E00, 0x4F00))), "value = value + 1\n" * 9]
    for size in (300, 5000):
        with pytest.raises(Error) as caught:
            make(TokenizerConfig(vocab_size=size), texts)
        named = int(str(caught.value).split("vocab_size=")[1].split()[0])
        assert make(TokenizerConfig(vocab_size=named), texts).vocab_size == named


# ------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize("name", ["bpe", "byte level nfc", "llama"])
def test_a_megabyte_full_of_trouble_is_quick(name):
    spoilers = itertools.cycle(["▁", "<s>", "<0x0A>", "e\u0301", "😀\0"])
    text = "".join(line + next(spoilers) + "\n" for code in source() for line in code.splitlines())[:1_000_000]
    started = time.process_time()
    ids = made(name).encode(text)
    assert time.process_time() - started < 5, "0.3 to 0.6 s where it was measured"
    assert made(name).decode(ids) == text.encode()


class Forgetful(Tokenizer):
    """Loses every capital letter, and counts what it is asked."""

    def __init__(self) -> None:
        self.token_bytes = [bytes([b]) for b in range(256)]
        self.asked = self.depth = self.deepest = 0

    def _encode_text(self, text: str) -> list[int]:
        self.asked += len(text)
        return list("".join(c for c in text if not c.isupper()).encode())

    def _encode_exactly(self, text: str) -> list[int]:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        try:
            return super()._encode_exactly(text)
        finally:
            self.depth -= 1


@pytest.mark.parametrize(
    "text",
    [
        "x" * 50_000 + "X" + "x" * 50_000,
        "\n" * 50_000 + "X" * 50_000,
        "X" * 50_000 + "\n" * 50_000,
        "".join("x" * 2**n + "X\n" for n in range(16)),
        "".join("X" + "x" * 2**n + "\n" for n in reversed(range(16))),
        "X\n" * 50_000,
    ],
    ids=["one", "after lines", "before lines", "growing lines", "shrinking lines", "every line"],
)
def test_narrowing_down_is_bounded(text):
    tokenizer = Forgetful()
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode()
    assert tokenizer.deepest <= 2 * len(text).bit_length() + 2
    assert tokenizer.asked <= 2 * len(text).bit_length() * len(text)


# ----------------------------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_tokenizer_is_the_same_one(name, root):
    tokenizer, folder = made(name), saved(name, root)
    again = load(folder)
    assert type(again) is type(tokenizer)
    assert again.token_bytes == tokenizer.token_bytes
    assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.dummy_prefix == b"", "what is trained with a saved tokenizer saw none"
    for data in (*PIECES, source()[5].encode()):
        assert again.encode(data) == tokenizer.encode(data)
    twice = root / f"{folder.name}-twice"
    twice.mkdir()
    again.save(twice)
    assert {p.name: p.read_bytes() for p in twice.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_json_means_the_same_to_the_tokenizers_library(name, root):
    tokenizer = made(name)
    theirs = hub.Tokenizer.from_file(str(saved(name, root) / "tokenizer.json"))
    texts = [text[:1000] for text in source()] if name == "unigram model" else source(12)
    for text in (*texts, "x", " x", "  x\r\n\t😀漢 0123456789", "é\0", " " * 70 + "_" * 70 + "#" * 70):
        encoded = theirs.encode(text, add_special_tokens=False)
        assert encoded.ids == tokenizer.encode(text)
        assert theirs.decode(encoded.ids) == text
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    config = json.loads((saved(name, root) / "tokenizer_config.json").read_text())
    assert config["add_prefix_space"] is False, "or llama.cpp's converter has it put one before a text"
    for i in (tokenizer.bos_id, tokenizer.eos_id):
        if i is not None:
            assert theirs.decode([i]) == "", "a control token is no text"


@given(st.text(alphabet=" _=#abcdefilnorstx\n0", max_size=80))
def test_merges_have_the_order_of_the_scores(text):
    assert _theirs().encode(text).ids == made("bpe").encode(text)


@cache
def _theirs() -> hub.Tokenizer:
    spec = {"version": "1.0", "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}
    return hub.Tokenizer.from_str(json.dumps(spec | {"model": made("bpe")._model_spec()}))


def test_transformers_opens_the_folders(root):
    from transformers import AutoTokenizer

    text = source()[7]
    for name in ("bpe", "char", "byte level nfc"):
        tokenizer = made(name)
        theirs = AutoTokenizer.from_pretrained(saved(name, root))
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text)
        assert theirs.decode(ids) == text
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_a_fingerprint_is_of_all_that_a_tokenizer_does():
    prints = [made(name).fingerprint() for name in NAMES]
    assert len(set(prints)) == len(prints)
    spec = json.loads(made("byte level")._text)
    spec["model"]["merges"] = spec["model"]["merges"][::-1]
    other = HubTokenizer(json.dumps(spec), eos="<|end|>")
    assert other.token_bytes == made("byte level").token_bytes
    assert other.fingerprint() != made("byte level").fingerprint()


def test_what_looks_like_characters_but_is_not(root):
    """A tokenizer.json without merges that is not ours is read as what it is."""
    step, decoder = hub.pre_tokenizers.ByteLevel(add_prefix_space=False), hub.decoders.ByteLevel()
    vocabulary = {c: i for i, c in enumerate(sorted(hub.pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = hub.Tokenizer(hub.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = step, decoder
    tokenizer.save(str(root / "alphabet.json"))
    loaded = load(root / "alphabet.json")
    assert loaded.encode("a é\n") == tokenizer.encode("a é\n").ids
    assert loaded.decode(loaded.encode("a é\n")) == "a é\n".encode()
    hub.Tokenizer(hub.models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[])).save(str(root / "unmerged.json"))
    assert load(root / "unmerged.json").token_bytes == [b"a", b"b", b"ab"]


# --------------------------------------------------------------------------------------------- completions


@pytest.mark.parametrize("name", ["byte", "char", "bpe", "byte level", "llama"])
@settings(deadline=None)
@given(data=st.data())
def test_completions_are_those_of_brute_force(name, data):
    tokenizer = made(name)
    whole = data.draw(st.sampled_from(tokenizer.token_bytes) | st.binary(max_size=4))
    prefix = whole[: data.draw(st.integers(0, 40))] + data.draw(st.sampled_from([b"", b"e", b"\n", b"\xff", b"return"]))
    expected = [i for i, b in enumerate(tokenizer.token_bytes) if b and (b.startswith(prefix) or prefix.startswith(b))]
    got = tokenizer.completions(prefix)
    assert sorted(got) == expected
    assert len(set(got)) == len(got)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"\0", b"junk", b"{}", b"[]", b'{"model": 5}', b"[" * 99_999, b"\xff\xfe"])
def test_a_broken_file_is_one_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(Error, match=rf"{name}: ") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_one_error(root, tmp_path):
    for name, file in (("bpe", "tokenizer.model"), ("byte level", "tokenizer.json"), ("char", "tokenizer.json")):
        content = (saved(name, root) / file).read_bytes()
        for share in (0.1, 0.5, 0.99):
            (tmp_path / file).write_bytes(content[: int(len(content) * share)])
            with pytest.raises(Error, match=file):
                load(tmp_path / file)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["model"].update(vocab=[]),
        lambda spec: spec["model"].update(vocab={"a": "b"}),
        lambda spec: spec["model"].pop("type"),
        lambda spec: spec.update(added_tokens=[{"special": True}]),
        lambda spec: spec.update(added_tokens=5),
        lambda spec: spec.update(normalizer={"type": "Sequence"}),
        lambda spec: spec.update(normalizer=5),
        lambda spec: spec.update(pre_tokenizer={"type": "Nothing"}),
    ],
)
def test_a_damaged_json_is_one_error(root, tmp_path, change):
    spec = json.loads((saved("byte level", root) / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(Error, match=r"tokenizer\.json: ") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", '{"bos_token": 5, "eos_token": []}'])
def test_a_damaged_tokenizer_config_is_one_error(root, tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes((saved("byte level", root) / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(Error, match=r"tokenizer(_config)?\.json: "):
        load(tmp_path)


def test_nothing_to_load_is_an_error(tmp_path):
    kinds = r"tokenizer\.model, tokenizer\.json, tekken\.json or tokenizer\.model\.v3"
    with pytest.raises(Error, match=f"has no tokenizer: {kinds} is needed"):
        load(tmp_path)
    with pytest.raises(Error, match=r"gone\.json: cannot be read as a tokenizer"):
        load(tmp_path / "gone.json")
    with pytest.raises(UsageError, match=r"needs tokenizer\.path"):
        make(TokenizerConfig(kind="file"), [])
    with pytest.raises(UsageError, match="no such file or folder"):
        make(TokenizerConfig(kind="file", path=str(tmp_path / "gone")), [])


def test_make_gives_what_a_recipe_asks_for(root):
    texts = ["def f():\n", "    é = 1\n"]
    assert made("byte").token_bytes == make(TokenizerConfig(kind="byte"), []).token_bytes
    characters = make(TokenizerConfig(kind="char", byte_fallback=False), texts)
    assert characters.token_bytes == [c.encode() for c in sorted(set("".join(texts)))]
    assert make(TokenizerConfig(kind="file", path=str(saved("bpe", root))), []).fingerprint() == bpe().fingerprint()
    assert hub_json.UNK not in made("char").pieces


@pytest.mark.parametrize("names", [FIM, ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")])
def test_a_ready_tokenizers_tokens_for_infilling_are_control_tokens_whatever_its_file_says(names):
    """Qwen2.5's calls them no special tokens, and the `tokenizers` library then finds them in any text."""
    spec = json.loads(trained_json(hub.models.BPE(), hub.pre_tokenizers.ByteLevel(), special=["<|end|>", *names]))
    for token in spec["added_tokens"]:
        token["special"] = token["content"] not in names
    made = HubTokenizer(json.dumps(spec), eos="<|end|>")
    assert list(made.fim) == [made.control[name] for name in names]
    assert not set(made.encode("".join(names))) & set(made.fim)
    assert made.decode(made.fim) == b""


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_control_tokens_for_infilling_are_saved_and_found_again(kind, tmp_path):
    made = make(TokenizerConfig(kind=kind, vocab_size=400), source(5), fim=True)
    made.save(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(made)
    assert again.fim == made.fim is not None
    assert again.fingerprint() == made.fingerprint()
    theirs = hub.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [theirs.token_to_id(name) for name in FIM] == list(made.fim)
    plain = make(TokenizerConfig(kind=kind, vocab_size=400), source(5))
    assert plain.fim is None
    assert made.vocab_size == plain.vocab_size + (0 if kind == "bpe" else 3)
