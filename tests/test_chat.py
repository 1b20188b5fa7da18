"""Chat templates and conversations: what is a control token, what the caches keep, what a user reads."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mlxgpt import answer, models, weights
from mlxgpt import tokenizer as tokenizers
from mlxgpt.answer import Options
from mlxgpt.chat import template
from mlxgpt.chat.conversation import Conversation, Trimmed
from mlxgpt.chat.template import ChatTemplate
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Decoder, Request, collect, common_length, generate

PLAIN = """{{ bos_token }}
{%- for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def made(text: str = PLAIN) -> ChatTemplate:
    return ChatTemplate(text, TOKENS, Path("here"))


@pytest.fixture(scope="module")
def instruct(trained, tmp_path_factory) -> Path:
    """The trained model, with a chat template."""
    folder = tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("training"))
    with_template(folder, PLAIN)
    return folder


def with_template(folder: Path, chat_template: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": chat_template}))


@pytest.fixture(scope="module")
def loaded(instruct):
    return weights.load_with_tokenizer(instruct)


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def tokenizer(instruct, request) -> tokenizers.Tokenizer:
    return tokenizers.load(instruct / request.param)


# Contents that templates may trim and split, and that spell control tokens, also over the edges of a message.
HARD = [
    "def f(x):\n\treturn x  # naïve → 🙂\n\n", "  </s><s>[INST] <unk> ", "s>", "<", "</s", "<user>", "a\r\n\x00b\udcff",
    "\U000f0001 and \U0010fffd, which are private", "/s></s>\n</s>", "▁ ▁",
]  # fmt: skip


@pytest.mark.parametrize("content", HARD)
def test_a_message_never_becomes_a_control_token(tokenizer, content):
    """The ids are those of the template's pieces put together by hand: controls by id, runs of text encoded whole."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    ids = made().encode([user(content), assistant("ok " + content), user("and?")], tokenizer)
    expected = [bos, *tokenizer.encode(f"<user>{content}"), eos, *tokenizer.encode(f"<assistant>ok {content}"), eos]
    assert ids == [*expected, *tokenizer.encode("<user>and?"), eos, *tokenizer.encode("<assistant>")]


def test_templates_that_trim_and_split_messages_get_real_white_space(tokenizer):
    lines = (
        "{{ bos_token }}{% for l in (messages[0].content | trim).split('\n') %}{{ l.strip() + eos_token }}{% endfor %}"
    )
    ids = made(lines).encode([user("\n  a <s> b \n\tc\n ")], tokenizer)
    eos = tokenizer.eos_id
    assert ids == [tokenizer.bos_id, *tokenizer.encode("a <s> b"), eos, *tokenizer.encode("c"), eos]


LETTERS = (
    "{{ bos_token }}{% if 'think' in messages[0].content %}T{% endif %}{{ messages[0].content | upper + eos_token }}"
)


def test_a_template_that_reads_letters_is_followed_or_refused(tokenizer):
    ids = made(LETTERS).encode([user("i think")], tokenizer)
    assert ids == [tokenizer.bos_id, *tokenizer.encode("TI THINK"), tokenizer.eos_id]
    with pytest.raises(Error, match="a message of the user spells a control token"):
        made(LETTERS).encode([user("i think </s>")], tokenizer)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{% for m in messages %}\n  {% if loop.last %}\nlast{% break %}{% endif %}\n{% endfor %}", "last"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "é<>"}]'),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ dict(b=3).b }}", "23"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "é<>"),
        ("{{ strftime_now('%Y') | length }}{{ pad_token }}{% if tools %}t{% endif %}", "4"),
    ],
)
def test_what_templates_can_use(text, rendered):
    assert made(text).render([user("é<>")]) == rendered


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "does not take this conversation: roles must alternate"),
        ("{% for %}", "is broken"),
        ("{{ 1 // 0 }}", "does not take this conversation"),
        ("{{ ''.__class__.__mro__ }}", "does not take this conversation"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "does not take this conversation"),
        ("{{ messages.append(1) }}", "does not take this conversation"),
    ],
)
def test_what_goes_wrong_in_a_template_is_one_error(text, reason):
    with pytest.raises(Error, match=f"^here: the chat template {reason}"):
        made(text).render([user("x")])


def test_a_system_message_that_the_template_drops_is_refused(tokenizer):
    with pytest.raises(Error, match="has no place for a system message"):
        made("{{ messages[-1].content }}").encode([{"role": "system", "content": "be brief"}, user("x")], tokenizer)


def test_where_a_template_is_found(tmp_path):
    def found() -> tuple[str, str]:
        it = template.load(tmp_path)
        return it.text, it.path.name

    with pytest.raises(Error, match="has no chat template: it is no instruct model"):
        template.load(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"bos_token": {"content": "<a>"}, "eos_token": "<b>", "chat_template": "one"}')
    assert found() == ("one", "tokenizer_config.json")
    assert template.load(tmp_path).variables == {"bos_token": "<a>", "eos_token": "<b>"}
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert found() == ("two", "tokenizer_config.json")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "three"}')
    assert found() == ("three", "chat_template.json")
    (tmp_path / "chat_template.jinja").write_text("four")
    assert found() == ("four", "chat_template.jinja")


@pytest.mark.parametrize("broken", [3, [1], [{"name": "rag", "template": "x"}], {"default": 4}])
def test_a_template_that_is_none_is_named(tmp_path, broken):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": broken}))
    with pytest.raises(Error, match=r"tokenizer_config\.json"):
        template.load(tmp_path)


def test_closing_ids_are_one_or_several(tmp_path):
    assert answer.closing_ids(tmp_path) == frozenset()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert answer.closing_ids(tmp_path) == {2}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert answer.closing_ids(tmp_path) == {2, 7, 9}


def test_the_lead_of_an_answer_is_the_template_s():
    assert made().lead([user("x")]) == ""
    assert (
        made("[{{ messages[0].content }}]{% if messages[1] %} {{ messages[1].content }}{% endif %}").lead([user("x")])
        == " "
    )
    shown: list[str] = []
    show = Trimmed(" ", shown.append)
    for piece in ("", " ", "He", " llo", " "):
        show(piece)
    assert "".join(shown) == "He llo "


def conversation(loaded, max_tokens: int = 10, options: Options | None = None, **request) -> Conversation:
    return Conversation(*loaded, made(), Request(max_tokens, **request), options or Options())


def alone(loaded, ids: list[int], max_tokens: int = 10, kv_bits: int | None = None) -> list[int]:
    """The tokens that follow a prompt, by a decoder that has never seen anything."""
    model, its = loaded
    return collect(generate(model, its, ids, Request(max_tokens), Decoder(model, kv_bits))).token_ids


@pytest.mark.parametrize(
    "options", [Options(), Options(lookup=True), Options(kv_bits=8)], ids=["plain", "lookup", "kv"]
)
def test_a_turn_says_with_the_cache_what_it_says_without(loaded, options):
    if options.kv_bits:
        loaded = (models.build(dataclasses.replace(loaded[0].config, head_dim=32)).eval(), loaded[1])
    talk = conversation(loaded, options=options)
    held: list[int] = []
    asked = 0
    for text in ["def f(", "import os", "return self.x"]:
        ids = made().encode([*talk.messages, user(text)], loaded[1])
        turn = talk.ask(text, lambda text: None)
        said = turn.answer.generation.token_ids
        assert turn.answer.prompt_ids == ids
        assert said == alone(loaded, ids, kv_bits=options.kv_bits)
        assert turn.cached_tokens == common_length(held, ids)
        assert turn.cached_tokens >= asked - 1  # the whole of the last prompt, whose end may join with the answer
        held, asked = ids + said[:-1], len(ids)
    assert talk.messages[-1] == assistant(loaded[1].decode(said).decode("utf-8", "replace"))


def test_a_cancelled_answer_stays_and_the_conversation_goes_on(loaded):
    talk = conversation(loaded, 30)
    shown: list[str] = []
    turn = talk.ask("def f(", shown.append, lambda: len(shown) >= 4)
    assert turn.answer.cancelled
    assert len(turn.answer.generation.token_ids) == 5
    assert talk.messages == [user("def f("), assistant(turn.text)]
    assert "".join(shown) == turn.text != ""
    after = talk.ask("more", lambda text: None)
    assert after.cached_tokens >= len(turn.answer.prompt_ids)
    assert after.answer.generation.token_ids == alone(loaded, after.answer.prompt_ids, 30)


def test_a_question_cancelled_before_its_answer_was_never_asked(loaded):
    talk = conversation(loaded)
    turn = talk.ask("def f(", lambda text: None, lambda: True)
    assert (turn.answer.cancelled, turn.text, talk.messages) == (True, "", [])


def test_what_does_not_fit_leaves_the_conversation_as_it_was(loaded):
    talk = conversation(loaded)
    talk.ask("def f(", lambda text: None)
    before = list(talk.messages)
    with pytest.raises(Error, match=r"the conversation would be \d+ tokens and the model's context is 128: .*/reset"):
        talk.ask("x = 1\n" * 100, lambda text: None)
    assert talk.messages == before
    turn = talk.ask("import", lambda text: None)
    assert turn.answer.generation.token_ids == alone(loaded, turn.answer.prompt_ids)


def test_an_answer_ends_at_any_closing_token(loaded):
    ids = conversation(loaded).ask("def f(", lambda text: None).answer.generation.token_ids
    middle = next(i for i in ids if i != ids[0])
    done = conversation(loaded, closing=[middle]).ask("def f(", lambda text: None).answer.generation
    assert done.token_ids == ids[: ids.index(middle) + 1]
    assert done.finish_reason == "stop"
    assert done.text == loaded[1].decode(done.token_ids[:-1]).decode()
