"""How a process ends that has MLX on a thread of its own: what it wrote is out, and no interpreter shuts down under it.

Whether such a shutdown ends in SIGABRT is a matter of microseconds; that there is none can be seen.
"""

import http.client
import json
import re
import signal
import subprocess
import sys

import pytest

SECONDS = 240
LEAVES = """
import atexit, sys
from mlxgpt import ending

atexit.register(print, "shut down")
print("written")
if sys.argv[1] == "threads":
    ending.at_once()
ending.leave(3)
"""
# The command line, whose suggester is never there: MLX works on without an end, on the thread that should open it.
OPENING = """
import atexit, sys
from mlxgpt.completion import service, watch

def open(self):
    import mlx.core as mx
    while True:
        mx.eval(mx.ones((8, 8)) @ mx.ones((8, 8)))

watch.Watched.open = open
service.CLOSING_SECONDS = 0.1
atexit.register(print, "shut down", file=sys.stderr)
from mlxgpt.cli import main
main()
"""


def framed(**message: object) -> bytes:
    """A message to a language server."""
    body = json.dumps({"jsonrpc": "2.0"} | message).encode()
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def health(port: int) -> int:
    """The status of GET /health, of a server that listens and may not answer yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("GET", "/health")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.mark.parametrize(("how", "out"), [("threads", "written\n"), ("alone", "written\nshut down\n")])
def test_it_leaves_at_once_where_mlx_had_a_thread(how, out):
    done = subprocess.run([sys.executable, "-c", LEAVES, how], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (3, out, "")


def test_an_editor_that_leaves_while_the_model_is_opened():
    parameters = {"processId": None, "rootUri": None, "capabilities": {}}
    said = framed(id=1, method="initialize", params=parameters)
    said += framed(id=2, method="shutdown") + framed(method="exit")
    command = [sys.executable, "-c", OPENING, "lsp", "--using", "ngrams"]
    done = subprocess.run(command, input=said, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0
    assert b"shut down" not in done.stderr
    assert b'"id":2' in done.stdout.replace(b" ", b"")


def test_ctrl_c_while_the_model_is_opened():
    command = [sys.executable, "-c", OPENING, "serve", "--using", "ngrams", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = ""
            while not (port := re.findall(r"listening on http://127\.0\.0\.1:(\d+)", said)):
                said += (line := server.stderr.readline())
                assert line, said
            assert health(int(port[0])) == 503
            server.send_signal(signal.SIGINT)
            _, said = server.communicate(timeout=SECONDS)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "stopped" in said
    assert "shut down" not in said
