"""The instruct formats of Mistral's own releases, which have no chat template, written as templates.

Source: mistral_common/tokens/tokenizers/instruct.py (InstructTokenizerV1 to V13), whose ids these give. SentencePiece
puts a space in front of every text it encodes, there; `space` is that space, empty for tekken. Version 1 has no control
tokens for the brackets. A system message goes with the first user message (version 1), with the last (2, 3), or has
brackets of its own (7 and later).
"""

import re
from pathlib import Path

from mlxgpt import files
from mlxgpt.errors import Error

_OPENING = """
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{{- bos_token }}
"""
_ANSWER = """
{%- else %}{{ space + turn.content.rstrip(' ') + eos_token }}
{%- endif %}{% endfor %}"""
V1 = (
    _OPENING
    + """
{%- for turn in turns %}{% if turn.role == 'user' %}
{{- space + '[INST] ' + (system + '\\n\\n' if system and loop.first else '') + turn.content + ' [/INST]' }}"""
    + _ANSWER.replace(".rstrip(' ')", "")
)
V3 = (
    _OPENING
    + """
{%- for turn in turns %}{% if turn.role == 'user' %}
{{- '[INST]' + space + (system + '\\n\\n' if system and loop.last else '') + turn.content + '[/INST]' }}"""
    + _ANSWER
)
V7 = (
    _OPENING
    + """
{%- if system %}{{ '[SYSTEM_PROMPT]' + space + system + '[/SYSTEM_PROMPT]' }}{% endif %}
{%- for turn in turns %}{% if turn.role == 'user' %}
{{- '[INST]' + space + turn.content + '[/INST]' }}"""
    + _ANSWER
)
FORMATS = {"v1": V1, "v2": V3, "v3": V3, "v7": V7, "v11": V7, "v13": V7}


def template(folder: Path) -> tuple[str, bool]:
    """The template of a release, and whether its tokenizer is SentencePiece's, with a space in front of texts.

    The version is the ending of the tokenizer's file, tekken.json's own, or of a bare tokenizer.model the first, unless
    it has control tokens for the brackets. Raises Error for a version that is not known here.
    """
    tekken = folder / "tekken.json"
    models = sorted(path.name for path in folder.glob("tokenizer.model*"))
    ending = next((found[1] for name in models if (found := re.search(r"\.model\.(v\d+)(m\d+)?$", name))), None)
    if ending:
        version = ending
    elif tekken.is_file():
        table = files.read_json(tekken)
        config = table.get("config") if isinstance(table, dict) else None
        version = config.get("version") if isinstance(config, dict) else None
    else:
        plain = folder / "tokenizer.model"
        version = "v3" if plain.is_file() and b"[INST]" in plain.read_bytes() else "v1"
    if version not in FORMATS:
        raise Error(f"{folder}: Mistral's instruct format {version!r} is not known: {', '.join(FORMATS)} are")
    return FORMATS[version], not (tekken.is_file() and not ending)
