"""The language server: an editor's requests on one event loop, answered by a completion service on its own thread."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.uris import to_fs_path

from mlxgpt.completion import project
from mlxgpt.completion.edits import Edits
from mlxgpt.completion.jobs import GONE, SUPERSEDED, WORTH, Ask, Busy
from mlxgpt.completion.service import Service, Suggesting
from mlxgpt.completion.suggest import BLOCK_TOKENS, MAX_TOKENS, Suggester, Suggestion
from mlxgpt.errors import Error
from mlxgpt.lsp import items, preferences
from mlxgpt.lsp.debounce import Debounce
from mlxgpt.lsp.documents import Document
from mlxgpt.lsp.preferences import Preferences
from mlxgpt.lsp.protocol import Protocol

TRIGGERS = [" ", ".", "(", "[", "=", ","]  # after which a list of completions is asked for, beside the letters


@dataclass(frozen=True)
class Settings:
    """How the server was started. `debounce` is the longest wait, in seconds."""

    multiline: bool = False
    threshold: Callable[[], float] = lambda: 0.0  # known once the model is
    debounce: float = 0.3
    version: str = ""


@dataclass(frozen=True)
class Found:
    """A suggestion, and the place in the text that it is for."""

    document: Document
    offset: int
    suggestion: Suggestion


class Server(LanguageServer):
    """See the module. `opened` is the future of `service.start()`, before which nothing can be suggested; `folder` gets
    the one that the editor works in, once it is known."""

    def __init__(
        self, service: Service, opened: "Future[None]", settings: Settings | None = None,
        folder: "Future[Path | None] | None" = None,
    ) -> None:  # fmt: skip
        super().__init__("mlxgpt", (settings or Settings()).version, protocol_cls=Protocol)
        self._service, self._opened, self._settings = service, opened, settings or Settings()
        self._folder = Future() if folder is None else folder
        self._preferences = Preferences()
        self._debounce = Debounce(self._settings.debounce)
        self._documents: dict[str, Document] = {}
        self._newest: dict[str, object] = {}  # the newest request of each document, by a mark of its own
        self._jobs: dict[str, Suggesting] = {}
        self._edits = Edits()
        for method, handler, options in (
            (types.TEXT_DOCUMENT_INLINE_COMPLETION, self.inline, types.InlineCompletionOptions()),
            (types.TEXT_DOCUMENT_COMPLETION, self.listed, types.CompletionOptions(trigger_characters=TRIGGERS)),
            (types.TEXT_DOCUMENT_DID_SAVE, self.saved, types.SaveOptions(include_text=False)),
            (types.WORKSPACE_DID_CHANGE_CONFIGURATION, self.configured, None),
        ):
            self.feature(method, options)(partial(handler))  # `feature` marks what it is given, which a method refuses

    # What the editor tells.

    def initialized(self, params: types.InitializeParams) -> None:
        """A client is there, and what it can do is known."""
        self._prefer(params.initialization_options)
        if not self._folder.done():
            self._folder.set_result(_folder(params))

    def configured(self, params: types.DidChangeConfigurationParams) -> None:
        """The user's settings have changed."""
        self._prefer(params.settings)

    def opened(self, item: types.TextDocumentItem) -> None:
        """A text is open from now on."""
        self._documents[item.uri] = Document(item.text, item.language_id, item.version)

    def edited(self, params: types.DidChangeTextDocumentParams) -> None:
        """A text is edited, in one place after the other."""
        uri, version = params.text_document.uri, params.text_document.version
        document = self._documents.get(uri)
        if document is None:
            return self._log(f"a text that is not open was edited: {uri}")
        for change in params.content_changes:
            start, end = 0, len(document.text)
            if isinstance(change, types.TextDocumentContentChangePartial):
                start, end = self._offset(document, change.range.start), self._offset(document, change.range.end)
            document = document.changed(start, end, change.text, version)
            self._edits.made(uri, start + len(change.text))
        self._documents[uri] = document

    def closed(self, uri: str) -> None:
        """A text is open no more."""
        self._documents.pop(uri, None)
        self._edits.forget(uri)
        self._newest.pop(uri, None)
        if (job := self._jobs.pop(uri, None)) is not None:
            job.cancel("the document was closed")

    def saved(self, params: types.DidSaveTextDocumentParams) -> None:
        """A file was saved: the index has it before the next suggestion. One that is new to it is found by the watcher,
        which knows what training would read of the folder."""
        name = _name(params.text_document.uri)

        def update(suggester: Suggester) -> None:
            if suggester.knows(name):
                suggester.update(name, project.read(name, Path(name)))

        try:
            self._service.call(update)
        except Busy as error:
            self._log(str(error))

    # What the editor asks.

    async def inline(self, params: types.InlineCompletionParams) -> types.InlineCompletionList:
        """Ghost text at the cursor."""
        invoked = params.context.trigger_kind == types.InlineCompletionTriggerKind.Invoked
        found = await self._find(params.text_document.uri, params.position, invoked)
        if found is None:
            return types.InlineCompletionList([])
        item = items.inline(found.document, found.offset, self._encoding, found.suggestion)
        return types.InlineCompletionList([item])

    async def listed(self, params: types.CompletionParams) -> types.CompletionList:
        """The same suggestion, as a list of one, to be asked for again as the user types."""
        # Here Invoked is said of every letter typed too.
        found = await self._find(params.text_document.uri, params.position, False)
        if found is None:
            return types.CompletionList(True, [])
        item = items.listed(found.document, found.offset, self._encoding, found.suggestion)
        return types.CompletionList(True, [item])

    async def _find(self, uri: str, position: types.Position, invoked: bool) -> Found | None:
        """What is suggested there; why nothing is goes to the editor's log."""
        found = await self._suggest(uri, position, invoked)
        if isinstance(found, str):
            self._log(f"nothing is suggested: {found}")
            return None
        return found

    async def _suggest(self, uri: str, position: types.Position, invoked: bool) -> Found | str:
        """What is suggested there, or the reason why nothing is."""
        document = self._documents.get(uri)
        if document is None:
            return f"{uri} is not open"
        if off := self._off(document):
            return off
        mark = self._newest[uri] = object()
        wait = self._debounce.asked(time.monotonic())
        if wait and not invoked:
            await asyncio.sleep(wait)
        if not self._opened.done():
            await asyncio.shield(asyncio.wrap_future(self._opened))
        if self._newest.get(uri) is not mark:
            return SUPERSEDED
        offset = self._offset(document, position)
        try:
            job = self._jobs[uri] = self._service.suggest(self._ask(uri, document, offset, 1 if invoked else WORTH))
        except Busy as error:
            return str(error)
        try:
            suggestion = await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.cancel(GONE)
            raise
        except Error as error:
            return str(error)
        finally:
            if self._jobs.get(uri) is job:
                del self._jobs[uri]
        if not job.reason:
            self._debounce.answered(suggestion.latency_ms / 1000)
        if not suggestion.completion:
            return suggestion.reason or "there is nothing to suggest"
        return self._off(document) or Found(document, offset, suggestion)

    def _ask(self, uri: str, document: Document, offset: int, least: int) -> Ask:
        preferred, settings = self._preferences, self._settings
        multiline = settings.multiline if preferred.multiline is None else preferred.multiline
        threshold = settings.threshold() if preferred.threshold is None else preferred.threshold
        before, after = (text.encode("utf-8", "replace") for text in (document.text[:offset], document.text[offset:]))
        others = {other: d.text for other, d in self._documents.items() if other != uri and not self._off(d)}
        return Ask(
            before, after, _name(uri), multiline, BLOCK_TOKENS if multiline else MAX_TOKENS, threshold,
            self._edits.spans(others), least=least,
        )  # fmt: skip

    # What both need.

    @property
    def _encoding(self) -> str:
        """What positions count in, as agreed on."""
        return str(self.workspace.position_encoding or "utf-16")

    def _offset(self, document: Document, position: types.Position) -> int:
        return document.offset(position.line, position.character, self._encoding)

    def _off(self, document: Document) -> str:
        """Why nothing may be suggested in this document, "" where it may."""
        off = document.language in self._preferences.disabled
        return f"it is switched off for {document.language}" if off else ""

    def _prefer(self, options: Any) -> None:
        try:
            self._preferences = preferences.read(options) or self._preferences
        except Error as error:
            self.window_show_message(types.ShowMessageParams(types.MessageType.Warning, f"mlxgpt: {error}"))

    def _log(self, text: str, kind: types.MessageType = types.MessageType.Log) -> None:
        self.window_log_message(types.LogMessageParams(kind, text))

    def report_server_error(self, error: Exception, source: Any) -> None:
        """What was no message, or a notification that could not be followed; a request's error is its answer."""
        self._log(f"a message was left out: {error or type(error).__name__}", types.MessageType.Error)


def _folder(params: types.InitializeParams) -> Path | None:
    """The folder that the editor works in, the first of several, if it names one."""
    uris = [folder.uri for folder in params.workspace_folders or []] or [params.root_uri or ""]
    path = to_fs_path(uris[0]) if uris[0].startswith("file:") else None
    return Path(path) if path else None


def _name(uri: str) -> str:
    """A document's name for the index: a file's path as indexing spells it, below the real path of its folder."""
    path = to_fs_path(uri) if uri.startswith("file:") else None
    if not path:
        return uri
    return str(Path(path).parent.resolve() / Path(path).name)
