"""What each document's prompts show, kept from keystroke to keystroke so that only what is typed has to be computed."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from mlxgpt.completion import context
from mlxgpt.completion import prompt as prompts
from mlxgpt.completion.context import Library, Shown
from mlxgpt.completion.prompt import Prompt, View
from mlxgpt.tokenizer import Tokenizer

KEEP = 64  # documents
SPARE = 8  # of a budget, this part is left free for what is typed, where a document's view is kept
MOVED = 4096  # bytes by which the cursor may move before other lines are worth showing


@dataclass(frozen=True)
class _Kept:
    """A view, the prefix and the suffix that it was made for, and whose text it shows."""

    view: View
    prefix: bytes
    names: frozenset[str]


class Views:
    """Prompts in a token budget: the file's end, and before it other texts in the room that the file leaves.

    `fim` is how the model fills in the middle, "" not at all. Of a named document the view stays until its file or one
    that is shown is saved, the cursor has moved far, or no room is left. With `library` its texts are shown too, and
    `reserved` is the share of the budget that a long file leaves to them.
    """

    def __init__(
        self, tokenizer: Tokenizer, fim: str = "", library: Library | None = None, reserved: float = 0
    ) -> None:
        self.tokenizer, self.fim, self.library, self.reserved = tokenizer, fim, library, reserved
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def prompt(
        self, prefix: bytes, suffix: bytes, budget: int, document: str | None = None, recent: Sequence[bytes] = ()
    ) -> Prompt:
        """The prompt at the cursor, of at most `budget` tokens. Raises Error as `prompt.build` does."""
        if document is None and not recent and self.library is None:
            return self._build(prefix, suffix, budget, None)
        kept = self._kept.get(document) if document is not None else None
        if kept is not None and self._holds(kept, prefix):
            built = self._build(prefix, suffix, budget, kept.view)
            if len(built.ids) <= budget:
                return built
        view, shown = self._plan(prefix, suffix, budget, document, recent)
        if document is not None:
            self._kept.pop(document, None)
            self._kept[document] = _Kept(view, prefix, shown.names)
            if len(self._kept) > KEEP:
                self._kept.popitem(last=False)
        built = self._build(prefix, suffix, budget, view)
        # A model with a dummy prefix may spell the beginning longer than was counted.
        return built if len(built.ids) <= budget else self._build(prefix, suffix, budget, None)

    def update(self, name: str, data: bytes | None) -> None:
        """A document of the project is new, has changed, or (None) is gone."""
        if self.library is not None:
            self.library.update(name, data)
        for document in [d for d, kept in self._kept.items() if d == name or name in kept.names]:
            del self._kept[document]

    def forget(self, document: str) -> None:
        """Have the document's next prompt show what is best then."""
        self._kept.pop(document, None)

    def _holds(self, kept: _Kept, prefix: bytes) -> bool:
        start = kept.view.start
        return abs(len(prefix) - len(kept.prefix)) <= MOVED and prefix[:start] == kept.prefix[:start]

    def _infills(self, suffix: bytes) -> bool:
        return bool(self.fim and suffix.strip())

    def _build(self, prefix: bytes, suffix: bytes, budget: int, view: View | None) -> Prompt:
        if self._infills(suffix):
            return prompts.build_infilling(self.tokenizer, prefix, suffix, budget, self.fim, view)
        return prompts.build(self.tokenizer, prefix, budget, view)

    def _plan(
        self, prefix: bytes, suffix: bytes, budget: int, document: str | None, recent: Sequence[bytes]
    ) -> tuple[View, Shown]:
        """What of the file to show, and before it what else."""
        used = prompts.suffix_room(self.tokenizer, suffix, budget) if self._infills(suffix) else 1  # the opening token
        room = max(1, budget - used - (budget // SPARE if document is not None else 0))
        share = int(self.reserved * budget) if self.library is not None else 0
        start, size = prompts.fit(self.tokenizer, prefix, room - share)
        shown = context.fill(self.tokenizer, room - size, prefix, document or "", recent, self.library)
        if start and len(shown.ids) < share:  # nothing, or little, was found for what the file left
            start, _ = prompts.fit(self.tokenizer, prefix, room - len(shown.ids))
        return View(start, shown.ids), shown
