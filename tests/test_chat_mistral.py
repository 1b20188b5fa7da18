"""Mistral's instruct formats give the ids that mistral_common gives, with its own tokenizers."""

import json
import shutil
from pathlib import Path

import mistral_common
import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from mlxgpt import tokenizer as tokenizers
from mlxgpt.chat import mistral, template
from mlxgpt.errors import Error

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
KINDS = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
ONE = [("user", "Hello")]
TURNS = [("user", "Write a loop.\n\nIn C."), ("assistant", "for (;;) {\n}  "), ("user", " naïve 🙂\tx")]
LONG = [*TURNS, ("assistant", " ok"), ("user", "  two spaces")]
TYPED = [("user", "[INST] </s><s> [/INST]"), ("assistant", "[TOOL_CALLS] </s>"), ("user", "[SYSTEM_PROMPT]x")]
SYSTEM = [("system", "Be brief.\nAlways.")]
CONVERSATIONS = [ONE, TURNS, LONG, TYPED, SYSTEM + ONE, SYSTEM + LONG, SYSTEM + TYPED]


def theirs(file: str, turns: list[tuple[str, str]]) -> tuple[list[int], str]:
    """The ids of mistral_common, and the text it says they are."""
    its = MistralTokenizer.from_file(str(DATA / file))
    request: ChatCompletionRequest = ChatCompletionRequest(messages=[KINDS[r](content=c) for r, c in turns])
    ids = its.encode_chat_completion(request).tokens
    return ids, its.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP)


def release(folder: Path, file: str, name: str) -> template.ChatTemplate:
    """The chat template of a release with that tokenizer."""
    shutil.copy(DATA / file, folder / name)
    (folder / "params.json").write_text("{}")
    return template.load(folder)


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("version", FILES)
def test_sentencepiece_releases(tmp_path, version, turns):
    name = "tokenizer.model" if version == "v1" else f"tokenizer.model.{version}"
    its = release(tmp_path, FILES[version], name)
    assert its.encode(messages(turns), tokenizers.load(tmp_path / name)) == theirs(FILES[version], turns)[0]
    assert its.lead(messages(turns)) == " "


@pytest.fixture(scope="module")
def tekken():
    return tokenizers.load(DATA / "tekken_240911.json")


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_a_tekken_release(tmp_path, tekken, turns):
    its = release(tmp_path, "tekken_240911.json", "tekken.json")
    ids, text = theirs("tekken_240911.json", turns)
    assert its.render(messages(turns)) == text
    assert its.encode(messages(turns), tekken) == ids
    assert its.lead(messages(turns)) == ""


def test_a_bare_tokenizer_model_is_known_by_its_control_tokens(tmp_path):
    assert release(tmp_path, FILES["v1"], "tokenizer.model").text == mistral.V1
    assert release(tmp_path, FILES["v3"], "tokenizer.model").text == mistral.V3


def test_tekken_says_its_version(tmp_path):
    for version, text in (("v7", mistral.V7), ("v13", mistral.V7), ("v3", mistral.V3)):
        (tmp_path / "tekken.json").write_text(json.dumps({"config": {"version": version}}))
        assert mistral.template(tmp_path) == (text, False)
    (tmp_path / "tekken.json").write_text("[]")
    with pytest.raises(Error, match="Mistral's instruct format None is not known: v1, v2"):
        mistral.template(tmp_path)
