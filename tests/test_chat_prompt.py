"""`mlxgpt generate --chat`: messages by a pipe, at a terminal, and Ctrl-C in it."""

import codecs
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxgpt.chat.prompt import read_message

TEMPLATE = """{{ bos_token }}
{%- for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
# Runs the command line with a model that takes its time: answers are long enough to be interrupted.
SLOW = """
import sys, time
from mlxgpt.generation import engine

step = engine.Decoder.step
def slow(self, token):
    time.sleep(0.05)
    return step(self, token)

engine.Decoder.step = slow
from mlxgpt.cli import main
main.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def instruct(trained, tmp_path_factory) -> Path:
    """The trained model, with a chat template."""
    folder = tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("training"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture
def chat(cli, instruct):
    return lambda *options, stdin=b"": cli("generate", "-m", instruct, "--chat", *options, stdin=stdin)


def test_each_line_of_a_pipe_is_a_turn(chat):
    done = chat("-n", 6, "--json", stdin=b"def f(\n\nimport os\r\n")
    assert (done.status, done.err) == (0, "")
    table = json.loads(done.out)
    assert list(table) == ["messages", "turns"]
    assert [m["role"] for m in table["messages"]] == ["user", "assistant"] * 2
    assert [m["content"] for m in table["messages"]][::2] == ["def f(", "import os"]
    first, second = table["turns"]
    assert [m["content"] for m in table["messages"]][1::2] == [first["text"], second["text"]]
    assert len(first["prompt_token_ids"]) <= second["cached_tokens"] < len(second["prompt_token_ids"])
    assert first["cached_tokens"] == 0
    told = chat("-n", 6, stdin=b"def f(\n\nimport os\n")
    assert told.out == f"{first['text']}\n{second['text']}\n"
    assert (told.status, told.err) == (0, "")


def test_a_later_turn_is_what_a_fresh_process_says_to_the_whole_conversation(spawn, instruct, chat):
    """The other process computes the conversation anew: its template has the first turns in it."""
    table = json.loads(chat("-n", 12, "--json", stdin=b"def f(\nimport os\nx = 1\n").out)
    assert table["turns"][2]["cached_tokens"] > 0
    said = "".join(f"<{m['role']}>{m['content']}</s>" for m in table["messages"][:4])
    other = instruct.parent / "other"
    shutil.copytree(instruct, other)
    path = other / "tokenizer_config.json"
    before = "{{ bos_token }}" + said + "{% for m in messages %}{{ '<user>' + m.content + eos_token }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": before + "<assistant>"}))
    done = spawn("generate", "-m", other, "--chat", "-p", "x = 1", "-n", 12, "--json")
    assert done.status == 0, done.err
    fresh = json.loads(done.out)["turns"][0]
    assert fresh["cached_tokens"] == 0
    for key in ("prompt_token_ids", "token_ids", "text", "finish_reason"):
        assert fresh[key] == table["turns"][2][key]


def test_a_prompt_without_a_terminal_is_the_only_turn(chat):
    table = json.loads(chat("-n", 4, "--system", "brief", "-p", "/exit x", "--json", stdin=b"never read\n").out)
    assert [m["role"] for m in table["messages"]] == ["system", "user", "assistant"]
    assert table["messages"][1]["content"] == "/exit x"
    table = json.loads(chat("-n", 4, "-p", "-", "--json", stdin=b"two\nlines\n").out)
    assert table["messages"][0]["content"] == "two\nlines\n"


def test_commands(chat):
    done = chat("-n", 4, "--json", stdin=b"def f(\n/nope x\n/help\n/reset\nimport\n/exit\nnever\n")
    table = json.loads(done.out)
    assert table["messages"][0]["content"] == "import"
    assert len(table["turns"]) == 2
    assert done.status == 0
    unknown, *help_, forgotten = done.err.splitlines()
    assert unknown.startswith("mlxgpt: there is no /nope: /reset, /exit and /help there are")
    assert "/reset  forget the conversation" in help_[0]
    assert forgotten == "mlxgpt: the conversation is forgotten"


def test_a_conversation_beyond_the_context_goes_on_after_reset(chat):
    done = chat("-n", 4, "--json", stdin=b"x = 1; " * 60 + b"\n/reset\ndef\n")
    assert done.status == 1
    assert "the model's context is 128: say it in fewer words, or begin anew with /reset" in done.err
    assert json.loads(done.out)["messages"][0]["content"] == "def"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("a", ["a"]),
        ("a\\\nb\\\n\\\nc\nd", ["a\nb\n\nc", "d"]),
        ('"""a"""\nb', ["a", "b"]),
        ('"""\ndef f():\n    pass\\\n\n"""\nb', ["def f():\n    pass\\\n", "b"]),
        ('"""a\nb', ["a\nb"]),
        ("a\\", ["a\n"]),
    ],
)
def test_messages_of_several_lines(typed, expected):
    rest = iter(typed.split("\n"))
    messages = iter(lambda: read_message(lambda more: next(rest, None)), None)  # type: ignore[arg-type]
    assert list(messages) == expected


@pytest.mark.parametrize(
    "options",
    [["-p", "a", "-p", "b"], ["--prompt-cache", "x"], ["--lookup", "--draft", "x"]],
)
def test_what_does_not_go_with_a_conversation(chat, options):
    assert chat(*options).status == 2


def test_a_model_without_a_template(cli, trained):
    assert "has no chat template: it is no instruct model" in cli("generate", "-m", trained, "--chat").error
    assert cli("generate", "-m", trained, "-p", "x", "--system", "y").error == "--system goes with --chat"


class Session:
    """The program at a terminal of its own."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.fd, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, close_fds=True,
            env=os.environ | {"TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self.decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a read may end within a character

    def read(self) -> str:
        """What it writes next; empty once it has ended."""
        text = ""
        while not text:
            ready, _, _ = select.select([self.fd], [], [], 60)
            assert ready, f"it waits after {self.seen!r}"
            try:
                text = self.decode(os.read(self.fd, 4096))
            except OSError:  # Linux: the other side is closed
                return ""
        return text

    def until(self, text: str) -> None:
        """Read until the program has written `text`."""
        while text not in self.seen:
            more = self.read()
            assert more, f"it ended after {self.seen!r}"
            self.seen += more
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)

    def interrupt_answer(self) -> None:
        """Ctrl-C when the first word of an answer to what was typed has come."""
        self.until("\n")  # of the echo
        while not self.seen.strip():
            self.seen += self.read()
        self.interrupt()
        self.until("mlxgpt: stopped")
        self.until("> ")

    def interrupt_line(self, text: str) -> None:
        """Ctrl-C with `text` on the line; not before readline waits for more, where a signal would have to wait too."""
        self.type(text)
        self.until(text)
        time.sleep(0.3)
        self.interrupt()

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it wrote until then."""
        while more := self.read():
            self.seen += more
        return self.process.wait(60), self.seen


@pytest.fixture
def at_a_terminal() -> Iterator:
    sessions: list[Session] = []

    def start(*arguments: object) -> Session:
        sessions.append(Session(SLOW, *arguments))
        return sessions[-1]

    yield start
    for session in sessions:
        session.process.kill()
        session.process.wait()
        os.close(session.fd)


def test_ctrl_c_stops_the_answer_and_not_the_program(at_a_terminal, instruct):
    session = at_a_terminal("generate", "-m", instruct, "--chat", "-n", 60, "--json")
    session.until("> ")
    session.type("def f(\n")
    session.interrupt_answer()
    session.interrupt_line("half a li")
    session.until("Ctrl-C again, Ctrl-D or /exit ends")
    session.until("> ")
    session.type("/help\n")
    session.until("goes on with the next one")
    session.until("> ")
    session.type('"""import\n')
    session.until("… ")
    session.type('os"""\n')
    session.interrupt_answer()
    session.type("\x04")
    status, rest = session.end()
    assert status == 0
    table = json.loads(rest.strip().splitlines()[-1])
    first, second = table["turns"]
    assert first["finish_reason"] == second["finish_reason"] == "cancelled"
    assert 0 < len(first["token_ids"]) < 60
    assert [m["content"] for m in table["messages"]] == ["def f(", first["text"], "import\nos", second["text"]]
    assert second["cached_tokens"] >= len(first["prompt_token_ids"]) - 1


def test_ctrl_c_twice_at_the_prompt_ends(at_a_terminal, instruct):
    session = at_a_terminal("generate", "-m", instruct, "--chat")
    session.until("> ")
    session.interrupt_line("one")
    session.until("Ctrl-C again")
    session.until("> ")
    session.interrupt_line("two")
    status, rest = session.end()
    assert status == 130
    assert rest.strip() == "mlxgpt: error: aborted"
