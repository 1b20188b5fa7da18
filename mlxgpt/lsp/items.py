"""A suggestion in the protocol's words: as ghost text, and as an item of a list of completions."""

import re

from lsprotocol import types

from mlxgpt.completion.suggest import Suggestion
from mlxgpt.lsp.documents import Document

WORD = re.compile(r"\w*\Z")


def _range(document: Document, start: int, end: int, encoding: str) -> types.Range:
    first, last = (types.Position(*document.position(offset, encoding)) for offset in (start, end))
    return types.Range(first, last)


def inline(document: Document, offset: int, encoding: str, suggestion: Suggestion) -> types.InlineCompletionItem:
    """What is inserted at the cursor."""
    return types.InlineCompletionItem(suggestion.completion, range=_range(document, offset, offset, encoding))


def listed(document: Document, offset: int, encoding: str, suggestion: Suggestion) -> types.CompletionItem:
    """An item with the word before the cursor in it: clients drop what does not begin with what was typed."""
    line = document.text[document.text.rfind("\n", 0, offset) + 1 : offset]
    found = WORD.search(line)
    word = found[0] if found else ""
    text = word + suggestion.completion
    first, _, more = text.strip().partition("\n")
    return types.CompletionItem(
        label=first + (" …" if more else ""),
        kind=types.CompletionItemKind.Text,
        detail=f"mlxgpt {suggestion.confidence:.0%}",
        documentation=text if more else None,
        preselect=True,
        filter_text=text,
        insert_text=text,
        insert_text_format=types.InsertTextFormat.PlainText,
        insert_text_mode=types.InsertTextMode.AsIs,
        text_edit=types.TextEdit(_range(document, offset - len(word), offset, encoding), text),
    )
