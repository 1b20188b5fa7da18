"""The tokenizers of Mistral's models: the ids are those of mistral-common, and any bytes come back exactly."""

import base64
import json
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import mistral_common
import mlx.core as mx
import numpy as np
import pytest
import tokenizers as hub
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mlxgpt import models, weights
from mlxgpt.completion.prefixes import Prefix
from mlxgpt.completion.prompt import Prompt, build
from mlxgpt.completion.suggest import Suggester
from mlxgpt.config import TokenizerConfig
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Choice, Request, text_of
from mlxgpt.models import gpt2
from mlxgpt.tokenizer import HubTokenizer, SentencePieceTokenizer, Tokenizer, candidates, load, make

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "tekken": "tekken_240911.json",
}
PIECES = ["v1", "v2", "v3", "v7"]  # of SentencePiece
NAMES = list(FILES)
STDLIB = Path(sysconfig.get_path("stdlib"))
CONTROL = ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<pad>", "[TOOL_CALLS]", "[control_8]", "<SPECIAL_20>", "[IMG]"]
HARD = [
    *("", " ", "  ", "\n", " \n", "\t", "\t\t x\t", "x", " x", "  x", "return", " return", "    return x ", "x  "),
    *("def f(a):\n\treturn  a\r\n", "if x:\n        y = [1,  2,\n             3]\n", "0x1F 1234567890 3.14e-10"),
    *("😀", "👩‍👩‍👧", "a😀b", "漢字かな交じり文", "한국어", "العربية", "é", "e\u0301", "Å ﬁ ①", "\u1100\u1161"),
    *("\u3000", "\u00a0", "\ufeffx", "\0", "a\0b", "\x7f", "\u200b", "\U0010ffff", "ß", "x" * 300, " " * 99, "\n" * 30),
    *CONTROL, "".join(CONTROL), "<s>[INST] hi [/INST]", " </s> x", "<0x0A>", "<s", "[INST",
]  # fmt: skip
BROKEN = [b"\xff", b"\xe2\x96", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
ODD = [text.encode() for text in [*HARD, "▁", "▁▁", " ▁ "]] + BROKEN
any_bytes = st.binary(max_size=40) | st.text(max_size=40).map(str.encode)
mixed_bytes = st.lists(st.sampled_from(ODD) | any_bytes, max_size=6).map(b"".join)
# SentencePiece takes ▁ for a space, which would not come back: ours spells it in bytes.
texts = st.lists(st.sampled_from(HARD) | st.text(max_size=30), max_size=6).map(lambda t: "".join(t).replace("▁", ""))


@cache
def mine(name: str) -> Tokenizer:
    return load(DATA / FILES[name])


@cache
def mistral(name: str) -> MistralTokenizer:
    return MistralTokenizer.from_file(str(DATA / FILES[name]))


def theirs(name: str, text: str, bos: bool = False, eos: bool = False) -> list[int]:
    return mistral(name).instruct_tokenizer.tokenizer.encode(text, bos=bos, eos=eos)


def llama_json(first: bool) -> str:
    """A tokenizer.json of v3 as those on the Hub are: by a normalizer, or as newer ones `first`, by a pre-tokenizer."""
    folder_json = json.loads(_saved_json("v3"))
    spaces = folder_json["normalizer"]
    if first:
        folder_json["normalizer"] = None
        folder_json["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
        }  # fmt: skip
    else:
        folder_json["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}
    folder_json["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    opening = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = [{"Sequence": {"id": x, "type_id": 0}} for x in "AB"]
    folder_json["post_processor"] = {
        "type": "TemplateProcessing", "single": [opening, text[0]], "pair": [opening, *text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    return json.dumps(folder_json)


@cache
def _saved_json(name: str) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        mine(name).save(Path(folder))
        return (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")


@cache
def from_json(first: bool) -> HubTokenizer:
    return HubTokenizer(llama_json(first), "<s>", "</s>")


# ------------------------------------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("name", NAMES)
def test_hard_text_has_the_tokens_of_mistral_common(name):
    for text in HARD:
        assert mine(name).begin(text) == theirs(name, text, bos=True), text
        assert mine(name).begin(text.encode()) == theirs(name, text, bos=True), text
        assert mine(name).document(text) == theirs(name, text, bos=True, eos=True), text


@pytest.mark.parametrize("name", NAMES)
def test_code_has_the_tokens_of_mistral_common(name):
    for path in sorted(STDLIB.glob("*.py"))[:40]:
        text = path.read_text(encoding="utf-8").replace("▁", "")
        assert mine(name).begin(text) == theirs(name, text, bos=True), path


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_any_text_has_the_tokens_of_mistral_common(name, text):
    assert mine(name).begin(text) == theirs(name, text, bos=True)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="aab \n\t=_-#漢é0", max_size=60))
def test_tekkens_repeats_are_merged_in_its_order(text):
    """Where several pairs of tokens make the same third one, which is merged first is not in the file."""
    assert mine("tekken").encode(text) == theirs("tekken", text)


@pytest.mark.parametrize("first", [False, True])
@settings(deadline=None, max_examples=100)
@example(text="".join(HARD))
@example(text="\n" + " " * 99)
@given(text=texts)
def test_a_tokenizer_json_of_the_hub_has_them_too(first, text):
    assert from_json(first).begin(text) == theirs("v3", text, bos=True)


def test_every_version_has_its_vocabulary():
    sizes = {name: mine(name).vocab_size for name in NAMES}
    assert sizes == {"v1": 32000, "v2": 32768, "v3": 32768, "v7": 32768, "tekken": 131072}
    for name in NAMES:
        assert (mine(name).bos_id, mine(name).eos_id) == (1, 2)
        assert mine(name).control["<s>"] == 1
        special = mistral(name).instruct_tokenizer.tokenizer.special_ids
        assert set(mine(name).control.values()) == special | {0}
        assert {i for i, data in enumerate(mine(name).token_bytes) if not data} == special | {0}


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=200)
@example(data=b"".join(ODD))
@example(data=bytes(range(256)))
@example(data=b"")
@given(data=mixed_bytes)
def test_any_bytes_come_back(name, data):
    tokenizer = mine(name)
    ids = tokenizer.encode(data)
    assert tokenizer.decode(ids) == data
    assert tokenizer.decode(tokenizer.begin(data)) == data
    assert tokenizer.decode(tokenizer.document(data)) == data
    assert all(tokenizer.token_bytes[i] for i in ids), "no control token comes from text"


@pytest.mark.parametrize("tokenizer", [*map(mine, NAMES), from_json(False), from_json(True)], ids=[*NAMES, "0", "1"])
def test_control_tokens_that_a_user_types_are_text(tokenizer):
    for name in tokenizer.control:
        for text in (name, f"a{name}b", f" {name} "):
            assert not set(tokenizer.encode(text)) & set(tokenizer.control.values())
            assert b"".join(tokenizer.token_bytes[i] for i in tokenizer.encode(text)) == text.encode()


def test_the_space_in_front_is_only_of_the_beginning():
    tokenizer = mine("v3")
    assert [tokenizer.token_bytes[i] for i in tokenizer.begin("return x")] == [b"", b" return", b" x"]
    assert [tokenizer.token_bytes[i] for i in tokenizer.encode("return x")] == [b"return", b" x"]
    assert tokenizer.begin("") == [1]
    assert tokenizer.decode(tokenizer.begin(" x")) == b" x"
    assert tokenizer.decode(tokenizer.encode(" x")) == b" x", "a text's middle has no space to hide"
    assert mine("tekken").dummy_prefix == b""


# --------------------------------------------------------------------------------------------------- chat

# As the chat templates of the Hub's Mistral-7B-Instruct-v0.1 to v0.3 and Mistral-Nemo-Instruct-2407 render it: those of
# v0.1 and v0.2 have changed, from the first form to the second.
TEMPLATES = {
    "v1": ["<s>{0}</s>{1}</s>{2}", "<s> {0}</s> {1}</s> {2}", "<s>{0}</s> {1}</s> {2}"],
    "v2": ["<s>{0}</s>{1}</s>{2}"],
    "v3": ["<s>{0}</s>{1}</s>{2}"],
    "v7": ["<s>{0}</s>{1}</s>{2}"],
    "tekken": ["<s>{0}</s>{1}</s>{2}"],
}
TURNS = {"v1": ("[INST] {} [/INST]", " {}"), "tekken": ("[INST]{}[/INST]", "{}")}
CHAT = [("hi", "Hello!"), ("def f():\n\treturn  1", "  x = 漢\n"), (" and\n\nthis 😀?", None)]


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_template_has_the_tokens_of_mistral_common(name):
    messages = [m for u, a in CHAT for m in (UserMessage(content=u), AssistantMessage(content=a) if a else None) if m]
    if name == "v1":  # within one run of text, where a leading space would be seen twice
        messages[3] = AssistantMessage(content="x = 漢\n")
    expected = mistral(name).encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
    asked, answered = TURNS.get(name, ("[INST] {}[/INST]", " {}"))
    turns = [
        asked.format(u.content) + (answered.format(a.content) if a else "")
        for u, a in zip(messages[::2], [*messages[1::2], None], strict=True)
    ]
    for template in TEMPLATES[name]:
        assert mine(name).encode_template(template.format(*turns)) == expected
    if name == "v3":
        for first in (False, True):
            library = hub.Tokenizer.from_str(llama_json(first))
            rendered = TEMPLATES[name][0].format(*turns)
            ids = from_json(first).encode_template(rendered)
            assert ids == library.encode(rendered, add_special_tokens=False).ids
            assert ids == expected or not first, "a normalizer puts a space behind every control token"


def test_a_template_may_hold_what_is_not_utf8():
    for tokenizer in (mine("v3"), mine("tekken"), from_json(True)):
        ids = tokenizer.encode_template("[INST] \udcff[/INST]")
        assert (ids[0], ids[-1]) == (tokenizer.control["[INST]"], tokenizer.control["[/INST]"])
        assert tokenizer.decode(ids[1:-1]) == b" \xff"


# ----------------------------------------------------------------------------------- generation, completion


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["return x", "  two  spaces ", " é😀漢\n", "\tx"])
def test_the_text_that_is_streamed_is_the_texts_own(name, text):
    """Wherever the prompt ends and the answer begins, also in the middle of a character."""
    tokenizer = mine(name)
    ids = tokenizer.begin(text)
    for cut in range(1, len(ids)):
        prompt, rest = ids[:cut], ids[cut:]
        pieces = text_of((Choice(i, 0.0) for i in rest), tokenizer, Request(len(rest)), prompt)
        streamed = "".join(p.text for p in pieces)
        expected = text.encode()[len(tokenizer.decode(prompt)) :]
        assert streamed == expected.decode("utf-8", "replace")


def test_an_answer_after_a_control_token_begins_without_the_dummy_prefix():
    tokenizer = mine("v3")
    answer = tokenizer.encode_template("[/INST]Hello there")
    for controls in ([], [tokenizer.control["[TOOL_CALLS]"]]):
        choices = (Choice(i, 0.0) for i in [*controls, *answer[1:]])
        assert "".join(p.text for p in text_of(choices, tokenizer, Request(9), answer[:1])) == "Hello there"


@settings(deadline=None, max_examples=200)
@given(prefix=mixed_bytes, budget=st.integers(1, 40))
def test_a_prompt_and_its_remainder_are_the_end_of_the_prefix(prefix, budget):
    for tokenizer in (mine("v3"), mine("tekken")):
        prompt = build(tokenizer, prefix, budget)
        assert 1 <= len(prompt.ids) <= budget
        spelled = b"".join(tokenizer.token_bytes[i] for i in prompt.ids) + prompt.remainder
        if prompt.ids[0] == tokenizer.bos_id:
            assert spelled.startswith(tokenizer.dummy_prefix) or len(prompt.ids) > 1
            spelled = spelled.removeprefix(tokenizer.dummy_prefix)
        assert prefix.endswith(spelled)


def test_the_first_word_is_spelled_as_in_the_middle_of_a_text():
    tokenizer = mine("v3")
    assert build(tokenizer, b"", 10) == Prompt([1], b" ")
    assert build(tokenizer, b"retu", 10) == Prompt([1], b" retu")
    assert build(tokenizer, b" retu", 10) == Prompt([1], b"  retu")
    assert build(mine("tekken"), b"retu", 10) == Prompt([1], b"retu")
    assert build(mine("tekken"), b"", 10) == Prompt([1], b"")


@pytest.mark.parametrize(("prefix", "completion"), [(b"", "return x"), (b"re", "turn x"), (b"return", " x")])
def test_a_completion_does_not_show_the_dummy_prefix(prefix, completion, monkeypatch):
    tokenizer = mine("v3")
    said = tokenizer.begin("return x\n")

    def logits(self, ids, rows=1, check=None):
        """What a model that says one text gives after the opening of it."""
        assert list(ids) == said[: len(ids)]
        lines = [50 * np.eye(1, tokenizer.vocab_size, said[n]) for n in range(len(ids) - rows + 1, len(ids) + 1)]
        return mx.array(np.concatenate(lines).astype(np.float32))

    monkeypatch.setattr(Prefix, "logits", logits)
    model = models.build(gpt2.Config(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=8, n_layer=1, n_head=1))
    assert Suggester(model, tokenizer).suggest(prefix).completion == completion


# ------------------------------------------------------------------------------------------ files in a folder


def folder_of(path: Path, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, version in files.items():
        shutil.copy(DATA / FILES[version], path / name.replace("__", "."))
    return path


def test_the_newest_file_that_fits_the_vocabulary_is_read(tmp_path):
    folder = folder_of(tmp_path, tokenizer__model__v1="v1", tokenizer__model__v3="v3", tokenizer__model__v2="v2")
    names = [path.name for path in candidates(folder)]
    assert names == ["tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1"]
    assert load(folder).fingerprint() == mine("v3").fingerprint()
    assert load(folder, 32768).fingerprint() == mine("v3").fingerprint()
    assert load(folder, 32000).fingerprint() == mine("v1").fingerprint()
    assert load(folder, 100).vocab_size == 32768, "for the caller to say what does not fit"
    folder_of(tmp_path, tokenizer__model__v11="v7", tokenizer__model__v7m1="v7", tokenizer__model__v7="v7")
    (folder / "tokenizer.model.v3.bak").write_bytes(b"junk")
    assert [path.name for path in candidates(folder)][:3] == [f"tokenizer.model.{v}" for v in ("v11", "v7m1", "v7")]
    folder_of(tmp_path, tokenizer__model="v1")
    assert candidates(folder)[0].name == "tokenizer.model"
    assert load(folder).fingerprint() == mine("v1").fingerprint()


def test_a_folder_with_tekken_alone_has_a_tokenizer(tmp_path):
    tokenizer = load(folder_of(tmp_path, tekken__json="tekken"))
    assert tokenizer.encode("def f():") == theirs("tekken", "def f():")
    assert tokenizer.fingerprint() == mine("tekken").fingerprint()


def test_a_vocabulary_that_does_not_fit_the_model_is_one_error(tmp_path):
    config = gpt2.Config(vocab_size=20000, n_positions=8, n_embd=2, n_layer=1, n_head=1)
    from mlxgpt import models

    weights.save_tokenizer_and_config(tmp_path, config, mine("v1"))
    weights.save_weights(tmp_path / "model.safetensors", weights.to_disk(models.build(config)))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(Error, match=r"has no tokenizer: .* is needed"):
        weights.load_with_tokenizer(tmp_path)
    folder_of(tmp_path, tokenizer__model__v3="v3", tokenizer__model__v1="v1")
    with pytest.raises(Error, match="the tokenizer has 32768 tokens and the model only 20000"):
        weights.load_with_tokenizer(tmp_path)


def small_tekken() -> dict:
    """A tekken.json with 256 bytes, two words and three control tokens."""
    words = [*(bytes([b]) for b in range(256)), b"ab", b"abc", b"beyond"]
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(word).decode(), "token_str": None} for i, word in enumerate(words)
    ]
    config = {"pattern": r"\p{L}+|\s+|.", "default_vocab_size": 262, "default_num_special_tokens": 4, "version": "v11"}
    special = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    return {"config": config, "vocab": vocabulary, "special_tokens": special}


def test_a_tekken_names_its_control_tokens(tmp_path):
    (tmp_path / "tekken.json").write_text(json.dumps(small_tekken()))
    tokenizer = load(tmp_path)
    assert tokenizer.control == {"<unk>": 0, "<s>": 1, "</s>": 2, "<SPECIAL_3>": 3}
    assert tokenizer.begin("abcab") == [1, 261, 260]
    assert tokenizer.encode_template("<s>ab</s>") == [1, 260, 2]
    assert tokenizer.vocab_size == 262


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("config"),
        lambda t: t.pop("vocab"),
        lambda t: t["config"].pop("pattern"),
        lambda t: t["config"].update(pattern="("),
        lambda t: t["config"].update(default_vocab_size=999),
        lambda t: t["config"].update(default_vocab_size="262"),
        lambda t: t["config"].update(default_num_special_tokens=-1),
        lambda t: t["vocab"].reverse(),
        lambda t: t["vocab"][256].update(token_bytes="YQ=="),
        lambda t: t["vocab"][256].update(token_bytes="%"),
        lambda t: t["vocab"].__setitem__(256, 5),
        lambda t: t["special_tokens"].append(t["special_tokens"][0]),
        lambda t: t.update(special_tokens=5),
    ],
)
def test_a_damaged_tekken_is_one_error(tmp_path, change):
    table = small_tekken()
    change(table)
    (tmp_path / "tekken.json").write_text(json.dumps(table))
    with pytest.raises(Error, match=r"tekken\.json: ") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- the opening token, as the model says


def hub_folder(path: Path, spec: str, **tables: dict) -> Tokenizer:
    path.mkdir()
    (path / "tokenizer.json").write_text(spec, encoding="utf-8")
    for name, table in tables.items():
        (path / f"{name}.json").write_text(json.dumps(table))
    return load(path)


def test_a_text_is_opened_as_the_models_tokenizer_says(tmp_path):
    spec, names = llama_json(True), {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    ids = theirs("v3", "x = 1")
    assert hub_folder(tmp_path / "post", spec, tokenizer_config=names).begin("x = 1") == [1, *ids]
    never = hub_folder(tmp_path / "never", spec, tokenizer_config=names | {"add_bos_token": False})
    assert never.begin("x = 1") == never.encode("x = 1")
    assert never.begin("") == [1], "what else is there to begin with"
    silent = json.dumps(json.loads(spec) | {"post_processor": None})
    assert hub_folder(tmp_path / "silent", silent, tokenizer_config=names).begin("x = 1") == [1, *ids]
    (tmp_path / "again").mkdir()
    never.save(tmp_path / "again")
    assert load(tmp_path / "again").begin("x") == never.begin("x")
    (tmp_path / "pieces").mkdir()
    shutil.copy(DATA / FILES["v3"], tmp_path / "pieces" / "tokenizer.model")
    (tmp_path / "pieces" / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    unopened = load(tmp_path / "pieces")
    assert unopened.begin("x = 1") == unopened.encode("x = 1")


def test_gpt2_is_not_opened_and_stops_at_its_end_of_text(tmp_path):
    """As on the Hub: its tokenizer_config.json names neither token, and config.json only by number."""
    library = hub.Tokenizer(hub.models.BPE())
    library.pre_tokenizer, library.decoder = (
        hub.pre_tokenizers.ByteLevel(add_prefix_space=False),
        hub.decoders.ByteLevel(),
    )
    library.post_processor = hub.processors.ByteLevel(trim_offsets=False)
    alphabet = hub.pre_tokenizers.ByteLevel.alphabet()
    trainer = hub.trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(["x = 1\n"] * 9, trainer)
    config = {"bos_token_id": 0, "eos_token_id": 0}
    tokenizer = hub_folder(tmp_path / "gpt2", library.to_str(), tokenizer_config={}, config=config)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 0)
    assert tokenizer.begin("x = 1\n") == library.encode("x = 1\n").ids
    assert tokenizer.begin("") == [0]
    assert tokenizer.document("x") == [*tokenizer.encode("x"), 0]


@pytest.mark.parametrize("content", ['{"add_bos_token": 1}', '{"bos_token": 5}', "[]"])
def test_a_damaged_config_is_one_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(llama_json(True), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(Error, match=r"tokenizer\.json: .*"):
        load(tmp_path)


# ---------------------------------------------------------------------------------------- training with one


@pytest.mark.parametrize("name", ["v3", "tekken"])
def test_a_model_that_is_trained_with_one_reads_text_as_it_is(name, tmp_path):
    """The same to every reader of its folder: there is no dummy prefix to know of."""
    from transformers import AutoTokenizer

    tokenizer = make(TokenizerConfig(kind="file", path=str(DATA / FILES[name])), [])
    assert tokenizer.begin("x = 1\n") == [1, *tokenizer.encode("x = 1\n")]
    assert tokenizer.fingerprint() == mine(name).fingerprint(), "it may draft for Mistral's models"
    tokenizer.save(tmp_path)
    again, other = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("x = 1\n", " x", "def f(a):\n\treturn  漢😀"):
        assert again.begin(text) == tokenizer.begin(text)
        assert other(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert other.decode(tokenizer.encode(text)) == text


def test_transformers_reads_mistrals_file_as_we_do(tmp_path):
    from transformers import LlamaTokenizer

    shutil.copy(DATA / FILES["v3"], tmp_path / "tokenizer.model")
    other, tokenizer = LlamaTokenizer.from_pretrained(tmp_path), load(tmp_path)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    for text in ("x = 1\n", "return", "def f(a):\n\treturn  漢😀"):
        assert [1, *other(text, add_special_tokens=False)["input_ids"]] == tokenizer.begin(text)
