"""A model's chat template: where it is found, and messages -> token ids through it.

A template writes its control tokens as text. Of what it renders, only its own text is read for them: what stands in a
message stays text, whatever it spells.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxgpt import files
from mlxgpt.chat import mistral
from mlxgpt.errors import Error
from mlxgpt.tokenizer import Tokenizer

Messages = Sequence[dict[str, str]]  # {"role": "system", "user" or "assistant", "content": text}
# Private-use characters stand for those of messages: of planes 15 and 16, and the first of them for a whole run.
RUN, *MARKS = map(chr, [*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)])
MARKED = re.compile(f"[{MARKS[0]}-{MARKS[-1]}]+")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the variables (`bos_token` and the like) that go with it; `path` is where it stood."""

    text: str
    variables: dict[str, str]
    path: Path

    def render(self, messages: Messages, now: datetime | None = None, answering: bool = True) -> str:
        """The text of a conversation up to where the model's next answer begins, or without `answering` just its own.
        Raises Error where the template is broken or refuses the messages."""
        names: dict[str, Any] = {"strftime_now": (now or datetime.now()).strftime, "tools": None, "documents": None}
        compiled = self._compiled
        try:
            return compiled.render(
                names | self.variables, messages=[dict(m) for m in messages], add_generation_prompt=answering
            )
        except Exception as error:  # a template can raise anything
            raise Error(f"{self.path}: the chat template does not take this conversation: {error}") from None

    def encode(self, messages: Messages, tokenizer: Tokenizer) -> list[int]:
        """Token ids of `render(messages)`, control tokens read in the template's own text alone.

        Every character of the messages but white space is rendered as another one that occurs nowhere, so that
        templates can trim and split them as ever; where the text that comes of it is, put back, not that of the real
        messages, the template takes them apart by their letters. Raises Error then, if they spell a control token.
        """
        now = datetime.now()
        plain = self.render(messages, now)
        letters = sorted({c for m in messages for c in m["content"] if not c.isspace()})
        if len(letters) > len(MARKS):
            raise Error(f"the conversation has {len(letters)} different characters: {len(MARKS)} can be told apart")
        marks = "".join(MARKS[: len(letters)])
        mark, unmark = str.maketrans("".join(letters), marks), str.maketrans(marks, "".join(letters))
        marked = self.render([m | {"content": m["content"].translate(mark)} for m in messages], now)
        self._require_system(messages, plain)
        if marked.translate(unmark) != plain or RUN in plain:
            return self._encode_whole(plain, messages, tokenizer)
        runs = iter([run.translate(unmark) for run in MARKED.findall(marked)])
        ids: list[int] = []
        for part in _between_controls(tokenizer.encode_template(MARKED.sub(RUN, marked)), tokenizer):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += tokenizer.encode(re.sub(RUN, lambda _: next(runs), part))
        if next(runs, None) is not None:
            raise Error(f"{self.path}: the tokenizer cannot spell all of what the chat template renders")
        return ids

    def lead(self, messages: Messages) -> str:
        """The white space that the template puts before an answer to `messages`, and that a model so trained says
        itself: Mistral's answers begin with a space that is not theirs."""
        now = datetime.now()
        turns = [m for m in messages if m["role"] != "system"]  # which may have its place in the last message
        prompt = self.render(turns, now)
        whole = self.render([*turns, {"role": "assistant", "content": RUN}], now, answering=False)
        lead = whole.removeprefix(prompt).partition(RUN)[0]
        return lead if whole.startswith(prompt) and lead.isspace() else ""

    def _encode_whole(self, plain: str, messages: Messages, tokenizer: Tokenizer) -> list[int]:
        for message in messages:
            parts = _between_controls(tokenizer.encode_template(message["content"]), tokenizer)
            if any(isinstance(part, int) for part in parts):
                raise Error(
                    f"a message of the {message['role']} spells a control token, and this model's chat template takes "
                    "messages apart, so that it cannot be kept as text: write it differently, or /reset"
                )
        return tokenizer.encode_template(plain)

    def _require_system(self, messages: Messages, plain: str) -> None:
        if any(m["role"] == "system" and m["content"].strip() not in plain for m in messages):
            raise Error(f"{self.path}: the chat template has no place for a system message: leave --system away")

    @cached_property
    def _compiled(self) -> Any:
        try:
            return _environment().from_string(self.text)
        except Exception as error:  # SyntaxError, RecursionError, jinja2's own: whatever a broken template leads to
            raise Error(f"{self.path}: the chat template is broken: {error}") from None


def _between_controls(ids: Iterable[int], tokenizer: Tokenizer) -> list[int | str]:
    """Ids -> the control tokens among them, and the text of each run of others."""
    found: list[int | str] = []
    run: list[int] = []
    for i in [*ids, None]:
        if i is not None and tokenizer.token_bytes[i]:
            run.append(i)
            continue
        if run:
            found.append(tokenizer.decode(run).decode("utf-8", "surrogateescape"))
            run = []
        if i is not None:
            found.append(i)
    return found


def _environment() -> Any:
    """What transformers gives to templates (https://huggingface.co/docs/transformers/chat_templating_writing): they
    come with a model from anywhere, and run where they can change and reach nothing."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what to train on, is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(jinja2.utils.Namespace):
        def __setitem__(self, name, value):
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"{name!r} cannot be set")
            super().__setitem__(name, value)

    def namespace(*tables, **values):
        made = Namespace()
        for name, value in dict(*tables, **values).items():
            made[name] = value
        return made

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals = {
        "range": environment.globals["range"], "dict": lambda *tables, **values: dict(*tables, **values),
        "namespace": namespace, "raise_exception": raise_exception,
    }  # fmt: skip
    return environment


def load(folder: Path) -> ChatTemplate:
    """The chat template of a model folder: chat_template.jinja, chat_template.json, the one in tokenizer_config.json,
    or Mistral's own for its releases. Raises Error where there is none or it cannot be read."""
    config = files.read_table(folder / "tokenizer_config.json")
    variables = _tokens(files.read_table(folder / "special_tokens_map.json") | config)
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return ChatTemplate(jinja.read_text(encoding="utf-8"), variables, jinja)
        except (OSError, UnicodeDecodeError) as error:
            raise Error(f"{jinja} cannot be read: {error}") from None
    for path, table in (
        (folder / "chat_template.json", files.read_table(folder / "chat_template.json")),
        (folder / "tokenizer_config.json", config),
    ):
        if table.get("chat_template"):
            return ChatTemplate(_default(table["chat_template"], path), variables, path)
    if (folder / "params.json").is_file():
        text, spaced = mistral.template(folder)
        space = {"space": " " if spaced else ""}
        return ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"} | space, folder / "params.json")
    raise Error(f"{folder} has no chat template: it is no instruct model; leave --chat away to continue a text")


def _default(template: Any, path: Path) -> str:
    """The template itself, or of several named ones the one called "default"."""
    if isinstance(template, list):
        try:
            template = {entry["name"]: entry["template"] for entry in template}
        except (TypeError, LookupError):
            raise Error(f"{path}: its chat_template is no list of named templates") from None
    if isinstance(template, dict):
        if "default" not in template:
            raise Error(f'{path}: none of its chat templates is called "default"')
        template = template["default"]
    if not isinstance(template, str):
        raise Error(f"{path}: its chat_template is no text")
    return template


def _tokens(config: dict[str, Any]) -> dict[str, str]:
    """The names of control tokens that a tokenizer_config.json gives to templates, such as `bos_token`."""
    found = {k: v.get("content") if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token")}
    return {k: v for k, v in found.items() if isinstance(v, str)}
