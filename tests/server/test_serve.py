"""`mlxgpt serve` as a process: where it listens, how it ends, and what it refuses to start with."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import PROJECT, soon

from mlxgpt.completion.opening import Names, open_suggester
from mlxgpt.errors import UsageError
from mlxgpt.models.layers import QuantizedLinear
from mlxgpt.server import run

SECONDS = 60


class Process:
    """The command, running."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "mlxgpt.cli", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)

    def ready(self) -> int:
        """The port, once it is ready."""
        assert soon(lambda: any("ready" in line for line in self.said) or self.process.poll() is not None)
        return int(re.findall(r"listening on http://127\.0\.0\.1:(\d+)", "".join(self.said))[0])

    def end(self) -> tuple[int, str]:
        """Press Ctrl-C; its status and what it wrote to stderr."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(SECONDS)
        self.reader.join(SECONDS)
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        self.process.stdout.close()
        return status, "".join(self.said)


@pytest.fixture
def start() -> Iterator:
    begun: list[Process] = []

    def started(*arguments: object, **environment: str) -> Process:
        begun.append(Process(*arguments, **environment))
        return begun[-1]

    yield started
    for each in begun:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        each.reader.join(SECONDS)


def post(port: int, path: str, body: dict, **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with code."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "area.py").write_bytes(PROJECT)
    shutil.copy(Path(sysconfig.get_path("stdlib")) / "glob.py", folder)
    return folder


def test_a_project_is_enough_and_saved_files_are_learned(start, project):
    running = start("--root", project)
    port = running.ready()
    place = {"input_prefix": "import area\n\n\nprint(compute_a", "input_suffix": "\n"}
    assert post(port, "/infill", place)[1]["content"].startswith("rea(width, height)")
    new = {"input_prefix": "x = brand_n", "input_suffix": "\n"}
    assert post(port, "/infill", new)[1]["content"] == ""
    (project / "new.py").write_text("def first():\n    brand_new_name = 17\n    return brand_new_name\n")
    assert soon(lambda: post(port, "/infill", new)[1]["content"] != "")
    assert post(port, "/infill", new)[1]["content"].startswith("ew_name")
    assert post(port, "/infill", new | {"document": "new.py"})[1]["content"] == ""  # it is the file that is open
    status, said = running.end()
    assert status == 0
    assert said.splitlines()[-1] == "mlxgpt: stopped"
    assert "Traceback" not in said


def test_a_model_is_served_and_ctrl_c_ends_what_it_writes(start, trained):
    running = start("--model", trained, MLXGPT_API_KEY="k")
    port = running.ready()
    assert post(port, "/completion", {"prompt": "def "})[0] == 401
    key = {"Authorization": "Bearer k"}
    status, table = post(port, "/v1/completions", {"prompt": "def f(self", "max_tokens": 5}, **key)
    assert (status, table["model"], table["usage"]["completion_tokens"]) == (200, trained.name, 5)
    assert post(port, "/infill", {"input_prefix": "import os\nclass A:\n    def f(sel"}, **key)[1]["content"]
    status, table = post(port, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, **key)
    assert status == 400
    assert table["error"]["message"].startswith(f"{trained.name} has no chat template")
    assert str(trained.parent) not in table["error"]["message"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    body = {"prompt": ["def ", "class "] * 8, "n_predict": -1, "stream": True, "temperature": 2}
    connection.request("POST", "/completion", json.dumps(body), key)
    assert connection.getresponse().read(10)
    status, said = running.end()
    assert (status, "Traceback" in said) == (0, False)


def test_a_model_is_quantized_as_it_is_loaded(trained):
    suggester = open_suggester(str(trained), quantize="4", using="model")
    assert suggester.model is not None
    assert {type(block.mlp.down_proj) for block in suggester.model.layers} == {QuantizedLinear}
    told = run.describe(Names(str(trained), quantize="4"), suggester)
    assert (told.name, told.context, told.using) == (trained.name, 128, "model")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "{F}/none"], 2, "there is no model '{F}/none'"),
        (["--root", "{F}/none"], 2, "no such file or folder: {F}/none"),
        (["--using", "both"], 2, "--using both needs a model"),
        (["--host", "0.0.0.0"], 2, "--host 0.0.0.0 lets other machines ask: give --api-key"),
        (["--host", ""], 2, "--host is empty"),
        (["--host", "192.0.2.1", "--api-key", "k"], 1, "cannot listen on port 0 of 192.0.2.1"),
        (["--port", "65536"], 2, "'--port'"),
        (["--threshold", "0.5", "--false-show", "0.1"], 2, "exclude each other"),
        (["--threshold", "2"], 2, "'--threshold'"),
    ],
)
def test_what_it_does_not_start_with(spawn, tmp_path, arguments, status, words):
    given = [argument.format(F=tmp_path) for argument in arguments]
    given = given if "--port" in given else [*given, "--port", 0]
    done = spawn("serve", *given)
    assert (done.status, done.out) == (status, "")
    assert words.format(F=tmp_path) in done.error


def test_a_port_in_use_is_one_line(spawn):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = spawn("serve", "--port", port)
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        f"mlxgpt: error: port {port} of 127.0.0.1 is in use: stop what listens there, or choose another --port\n"
    )


def test_a_host_that_nobody_knows_is_one_line(monkeypatch):
    def unknown(*given, **more):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match=r"^--host no\.such\.host: Name or service not known$"):
        run.bind("no.such.host", 0)
