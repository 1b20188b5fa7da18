"""A conversation with a model: its messages, and the caches that hold as much of it as they can."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mlxgpt import adapters, answer
from mlxgpt.answer import Answer, Options
from mlxgpt.chat import template
from mlxgpt.errors import Error
from mlxgpt.generation.engine import Decoder, Request, common_length
from mlxgpt.models import Model
from mlxgpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Turn:
    """One answer, its text, and how many of the conversation's tokens were in the caches already."""

    answer: Answer
    text: str
    cached_tokens: int

    def as_json(self, logprobs: int) -> dict[str, Any]:
        """A row of the command's JSON object."""
        return self.answer.as_json(logprobs) | {"text": self.text, "cached_tokens": self.cached_tokens}


class Trimmed:
    """Passes a stream of text on without the `lead` at its beginning."""

    def __init__(self, lead: str, show: Callable[[str], object]) -> None:
        self._lead, self._show, self._held = lead, show, ""

    def __call__(self, text: str) -> None:
        """The next piece."""
        self._held += text
        if not self._lead.startswith(self._held):
            self._show(self._held.removeprefix(self._lead))
            self._lead, self._held = "", ""


class Conversation:
    """Messages back and forth. Each answer follows the whole conversation through the model's chat template, of which
    only what the caches do not hold is computed."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, chat_template: template.ChatTemplate, request: Request,
        options: Options, system: str | None = None,
    ) -> None:  # fmt: skip
        self._tokenizer, self._template, self._request, self._options = tokenizer, chat_template, request, options
        self._draft = answer.load_draft(options, tokenizer)
        self._decoder = Decoder(model, options.kv_bits)
        self._held: list[int] = []  # tokens that the caches are known to hold
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)

    def ask(
        self, text: str, show: Callable[[str], object], cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Turn:  # fmt: skip
        """The answer to the user's `text`, streamed to `show`; `cancelled` ends it where it is.

        Both become part of the conversation, unless it was cancelled before its first word. Raises Error, and leaves
        the conversation as it was, where it does not fit the model's context or its template.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        ids = self._template.encode(asked, self._tokenizer)
        context = self._decoder.model.config.context
        if len(ids) > context:
            raise Error(
                f"the conversation would be {len(ids)} tokens and the model's context is {context}: say it in fewer "
                "words, or begin anew with /reset"
            )
        shared = min(common_length(self._held, ids), len(ids) - 1)
        cached = self._decoder.rewind(shared)
        self._held = ids[:cached]
        request = replace(self._request, cancelled=cancelled, progress=progress)
        lead = "" if self._tokenizer.hidden_after(ids) else self._template.lead(asked)
        shown = Trimmed(lead, show)
        done = answer.continued(self._decoder, self._tokenizer, ids, request, self._options, self._draft, shown)
        # Where guesses were being checked, a wrong one may lie in the place of the last token.
        self._held = (ids + done.generation.token_ids[:-1])[: self._decoder.position]
        said = done.generation.text.removeprefix(lead)
        if said or not done.cancelled:
            self.messages = [*asked, {"role": "assistant", "content": said}]
        return Turn(done, said, cached)

    def reset(self) -> None:
        """Forget everything but the system message; the caches keep what the next conversation may begin with."""
        self.messages = list(self._opening)


def begin(name: str | None, system: str | None, request: Request, options: Options) -> Conversation:
    """A conversation with the model `name` (a folder, an alias, a Hub id). Raises Error, UsageError, where the model
    has no chat template before its weights are read."""
    answer.check(options)
    folder, adapter = adapters.locate(name, options.adapter)
    chat_template = template.load(folder)
    model, tokenizer = answer.load(str(folder), replace(options, adapter=adapter))
    request = replace(request, closing=answer.closing_ids(folder))
    return Conversation(model, tokenizer, chat_template, request, options, system)
