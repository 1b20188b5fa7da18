"""pygls's protocol, where ours differs: documents are kept by `documents`, and every request is answered."""

import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.protocol import LanguageServerProtocol, lsp_method

if TYPE_CHECKING:
    from mlxgpt.lsp.server import Server

# What pygls logs, with tracebacks, is for its own developers; what concerns a user is sent to the editor.
logging.getLogger("pygls").addHandler(logging.NullHandler())
logging.getLogger("pygls").propagate = False


class Protocol(LanguageServerProtocol):
    """See the module."""

    _server: "Server"

    def structure_message(self, data: dict[str, Any]) -> Any:
        """A message from its JSON; a request with parameters that are none is refused, not left without an answer."""
        try:
            return super().structure_message(data)
        except JsonRpcException as error:
            if "method" in data and isinstance(data.get("id"), int | str):
                self._send_response(data["id"], error=error.to_response_error())
            raise

    @lsp_method(types.INITIALIZE)
    def lsp_initialize(self, params: types.InitializeParams) -> Generator[Any, Any, types.InitializeResult]:
        """The list of completions is for clients without ghost text: with both, a suggestion would be shown twice."""
        result = yield from super().lsp_initialize(params)
        text = params.capabilities.text_document
        if text is not None and text.inline_completion is not None:
            result.capabilities.completion_provider = None
        self._server.initialized(params)
        return result

    @lsp_method(types.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: types.DidOpenTextDocumentParams) -> None:
        """A text is open from now on."""
        self._server.opened(params.text_document)

    @lsp_method(types.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: types.DidChangeTextDocumentParams) -> None:
        """It is edited."""
        self._server.edited(params)

    @lsp_method(types.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        """It is open no more."""
        self._server.closed(params.text_document.uri)
