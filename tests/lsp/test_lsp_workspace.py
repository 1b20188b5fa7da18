"""`mlxgpt lsp` without options: the `.mlxgpt.toml` of the folder that the editor names."""

import json

import pytest
from lsprotocol import types

from mlxgpt.completion import defaults
from mlxgpt.lsp.server import _folder


def initialize(**parameters: object) -> bytes:
    """The first message of an editor."""
    params = {"processId": None, "rootUri": None, "capabilities": {}} | parameters
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize("named", ["folders", "root"])
def test_what_is_wrong_with_its_file_ends_the_server(tmp_path, spawn, named):
    """And so it is read."""
    (tmp_path / "src").mkdir()
    (tmp_path / defaults.NAME).write_text("[complete]\nmodle = 'x'\n")
    uri = (tmp_path / "src").as_uri()
    message = (
        initialize(workspaceFolders=[{"uri": uri, "name": "src"}]) if named == "folders" else initialize(rootUri=uri)
    )
    done = spawn("lsp", stdin=message)
    assert done.status == 2
    assert f"{tmp_path / defaults.NAME}: unknown key 'complete.modle'" in done.error


def test_options_win_over_the_editors_folder(tmp_path, spawn):
    (tmp_path / defaults.NAME).write_text("[complete]\nmodle = 'x'\n")
    done = spawn("lsp", "--using", "ngrams", stdin=initialize(rootUri=tmp_path.as_uri()))
    assert done.status in (0, 1)  # stdin ended without an exit
    assert "modle" not in done.err


def test_which_folder_an_editor_works_in(tmp_path):
    def params(**named: object) -> types.InitializeParams:
        return types.InitializeParams(types.ClientCapabilities(), **named)

    folders = [types.WorkspaceFolder(tmp_path.as_uri(), "a"), types.WorkspaceFolder("file:///other", "b")]
    assert _folder(params(workspace_folders=folders, root_uri="file:///third")) == tmp_path
    assert _folder(params(root_uri=tmp_path.as_uri())) == tmp_path
    assert _folder(params()) is None
    assert _folder(params(root_uri="untitled:somewhere")) is None
