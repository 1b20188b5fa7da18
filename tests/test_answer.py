"""What `mlxgpt generate` can be helped by, and what changes none of its words; `convert` and `models`."""

import json

import pytest

from mlxgpt import hub

PROMPT = ("--prompt", "def __init__(self, ", "--max-tokens", 24)


@pytest.fixture(scope="module")
def plain(trained, spawn) -> dict:
    return json.loads(spawn("generate", "-m", trained, *PROMPT, "--json").out)


@pytest.mark.parametrize("help_", [["--lookup"], ["--draft", "itself"]], ids=" ".join)
def test_guesses_change_no_word(cli, trained, plain, help_):
    options = [str(trained) if word == "itself" else word for word in help_]
    done = json.loads(cli("generate", "-m", trained, *PROMPT, *options, "--json").out)
    assert done["token_ids"] == plain["token_ids"]
    assert 0 <= done["acceptance_rate"] <= 1
    assert "acceptance_rate" not in plain


def test_a_prompt_cache_is_written_and_used(cli, trained, plain, tmp_path):
    file = tmp_path / "prompt.cache"
    first = cli("generate", "-m", trained, *PROMPT, "--prompt-cache", file, "--json")
    again = cli("generate", "-m", trained, *PROMPT, "--prompt-cache", file, "--json")
    assert json.loads(first.out)["token_ids"] == json.loads(again.out)["token_ids"] == plain["token_ids"]
    count = len(plain["prompt_token_ids"])
    assert (first.err, again.err) == ("", f"mlxgpt: {count - 1} of {count} prompt tokens came from {file}\n")


def test_several_prompts_get_the_answers_of_one_each(cli, trained, plain, tmp_path):
    other = json.loads(cli("generate", "-m", trained, "-p", "import ", "-n", 24, "--json").out)
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "import "}) + "\n")
    both = json.loads(cli("generate", "-m", trained, *PROMPT, "--prompts", file, "--json").out)
    assert [a["token_ids"] for a in both["answers"]] == [plain["token_ids"], other["token_ids"]]


@pytest.mark.parametrize("line", ["nope", "[]", '{"text": "x"}', '{"prompt": 3}'])
def test_a_line_that_is_no_prompt_is_named(cli, trained, tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    done = cli("generate", "-m", trained, "--prompts", file)
    assert done.status == 2
    assert f"{file}, line 2" in done.error


def test_logprobs_are_told_where_asked(cli, trained, plain):
    done = json.loads(cli("generate", "-m", trained, *PROMPT, "--logprobs", 3, "--json").out)
    assert [entry["top"][0][0] for entry in done["logprobs"]] == plain["token_ids"]
    assert all(len(entry["top"]) == 3 and entry["logprob"] == entry["top"][0][1] for entry in done["logprobs"])


@pytest.mark.parametrize(
    "options", [["--lookup", "--draft", "x"], ["--lookup", "-p", "second"], ["--lookup", "--xtc-probability", 0.5]]
)
def test_what_does_not_go_together_is_refused(cli, trained, options):
    assert cli("generate", "-m", trained, *PROMPT, *options).status == 2


def test_convert_writes_a_folder_that_generates(cli, trained, tmp_path):
    assert cli("convert", trained, tmp_path / "small", "--dtype", "bfloat16").status == 0
    assert json.loads((tmp_path / "small" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert cli("generate", "-m", tmp_path / "small", *PROMPT, "--json").status == 0
    assert cli("convert", trained, tmp_path / "small").status != 0


def test_models_lists_every_alias(cli):
    assert {m["alias"] for m in json.loads(cli("models", "--json").out)["models"]} == set(hub.ALIASES)
    assert all(alias in cli("models").out for alias in hub.ALIASES)
