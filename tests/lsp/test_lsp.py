"""`mlxgpt lsp` as an editor meets it: a process on pipes, driven by pytest-lsp's client."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcRequestCancelled
from pytest_lsp import LanguageClient, make_test_lsp_client

from mlxgpt.completion.jobs import WORTH
from mlxgpt.completion.opening import open_suggester
from mlxgpt.completion.service import Service
from mlxgpt.completion.suggest import Suggester
from mlxgpt.lsp.documents import Document
from mlxgpt.lsp.server import Server, Settings

COMMAND = [sys.executable, "-m", "mlxgpt.cli", "lsp"]
URI = "file:///project/new.py"
AREA = "def compute_area(width, height):\n    return width * height\n"
ALL = [types.PositionEncodingKind.Utf8, types.PositionEncodingKind.Utf16, types.PositionEncodingKind.Utf32]


class Editor:
    """A client, in the words of a test."""

    def __init__(self, client: LanguageClient, capabilities: types.ServerCapabilities) -> None:
        self.client, self.capabilities = client, capabilities

    def open(self, text: str, uri: str = URI, language: str = "python") -> None:
        """Open a document."""
        item = types.TextDocumentItem(uri, language, 1, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def edit(self, *changes: tuple[tuple[int, int], tuple[int, int], str], uri: str = URI) -> None:
        """Put texts between positions."""
        parts = [
            types.TextDocumentContentChangePartial(types.Range(types.Position(*a), types.Position(*b)), text)
            for a, b, text in changes
        ]
        document = types.VersionedTextDocumentIdentifier(2, uri)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(document, parts))

    def save(self, uri: str) -> None:
        """Say that a document was saved."""
        self.client.text_document_did_save(types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(uri)))

    def asking(self, line: int, column: int, uri: str = URI, kind: int = 2) -> types.InlineCompletionParams:
        """What asks for ghost text."""
        context = types.InlineCompletionContext(types.InlineCompletionTriggerKind(kind))
        return types.InlineCompletionParams(context, types.TextDocumentIdentifier(uri), types.Position(line, column))

    async def inline(self, line: int, column: int, uri: str = URI, kind: int = 2) -> list[types.InlineCompletionItem]:
        """The ghost texts at a position."""
        found = await self.client.text_document_inline_completion_async(self.asking(line, column, uri, kind))
        return list(found.items)

    async def text(self, line: int, column: int, uri: str = URI) -> str:
        """The ghost text at a position, "" for none."""
        items = await self.inline(line, column, uri)
        assert len(items) <= 1
        return items[0].insert_text if items else ""

    async def listed(self, line: int, column: int, uri: str = URI) -> list[types.CompletionItem]:
        """The list of completions at a position."""
        place = types.TextDocumentIdentifier(uri), types.Position(line, column)
        found = await self.client.text_document_completion_async(types.CompletionParams(*place))
        assert found.is_incomplete
        return list(found.items)

    def configure(self, **settings: object) -> None:
        """Change the user's settings."""
        params = types.DidChangeConfigurationParams({"mlxgpt": settings})
        self.client.workspace_did_change_configuration(params)

    @property
    def log(self) -> list[str]:
        """What the server has logged."""
        return [message.message for message in self.client.log_messages]


@asynccontextmanager
async def editor(
    *arguments: object, encodings: list[types.PositionEncodingKind] | None = None, ghost: bool = True,
    options: object = None,
) -> AsyncIterator[Editor]:  # fmt: skip
    """An editor with its server, which must end as it should."""
    client = make_test_lsp_client()
    await client.start_io(*COMMAND, *map(str, arguments))
    text = types.TextDocumentClientCapabilities(
        inline_completion=types.InlineCompletionClientCapabilities() if ghost else None
    )
    general = types.GeneralClientCapabilities(position_encodings=encodings)
    capabilities = types.ClientCapabilities(text_document=text, general=general)
    params = types.InitializeParams(capabilities, initialization_options=options)
    result = await client.initialize_session(params)
    try:
        yield Editor(client, result.capabilities)
    finally:
        await client.shutdown_session()
        assert await asyncio.wait_for(client._server.wait(), 60) == 0
        await client.stop()


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with one file."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "area.py").write_text(AREA)
    return folder


def test_it_says_what_it_can_and_suggests_what_the_project_has(project):
    async def run():
        async with editor("--root", project) as e:
            assert e.capabilities.inline_completion_provider == types.InlineCompletionOptions()
            assert e.capabilities.completion_provider is None  # it would show the same a second time
            sync = e.capabilities.text_document_sync
            assert (sync.open_close, sync.change) == (True, types.TextDocumentSyncKind.Incremental)
            assert sync.save
            e.open("x = 1\ndef compute_area(wid")
            [item] = await e.inline(1, 20)
            assert item.insert_text == "th, height):"
            assert item.range == types.Range(types.Position(1, 20), types.Position(1, 20))
            assert [i.insert_text for i in await e.inline(1, 20, kind=1)] == ["th, height):"]

    asyncio.run(run())


def test_a_list_of_completions_has_the_same_with_the_word_that_is_typed(project):
    async def run():
        async with editor("--root", project, ghost=False) as e:
            assert e.capabilities.completion_provider.trigger_characters
            e.open("def compute_area(wid")
            [item] = await e.listed(0, 20)
            assert item.text_edit.new_text == item.insert_text == item.filter_text == item.label == "width, height):"
            assert item.text_edit.range == types.Range(types.Position(0, 17), types.Position(0, 20))
            assert item.preselect
            assert item.detail.startswith("mlxgpt ")
            assert item.detail.endswith("%")
            e.configure(threshold=1)
            e.open("def compute_area(wid", "file:///project/other.py")
            assert await e.listed(0, 20, "file:///project/other.py") == []
            assert "below the threshold 1.00" in e.log[-1]

    asyncio.run(run())


@pytest.mark.parametrize(("encoding", "emoji"), [("utf-8", 4), ("utf-16", 2), ("utf-32", 1)])
def test_positions_count_in_the_encoding_agreed_on(project, encoding, emoji):
    async def run():
        async with editor("--root", project, encodings=[types.PositionEncodingKind(encoding), *ALL]) as e:
            assert e.capabilities.position_encoding == encoding
            before = 'x = "😀"; '
            column = 8 + emoji + len("compute_area(wid")
            e.open(f"# a form feed \f is no line's end\r\n{before}compute_area(wid)\r\n")
            [item] = await e.inline(1, column)
            assert item.insert_text.startswith("th")
            assert item.range.start == item.range.end == types.Position(1, column)
            # the emoji goes, and one comes: what is before the cursor is exact again
            e.edit(((1, 5), (1, 5 + emoji), ""), ((1, 5), (1, 5), "😀"), ((1, column), (1, column + 1), ""))
            assert (await e.text(1, column)).startswith("th, height)")
            assert await e.text(1, 999) == await e.text(1, column)  # past the line's end is its end
            [item] = await e.listed(1, column)
            assert item.text_edit.range.start == types.Position(1, column - 3)

    asyncio.run(run())


def test_edits_are_followed_and_a_saved_file_is_known_at_once(project):
    async def run():
        async with editor("--root", project, "--debounce", 0) as e:
            e.open("")
            e.edit(((0, 0), (0, 0), "def compute\ndef "), ((0, 0), (1, 4), "def compute_ar"))
            assert await e.text(0, 14) == "ea(width, height):"
            e.edit(((0, 12), (0, 14), "area("))
            assert await e.text(0, 17) == "width, height):"
            (project / "area.py").write_text(AREA.replace("width, height)", "radius, angle)"))
            e.save((project / "area.py").as_uri())
            assert await e.text(0, 17) == "radius, angle):"

    asyncio.run(run())


def test_a_document_gives_way_to_its_buffer(project):
    """The index's copy of an open file, whose name may come over a link, does not count."""

    async def run():
        link = project.parent / "link"
        link.symlink_to(project)
        async with editor("--root", project) as e:
            uri = (link / "area.py").as_uri()
            e.open("def compute_area(wid", uri)
            assert await e.text(0, 20, uri) == ""

    asyncio.run(run())


def test_a_language_that_is_off(project):
    async def run():
        off = {"mlxgpt": {"disabled": ["markdown"]}}
        async with editor("--root", project, options=off) as e:
            e.open("def compute_area(wid", language="markdown")
            assert await e.text(0, 20) == ""
            assert e.log[-1] == "nothing is suggested: it is switched off for markdown"
            e.configure(disabled=["python"])
            assert await e.text(0, 20) == "th, height):"
            e.configure(disabled=3)
            assert await e.text(0, 20) == "th, height):"
            [shown] = e.client.messages
            assert "left as they were: Expected `array`, got `int` - at `$.disabled`" in shown.message

    asyncio.run(run())


class Slow(Suggester):
    """Suggests until it is told to stop, and counts how often."""

    calls = 0
    slow = True

    def suggest(self, prefix, suffix=b"", max_tokens=64, **options):
        """As the base class."""
        Slow.calls += 1
        while self.slow and not options["cancelled"]():
            pass
        return super().suggest(prefix, suffix, max_tokens, **options)


@asynccontextmanager
async def within(suggester: Suggester, **settings: object) -> AsyncIterator[Server]:
    """A server in this process, as it is after `initialize`."""
    service = Service(lambda: suggester)
    server = Server(service, service.start(), Settings(**settings))
    params = types.InitializeParams(types.ClientCapabilities())
    list(server.protocol.lsp_initialize(params))
    server.sent = []
    server.window_log_message = lambda params: server.sent.append(params.message)
    try:
        yield server
    finally:
        service.close()


def asked(server: Server, column: int, kind: int = 2) -> asyncio.Task:
    """A request on its way."""
    context = types.InlineCompletionContext(types.InlineCompletionTriggerKind(kind))
    place = types.TextDocumentIdentifier(URI), types.Position(1, column)
    return asyncio.ensure_future(server.inline(types.InlineCompletionParams(context, *place)))


def test_what_is_off_computes_nothing_and_what_is_cancelled_ends():
    async def run():
        Slow.calls = 0
        async with within(Slow()) as server:
            server.opened(types.TextDocumentItem(URI, "python", 1, "abc = def\nabc = "))
            server.configured(types.DidChangeConfigurationParams({"mlxgpt": {"disabled": ["python"]}}))
            assert (await asked(server, 6)).items == []
            assert Slow.calls == 0
            server.configured(types.DidChangeConfigurationParams({"mlxgpt": {}}))
            task = asked(server, 6)
            while not Slow.calls:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server._service.load.working:  # it would never end by itself
                await asyncio.sleep(0.001)
            older = asked(server, 6)
            while Slow.calls < 2:
                await asyncio.sleep(0.001)
            newer = asked(server, 6)
            assert (await older).items == []
            assert "a newer request for the same document came" in server.sent[-1]
            while Slow.calls < 3:
                await asyncio.sleep(0.001)
            server.closed(URI)
            assert (await newer).items == []
            assert "the document was closed" in server.sent[-1]

    asyncio.run(run())


def test_who_waits_is_overtaken_and_who_invokes_does_not_wait():
    async def run():
        async with within(suggester := Slow(), debounce=3600.0) as server:
            suggester.slow = False
            server.opened(types.TextDocumentItem(URI, "python", 1, "abc = def\nabc = "))
            [item] = (await asked(server, 6)).items  # nothing was asked before: no wait
            assert item.insert_text == "def"
            server._debounce.answered(1e4)  # from now on answers take long
            Slow.calls = 0
            waiting = asked(server, 6)
            await asyncio.sleep(0.01)
            assert not waiting.done()
            [item] = (await asked(server, 6, kind=1)).items
            assert item.insert_text == "def"
            assert Slow.calls == 1
            waiting.cancel()

    asyncio.run(run())


def test_what_is_too_short_is_shown_to_who_invokes():
    async def run():
        async with within(Suggester(), debounce=0.0) as server:
            server.opened(types.TextDocumentItem(URI, "python", 1, "abc = d)\nabc = "))
            assert (await asked(server, 6)).items == []
            assert "fewer than 3 characters" in server.sent[-1]
            [item] = (await asked(server, 6, kind=1)).items
            assert item.insert_text == "d)"

    asyncio.run(run())


def test_a_request_is_cancelled_over_the_wire(project):
    async def run():
        async with editor("--root", project) as e:
            e.open("def compute_area(wid")
            cancelled = False
            for number in "0123456789":  # on a busy machine an answer may be quicker than what cancels it
                sending = e.client.protocol.send_request_async(
                    types.TEXT_DOCUMENT_INLINE_COMPLETION, e.asking(0, 20), number
                )
                asking = asyncio.ensure_future(sending)
                await asyncio.sleep(0)
                e.client.cancel_request(types.CancelParams(number))
                with suppress(JsonRpcRequestCancelled):
                    await asyncio.wait_for(asking, 20)
                    continue
                cancelled = True
                break
            assert cancelled
            assert await e.text(0, 20) == "th, height):"

    asyncio.run(run())


def test_what_is_no_request_is_refused_and_survived(project):
    async def run():
        async with editor("--root", project) as e:
            assert await e.inline(0, 0) == []  # of a document that is not open
            assert e.log[-1] == f"nothing is suggested: {URI} is not open"
            e.edit(((0, 0), (0, 0), "x"))
            with pytest.raises(JsonRpcException, match="Method Not Found"):
                await e.client.protocol.send_request_async("textDocument/nonsense", {})
            e.open("def compute_area(wid")
            e.edit(((9, 9), (0, 20), ""), ((7, 7), (8, 8), "th"))  # ends the wrong way round; past the end
            assert await e.text(0, 22) == ", height):"
            assert await e.text(999, 999) == ", height):"

    asyncio.run(run())


def framed(*messages: object) -> bytes:
    """Messages, or bytes that are none, as they go over the wire."""
    bodies = [m if isinstance(m, bytes) else json.dumps(m).encode() for m in messages]
    return b"".join(b"Content-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies)


def unframed(data: bytes) -> list[dict]:
    """The messages that bytes consist of, and of nothing else."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ") for line in head.split(b"\r\n"))
        size = int(fields[b"Content-Length"])
        found.append(json.loads(rest[:size]))
        data = rest[size:]
    return found


def request(number: int, method: str, **params: object) -> dict:
    """A request."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


INITIALIZE = request(1, "initialize", processId=None, rootUri=None, capabilities={})
EXIT = {"jsonrpc": "2.0", "method": "exit"}


def spoken(stdin: bytes, *arguments: object) -> tuple[int, list[dict], str]:
    """How the server ends, what it sends and what it says on stderr."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False)
    return done.returncode, unframed(done.stdout), done.stderr.decode()


def test_it_ends_as_the_protocol_says_and_stdout_has_nothing_else(project):
    shutdown = {"jsonrpc": "2.0", "id": 2, "method": "shutdown"}
    status, sent, err = spoken(framed(INITIALIZE, shutdown, EXIT), "--root", project)
    assert (status, [m["id"] for m in sent], err) == (0, [1, 2], "")
    assert spoken(framed(INITIALIZE, EXIT))[0] == 1  # without `shutdown`
    status, sent, err = spoken(framed(INITIALIZE))  # stdin is closed
    assert (status, [m["id"] for m in sent], err) == (0, [1], "")
    assert spoken(b"") == (0, [], "")
    assert spoken(framed(INITIALIZE)[:-5]) == (0, [], "")


def test_garbage_is_survived():
    early = request(7, types.TEXT_DOCUMENT_INLINE_COMPLETION, textDocument={"uri": "a"}, position={}, context={})
    deep = b"[" * 100_000
    status, sent, err = spoken(framed(b"{", b"\xff\xfe", b"[1, 2]", b"7", deep, early, INITIALIZE))
    assert (status, err) == (0, "")
    assert {m["id"]: "error" in m for m in sent if "id" in m} == {7: True, 1: False}
    assert all(m["method"] == "window/logMessage" for m in sent if "id" not in m)
    status, sent, err = spoken(b"x" * 1_000_000)
    assert (status, sent) == (1, [])
    assert err == "mlxgpt: error: stdin is no Language Server Protocol: `mlxgpt lsp` is for an editor to start\n"


def test_what_cannot_be_opened_is_said_in_one_line(cli, tmp_path):
    missing = tmp_path / "missing"
    assert cli("lsp", "--root", missing).error == f"--root {missing} is no folder"
    assert "needs a model" in cli("lsp", "--using", "model").error
    assert "exclude each other" in cli("lsp", "--threshold", 0.5, "--false-show", 0.5).error
    with subprocess.Popen(
        [*COMMAND, "--model", str(missing)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:  # whose stdin stays open
        assert server.wait(60) == 2
        error = server.stderr.read().decode()
    assert error.startswith("mlxgpt: error: ")
    assert error.count("\n") == 1


def test_what_prints_does_not_reach_the_protocol(project):
    code = (
        "import os\nfrom mlxgpt.lsp import server\n"
        "def opened(self, item):\n    print('hello'); os.write(1, b'hello')\n"
        "server.Server.opened = opened\nfrom mlxgpt.cli import main\nmain.main(['lsp'])"
    )
    item = {"uri": URI, "languageId": "python", "version": 1, "text": ""}
    note = {"jsonrpc": "2.0", "method": "textDocument/didOpen", "params": {"textDocument": item}}
    done = subprocess.run(
        [sys.executable, "-c", code], input=framed(INITIALIZE, note), capture_output=True, timeout=120, check=False,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert [m["id"] for m in unframed(done.stdout)] == [1]
    assert sorted(done.stderr.split()) in ([b"hello", b"hello"], [b"hellohello"])


def cursors(text: str, count: int) -> list[tuple[int, int]]:
    """Positions within the longer lines of a text, evenly."""
    lines = [(i, len(line) * 2 // 3) for i, line in enumerate(text.splitlines()) if len(line.strip()) > 24]
    return lines[:: max(1, len(lines) // count)][:count]


def test_a_trained_model_suggests_what_it_does_elsewhere_and_hides_the_unsure(trained, code):
    """Text by text what `mlxgpt complete` would print, below the threshold of --false-show too."""
    text = (code / "textwrap.py").read_text()
    alone = open_suggester(str(trained), code)
    answers = {}
    for line, column in cursors(text, 12):
        document = Document(text)
        at = document.offset(line, column, "utf-16")
        answers[line, column] = alone.suggest(
            text[:at].encode(), text[at:].encode(), document=str(code / "textwrap.py"), least=WORTH
        )
    sure = sorted(answer.confidence for answer in answers.values() if answer.completion)
    rates = [rate / 100 for rate in range(5, 100, 5)]
    rate = next(rate for rate in rates if sure[0] < alone.gate.threshold(rate) <= sure[-1])
    threshold = alone.gate.threshold(rate)

    async def run():
        async with editor("--model", trained, "--root", code, "--false-show", rate, "--debounce", 0) as e:
            uri = (code / "textwrap.py").as_uri()
            e.open(text, uri)
            hidden = 0
            for place, answer in answers.items():
                shown = await e.text(*place, uri)
                assert shown == (answer.completion if answer.confidence >= threshold else ""), place
                if answer.completion and not shown:
                    hidden += 1
                    assert f"is below the threshold {threshold:.2f}" in e.log[-1]
            assert 0 < hidden < len(answers)

    asyncio.run(run())


def test_a_trained_models_request_is_cancelled_and_a_saved_file_is_known(trained, code, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(code, project)
    text = (code / "textwrap.py").read_text()

    async def run():
        async with editor("--model", trained, "--root", project, "--debounce", 0) as e:
            e.open(text)
            line, column = cursors(text, 3)[-1]
            first = asyncio.ensure_future(
                e.client.protocol.send_request_async(
                    types.TEXT_DOCUMENT_INLINE_COMPLETION, e.asking(line, column), "to be cancelled"
                )
            )
            await asyncio.sleep(0)
            e.client.cancel_request(types.CancelParams("to be cancelled"))
            with pytest.raises(JsonRpcRequestCancelled):
                await asyncio.wait_for(first, 60)
            e.open("total = 0\nquadrant_", "file:///project/other.py")
            assert "total_of" not in await e.text(1, 9, "file:///project/other.py")
            saved = project / "glob.py"
            line_of = "value = quadrant_total_of(first_quadrant, second_quadrant)\n"
            saved.write_text(saved.read_text() + 8 * line_of)
            e.save(saved.as_uri())
            assert await e.text(1, 9, "file:///project/other.py") == "total_of(first_quadrant, second_quadrant)"

    asyncio.run(run())
