"""`mlxgpt setup` at a terminal: it asks, and does what is answered. The other verbs need no options after it."""

import http.client
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlxgpt.completion import defaults
from mlxgpt.setup.session import MODEL

SECONDS = 240
# The command, with a recipe that trains in seconds and a comparison at few places.
SETUP = """
import sys
from mlxgpt.setup import proposal, session

proposal.SIZES = (proposal.Size(sys.argv[1], ("train.steps=40", "train.evaluations=1")),)
session.CURSORS = 5
from mlxgpt.cli import main
main(sys.argv[2:])
"""


class Terminal:
    """A command whose stdin, stdout and stderr are a terminal."""

    def __init__(self, *command: object) -> None:
        self._ours, its = pty.openpty()
        self._process = subprocess.Popen(
            [*map(str, command)], stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        self.text = ""
        self._seen = 0

    def wait_for(self, text: str) -> None:
        """Until this is on the screen, after what was waited for before."""
        until = time.monotonic() + SECONDS
        while (at := self.text.find(text, self._seen)) < 0:
            assert time.monotonic() < until, self.text
            assert self._read(), f"it ended without {text!r}:\n{self.text}"
        self._seen = at + len(text)

    def type(self, text: str) -> None:
        """Keys that are pressed."""
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Its status, once it has ended."""
        while self._read():
            pass
        os.close(self._ours)
        return self._process.wait(SECONDS)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], SECONDS)[0]:
            self._process.kill()
            return False
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # Linux: nobody has the terminal open any more
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


@pytest.fixture(scope="module")
def project(code, tmp_path_factory) -> Path:
    """A copy of the code, which the tests below set up in turn."""
    return Path(shutil.copytree(code, tmp_path_factory.mktemp("terminal") / "project"))


def setup(small: Path, project: Path) -> Terminal:
    return Terminal(sys.executable, "-c", SETUP, small, "setup", project)


def test_who_says_no_has_nothing_trained(small, project):
    """Also after an answer that is none; and Ctrl-C at a question ends it in one line."""
    asked = setup(small, project)
    asked.wait_for("Minutes to train [10.0]:")
    asked.type("soon\n")
    asked.wait_for("'soon' is not a valid float")
    asked.wait_for("Minutes to train [10.0]:")
    asked.type("0.05\n")
    asked.wait_for("proposed: ")
    asked.wait_for("Train it? [Y/n]:")
    asked.type("n\n")
    assert asked.end() == 0
    assert "Traceback" not in asked.text
    stopped = setup(small, project)
    stopped.wait_for("Minutes to train")
    stopped.type("\x04")
    assert stopped.end() == 130
    assert "aborted" in stopped.text
    assert not [path for path in project.iterdir() if path.name.startswith(".")]


def test_who_says_yes_has_it_trained_and_enter_trains_it_once(small, project):
    asked = setup(small, project)
    asked.wait_for("Minutes to train")
    asked.type("0.05\n")
    asked.wait_for("Train it? [Y/n]:")
    asked.type("\n")
    asked.wait_for(f"setup {project.resolve() / defaults.NAME}")
    assert asked.end() == 0
    weights = project / MODEL / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    again = setup(small, project)
    again.wait_for("Train again, on the project as it is now? [y/N]:")
    again.type("\n")
    assert again.end() == 0
    assert weights.stat().st_mtime_ns == trained


def test_then_serve_and_lsp_need_no_options(project):
    command = [sys.executable, "-m", "mlxgpt.cli"]
    found = defaults.read(project / defaults.NAME)
    with subprocess.Popen([*command, "serve", "--port", "0"], cwd=project, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = ""
            while "ready" not in said:
                said += (line := server.stderr.readline())
                assert line, said
            connection = http.client.HTTPConnection("127.0.0.1", int(re.findall(r":(\d+)", said)[0]), timeout=SECONDS)
            connection.request("GET", "/props")
            props = json.loads(connection.getresponse().read())
            connection.close()
        finally:
            server.terminate()
            server.communicate(timeout=SECONDS)
    assert props["using"] == found.using
    assert props["model_path"] == ("ngrams" if found.using == "ngrams" else "model")
    assert props["threshold"] > 0
    with subprocess.Popen([*command, "lsp"], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            tell(server, id=1, method="initialize", params={"processId": None, "rootUri": None, "capabilities": {}})
            document = {"uri": (project / "new.py").as_uri(), "languageId": "python", "version": 1, "text": "import "}
            tell(server, method="textDocument/didOpen", params={"textDocument": document})
            place = {"textDocument": {"uri": document["uri"]}, "position": {"line": 0, "character": 7}}
            tell(server, id=2, method="textDocument/completion", params=place)
            answer = heard(server, 2)
            tell(server, id=3, method="shutdown")
            heard(server, 3)
            tell(server, method="exit")
            assert server.wait(SECONDS) == 0
        finally:
            server.kill()
    assert answer["result"]["isIncomplete"]


def tell(server: subprocess.Popen, **message: object) -> None:
    """Send a message of the language server protocol."""
    body = json.dumps({"jsonrpc": "2.0"} | message).encode()
    assert server.stdin is not None
    server.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    server.stdin.flush()


def heard(server: subprocess.Popen, number: int) -> dict:
    """The answer to the request of this number."""
    assert server.stdout is not None
    while True:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += (byte := server.stdout.read(1))
            assert byte, "it ended"
        found = json.loads(server.stdout.read(int(re.findall(rb"Content-Length: (\d+)", head)[0])))
        if found.get("id") == number:
            return found
