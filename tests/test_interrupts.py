"""Ctrl-C and progress: a prompt is computed in chunks, told of, and left within one chunk; an answer after a token."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from mlxgpt import interrupts, prompt_bar, weights
from mlxgpt.generation import engine, speculation
from mlxgpt.generation.engine import Cancelled, Decoder, Request, collect, generate

# Runs the command line and presses Ctrl-C at the token, or in the chunk of the prompt, of that number.
PRESSED = """
import os, signal, sys
from mlxgpt.generation import engine

engine.PREFILL_CHUNK = 16
at, where = int(sys.argv[1]), sys.argv[2]
real = engine.Decoder.step if where == "step" else engine.Decoder.prefill
count = 0

def press():
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), signal.SIGINT)

def step(self, token):
    press()
    return real(self, token)

def prefill(self, tokens, progress):
    def told(done):
        press()
        progress(done)
        print("chunk", file=sys.stderr)
    return real(self, tokens, told)

setattr(engine.Decoder, where, step if where == "step" else prefill)
from mlxgpt.cli import main
main.main(sys.argv[3:])
"""


@pytest.fixture(scope="module")
def loaded(trained):
    return weights.load_with_tokenizer(trained)


def test_ctrl_c_is_noted_and_raises_only_outside():
    with interrupts.deferred() as pressed:
        assert not pressed()
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("guessing", [False, True])
def test_a_prompt_is_told_of_and_left_within_a_chunk(loaded, monkeypatch, guessing):
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 7)
    model, its = loaded
    ids = [its.bos_id, *its.encode("def f(x):\n    return x\n" * 4)][:40]
    heard: list[tuple[int, int]] = []
    request = Request(3, progress=lambda *done: heard.append(done))

    def pieces(request: Request, decoder: Decoder):
        if guessing:
            return speculation.generate(model, its, ids, request, speculation.Tally(), None, decoder)
        return generate(model, its, ids, request, decoder)

    whole = collect(pieces(request, Decoder(model)))
    assert heard == [(0, 40), (7, 40), (14, 40), (21, 40), (28, 40), (35, 40), (40, 40)]
    heard.clear()
    decoder = Decoder(model)
    cancelling = replace(request, cancelled=lambda: heard[-1][0] >= 14)
    with pytest.raises(Cancelled):
        next(pieces(cancelling, decoder))
    assert decoder.position == heard[-1][0] == 14
    done = collect(pieces(cancelling, Decoder(model)))
    assert (done.text, done.token_ids, done.finish_reason) == ("", [], "cancelled")
    heard.clear()
    assert collect(pieces(request, decoder)).token_ids == whole.token_ids  # what was computed is of use
    assert heard == [(14, 40), (21, 40), (28, 40), (35, 40), (40, 40)]


def test_an_answer_is_left_after_a_token(loaded):
    model, its = loaded
    ids = its.encode("def f(")
    whole = collect(generate(model, its, ids, Request(12)))
    shown: list[str] = []
    request = Request(12, stops=["never there"], cancelled=lambda: len(shown) == 5)
    done = collect(generate(model, its, ids, request), shown.append)
    assert done.token_ids == whole.token_ids[:6]
    assert done.finish_reason == "cancelled"
    assert done.text == its.decode(done.token_ids).decode()


def pressed(at: int, where: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PRESSED, str(at), where, "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_ctrl_c_while_decoding_leaves_whole_output(trained, cli):
    arguments = ("-m", trained, "-p", "def f(", "-n", 40)
    whole = json.loads(cli("generate", *arguments, "--json").out)
    done = pressed(6, "step", *arguments)
    assert (done.returncode, done.stderr) == (130, "mlxgpt: error: aborted\n")
    assert whole["text"].startswith(done.stdout.removesuffix("\n"))
    assert 0 < len(done.stdout) < len(whole["text"])
    done = pressed(6, "step", *arguments, "--json")
    table = json.loads(done.stdout)
    assert (done.returncode, table["finish_reason"]) == (130, "cancelled")
    assert table["token_ids"] == whole["token_ids"][: len(table["token_ids"])]
    assert 5 <= len(table["token_ids"]) <= 7


def test_ctrl_c_while_a_prompt_is_computed(trained):
    done = pressed(2, "prefill", "-m", trained, "-p", "return x\n" * 20, "-n", 4)
    assert (done.returncode, done.stdout) == (130, "\n")
    assert done.stderr == "chunk\nmlxgpt: error: aborted\n"  # the second chunk was the last


class Terminal(list):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.append(text)
        return len(text)

    def flush(self) -> None:
        pass


def test_a_bar_for_a_long_prompt_at_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with prompt_bar.PromptBar() as bar:
        bar(0, 1200)
        bar(512, 1200)
        shown = "".join(stream)
        assert " 512/1200" in shown
        bar(1200, 1200)
        gone = "".join(stream)[len(shown) :]
        assert "1200/1200" not in gone
        assert gone.endswith(("\x1b[2K", "\x1b[?25h"))  # its line erased, the cursor back
        after = len(stream)
    assert len(stream) == after


def test_no_bar_for_a_short_prompt_or_no_terminal(monkeypatch, capsys):
    with prompt_bar.PromptBar() as bar:
        bar(0, 100_000)
        bar(512, 100_000)
    assert capsys.readouterr().err == ""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with prompt_bar.PromptBar() as bar:
        bar(0, 512)
    assert stream == []
