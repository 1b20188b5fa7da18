"""Where texts were edited last: what one writes here often goes on with what one has just written elsewhere."""

from collections import OrderedDict
from collections.abc import Mapping

LINES = 8  # shown on either side of an edit
MOST = 4  # spans


class Edits:
    """The place of the last edit in each open text, the newest last."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, int] = OrderedDict()

    def made(self, name: str, offset: int) -> None:
        """A text was edited; `offset` characters of it are before the edit's end."""
        self._places.pop(name, None)
        self._places[name] = offset

    def forget(self, name: str) -> None:
        """A text is open no more."""
        self._places.pop(name, None)

    def spans(self, texts: Mapping[str, str]) -> tuple[bytes, ...]:
        """Whole lines around the last edits of these texts (text by name), the newest first. They stay the same while
        another text is edited."""
        newest = [name for name in reversed(self._places) if name in texts][:MOST]
        spans = (_around(texts[name], self._places[name]) for name in newest)
        return tuple(span for span in spans if span.strip())


def _around(text: str, offset: int) -> bytes:
    start = end = min(offset, len(text))
    for _ in range(LINES + 1):
        start = text.rfind("\n", 0, start) if start > 0 else -1
    for _ in range(LINES + 1):
        end = text.find("\n", end) + 1 or len(text)
    return text[start + 1 : end].encode("utf-8", "replace")
