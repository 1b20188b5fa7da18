"""Templated prompts: what each family's template means, and texts that only look like one."""

import pytest

from mlxgpt.server.sentinels import Middle, parse

P, S = "def f(a):\n    return a", "\n\nprint(f(1))\n"
TEMPLATES = {
    "Qwen": f"<|fim_prefix|>{P}<|fim_suffix|>{S}<|fim_middle|>",
    "Qwen, suffix first": f"<|fim_suffix|>{S}<|fim_prefix|>{P}<|fim_middle|>",
    "StarCoder": f"<fim_prefix>{P}<fim_suffix>{S}<fim_middle>",
    "StarCoder, suffix first": f"<fim_prefix><fim_suffix>{S}<fim_middle>{P}",
    "StarCoder, named": f"<fim_prefix><filename>a/b.py\n{P}<fim_suffix>{S}<fim_middle>",
    "SantaCoder": f"<fim-prefix>{P}<fim-suffix>{S}<fim-middle>",
    "Code Llama": f"<PRE> {P} <SUF>{S} <MID>",
    "Code Llama, suffix first": f"<PRE> <SUF>{S} <MID> {P}",
    "Code Llama, opened": f"<s><PRE> {P} <SUF>{S} <MID>",
    "DeepSeek": f"<｜fim▁begin｜>{P}<｜fim▁hole｜>{S}<｜fim▁end｜>",
    "DeepSeek, opened": f"<｜begin▁of▁sentence｜><｜fim▁begin｜>{P}<｜fim▁hole｜>{S}<｜fim▁end｜>",
    "GLM": f"<|code_prefix|>{P}<|code_suffix|>{S}<|code_middle|>",
    "Codestral": f"[SUFFIX]{S}[PREFIX]{P}",
    "Codestral, opened": f"<s>[SUFFIX]{S}[PREFIX]{P}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_template_is_read(name):
    assert parse(TEMPLATES[name]) == Middle(P, S)


def test_an_empty_side_is_read():
    assert parse("<PRE>  <SUF> <MID>") == Middle("", "")
    assert parse("<|fim_prefix|><|fim_suffix|><|fim_middle|>") == Middle("", "")
    assert parse(f"<|fim_prefix|>{P}<|fim_suffix|><|fim_middle|>") == Middle(P, "")
    assert parse(f"[SUFFIX][PREFIX]{P}") == Middle(P, "")


def test_other_files_go_along():
    qwen = (
        "<|repo_name|>project<|file_sep|>lib/a.py\nA = 1\n<|file_sep|>lib/b.py\nB = 2\n<|file_sep|>main.py\n"
        f"<|fim_prefix|>{P}<|fim_suffix|>{S}<|fim_middle|>"
    )
    assert parse(qwen) == Middle(P, S, ("A = 1\n", "B = 2\n"))
    codestral = f"[SUFFIX]{S}[PREFIX]+++++ lib/a.py\nA = 1\n+++++ main.py\n{P}"
    assert parse(codestral) == Middle(P, S, ("A = 1\n",))


def test_what_was_written_already_is_before_the_cursor():
    assert parse(f"<|fim_prefix|>{P}<|fim_suffix|>{S}<|fim_middle|> + ") == Middle(P + " + ", S)


@pytest.mark.parametrize(
    "text",
    [
        "",
        P,
        'MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")',
        "<|fim_prefix|>no more than that",
        "<|fim_middle|><|fim_suffix|><|fim_prefix|>",
        "<fim_prefix>a<fim_suffix>b",
        "x = '[SUFFIX]a[PREFIX]b'",
        "[PREFIX]a[SUFFIX]b",
        "see <PRE> and <SUF> and <MID>",
    ],
)
def test_a_text_that_is_no_template_stays_one(text):
    assert parse(text) is None


def test_code_about_templates_is_completed_like_other_code():
    """The marks of the outermost count."""
    about = 'start = "<|fim_suffix|>"\n'
    assert parse(f"<|fim_prefix|>{about}<|fim_suffix|>{S}<|fim_middle|>") == Middle(about, S)
