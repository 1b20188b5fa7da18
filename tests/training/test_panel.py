"""The panel: plain lines off a terminal, a live one on it (run in a real pseudo-terminal)."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mlxgpt.training import panel
from mlxgpt.training.panel import Panel, clean, duration, scaled

ROOT = Path(panel.__file__).parents[2]
PRELUDE = """
import sys
from mlxgpt.training.panel import Panel
def step(n, **more):
    return dict(kind="train", step=n, loss=2.5, lr=0.001, grad_norm=0.5, tokens=n * 4096, elapsed=n * 2.0,
                tokens_per_second=45231.4, memory_bytes=1_230_000_000, progress=n / 100) | more
def score(n, val_loss, best=True, sample="def f():\\n    return 1\\n"):
    return dict(kind="evaluation", step=n, val_loss=val_loss, val_bpb=val_loss / 2, elapsed=1.0,
                sample=sample, best=best)
"""
names: dict = {}
exec(PRELUDE, names)
step, score = names["step"], names["score"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told: clock[0] is the time."""
    now = [100.0]
    monkeypatch.setattr(panel, "monotonic", lambda: now[0])
    return now


def test_a_terminal_that_is_gone_is_no_error(clock):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "step 2" in text:
                raise OSError(5, "Input/output error")
            return super().write(text)

    stream = Gone()
    with Panel("run", stream) as shown:
        for n in range(1, 5):
            clock[0] += 100
            shown.train(step(n))
        shown.evaluation(score(4, 2.0))
    assert [line[:6] for line in lines(stream)] == ["run", "step 1"]


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def run_in_terminal(body: str, width: int = 80, height: int = 40, stdout=None, **variables: str) -> tuple[str, int]:
    """What a script using Panel writes to a terminal of that size, and its exit status."""
    drop = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    env = {k: v for k, v in os.environ.items() if k not in drop} | {"TERM": "xterm-256color"} | variables
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + body],
        cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, stdin=theirs, stdout=stdout or theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    chunks = []
    with contextlib.suppress(OSError):  # the way Linux says that the other end is closed
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    os.close(ours)
    return b"".join(chunks).decode(), process.wait(20)


def screen(output: str) -> list[str]:
    """The lines a terminal shows after `output`: enough of a terminal for what rich sends."""
    rows, y, x = [""], 0, 0
    for code, text in re.findall(r"(\x1b\[[?0-9;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", output):
        if text:
            rows[y] = rows[y][:x].ljust(x) + text + rows[y][x + len(text) :]
            x += len(text)
        elif code == "\r":
            x = 0
        elif code == "\n":
            y += 1
            rows += [""] * (y + 1 - len(rows))
        elif code.endswith("A"):
            y -= int(code[2:-1] or 1)
            assert y >= 0, "the cursor left the screen"
        elif code.endswith("K"):
            rows[y] = ""
        else:
            assert code[-1] in "mhl", f"this terminal does not know {code!r}"
    return [row.rstrip() for row in rows]


def test_plain_lines_tell_every_number():
    stream = io.StringIO()
    with Panel("speedrun", stream) as view:
        view.note("corpus: 640 files")
        view.train(step(1))
        view.evaluation(score(1, 2.25))
        view.evaluation(score(2, 2.5, best=False, sample=""))
    title, note, train, first, code, rest, second = lines(stream)
    assert (title, note) == ("speedrun", "corpus: 640 files")
    for part in ("step 1 ", "1%", "loss 2.5000", "lr 1.00e-03", "45,231 tokens/s", "1.23 GB", "elapsed 2 s"):
        assert part in train
    assert first == "step 1  val_loss 2.2500  val_bpb 1.1250, best"
    assert (code, rest) == ("    def f():", "        return 1")
    assert second == "step 2  val_loss 2.5000  val_bpb 1.2500"


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    with Panel("t", stream) as view:
        for n, seconds in enumerate((0, 1, 9.9, 10, 10.1, 19.9, 20, 21), 1):
            clock[0] = 100 + seconds
            view.train(step(n))
    assert [line.split()[1] for line in lines(stream)[1:]] == ["1", "4", "7", "8"]


def test_a_step_comes_before_its_evaluation_and_needs_no_validation_split(clock):
    stream = io.StringIO()
    with Panel("t", stream) as view:
        for n in (1, 2):
            view.train(step(n))
        view.evaluation(score(2, 1.0, sample="") | {"val_loss": None, "val_bpb": None})
    assert [line.split("  ")[0] for line in lines(stream)[1:]] == ["step 1", "step 2", "step 2"]
    assert lines(stream)[-1] == "step 2  val_loss –  val_bpb –, best"


def test_the_last_line_is_not_repeated(clock):
    stream = io.StringIO()
    with Panel("t", stream) as view:
        view.train(step(1))
    assert len(lines(stream)) == 2


def test_plain_lines_need_no_rich(tmp_path):
    body = 'with Panel("t") as p:\n p.note("n"); p.train(step(1)); p.evaluation(score(1, 2.0))\n'
    code = PRELUDE + body + "assert not [m for m in sys.modules if m.split('.')[0] == 'rich']"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "val_loss 2.0000" in done.stderr
    assert done.stdout == ""


def test_the_loss_is_smoothed_and_survives_one_that_is_not_a_number(clock):
    stream = io.StringIO()
    with Panel("t", stream) as view:
        for n, loss in enumerate((2.0, 3.0, float("nan"), 2.0), 1):
            clock[0] += 10
            view.train(step(n, loss=loss))
    shown = [re.search(r" loss (\S+)", line)[1] for line in lines(stream)[1:]]
    assert shown[:3] == ["2.0000", "2.5263", "nan"]  # 2.5263 = (0.9 * 2 + 3) / 1.9
    assert 2.0 < float(shown[3]) < 2.5263


def test_the_eta_counts_from_where_this_run_started(clock):
    stream = io.StringIO()
    with Panel("t", stream) as view:
        for progress, elapsed in ((0.5, 1000.0), (0.6, 1010.0), (1.0, 1050.0)):
            clock[0] += 10
            view.train(step(1, progress=progress, elapsed=elapsed))
    assert [line.rsplit("  ", 1)[1] for line in lines(stream)[1:]] == ["ETA –", "ETA 40 s", "done"]


def test_a_sample_cannot_steer_the_terminal():
    stream = io.StringIO()
    with Panel("t\x1b]0;x\x07", stream) as view:
        view.evaluation(score(1, 2.0, sample="a\x1b[2Jb\rc\x9bd\u202ee\ud800\tf\u2028g"))
        view.note("file\x1b[31m.py")
    text = stream.getvalue()
    assert not set("\x1b\r\x07\x9b\u202e\ud800\u2028") & set(text)
    assert "a␛[2Jb␍c�d�e�" in text


def test_a_stream_that_is_ascii_only_is_served():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Panel("größe", stream) as view:
        view.train(step(1))
    assert b"gr\\xf6\\xdfe\n" in raw.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (11_220, "3 h 07 min"), (None, "–")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "", "0"), (999, "", "999"), (999.7, "", "1k"), (45_231, "", "45.2k"), (10_900_000, "B", "10.9 MB"),
     (2e15, "B", "2e+03 TB"), (float("nan"), "", "–")],
)  # fmt: skip
def test_scaled_numbers(value, unit, text):
    assert scaled(value, unit) == text


def test_clean_keeps_text():
    text = "naïve 日本 😀\n    x[0] = 'y'\n"
    assert clean(text) == text
    assert clean("a\r\n\tb") == "a\n    b"


LIVE = """
with Panel("run [bold]one[/bold]") as p:
    p.note("corpus: [red]640[/red] files")
    for n in range(1, 61):
        p.train(step(n))
        if n == 20: print("stray stdout")
        if n == 30: print("stray stderr", file=sys.stderr)
        if n == 25: p.evaluation(score(n, 2.25))
        if n == 50:
            sample = "x[red]y[/red] = \\x1b[2J" + "z" * 500 + "\\n" * 99
            p.evaluation(score(n, 2.3125, best=False, sample=sample))
print("after")
"""


@pytest.mark.parametrize("width", [60, 120])
def test_the_live_panel_shows_the_numbers_and_garbles_nothing(width):
    output, status = run_in_terminal(LIVE, width)
    assert status == 0
    rows = screen(output)
    top = next(i for i, row in enumerate(rows) if row.startswith("╭"))
    bottom = next(i for i, row in enumerate(rows) if row.startswith("╰"))
    assert rows[:top] == [
        "corpus: [red]640[/red] files",
        "stray stdout",
        "step 25  val_loss 2.2500  val_bpb 1.1250, best",
        "stray stderr",
        "step 50  val_loss 2.3125  val_bpb 1.1562",
    ]
    assert [row for row in rows[bottom + 1 :] if row] == ["after"]
    assert {len(row) for row in rows[top : bottom + 1]} == {width}
    box = " ".join(" ".join(rows[top : bottom + 1]).split())
    for part in (
        "run [bold]one[/bold]", "60%", "ETA 1 min 20 s", "loss 2.5000", "val loss 2.3125 best 2.2500",
        "bits/byte 1.1562 best 1.1250", "step 60", "lr 1.00e-03", "tokens 246k", "tokens/s 45,231",
        "elapsed 2 min 00 s", "memory 1.23 GB", "sample at step 50", "x[red]y[/red] = ␛[2Jzzz",
    ):  # fmt: skip
        assert part in box
    assert sum("z" in row for row in rows) == 1, "a long line of a sample is cut, not wrapped"
    assert "\x1b[2J" not in output


def test_the_live_panel_fits_a_low_terminal():
    body = 'with Panel("t") as p:\n for n in range(9): p.evaluation(score(n, 2.0, sample="line\\n" * 50))'
    rows = screen(run_in_terminal(body, 80, height=16)[0])
    top, bottom = (next(i for i, row in enumerate(rows) if row.startswith(c)) for c in "╭╰")
    assert 10 < bottom - top + 1 < 16
    assert sum(row.startswith("╭") for row in rows) == 1


def test_the_live_panel_redraws_four_times_a_second():
    body = """
import mlxgpt.training.panel as module
now = [0.0]
module.monotonic = lambda: now[0]
with Panel("t") as p:
    for n in range(1, 1001):
        now[0] += 0.01
        p.train(step(n))
"""
    output, _ = run_in_terminal(body)
    assert 40 <= output.count("╭") <= 43  # ten seconds, and the end


def test_an_exception_gives_back_the_cursor_and_the_streams():
    body = """
try:
    with Panel("t") as p:
        p.train(step(1)); p.train(step(7))
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    print("interrupted")
"""
    output, status = run_in_terminal(body)
    assert status == 0
    assert output.index("\x1b[?25l") < output.rindex("\x1b[?25h") < output.index("interrupted")
    assert output.rindex("\x1b[?25l") < output.rindex("\x1b[?25h")
    assert "step      7" in "\n".join(screen(output)), "the last step is drawn"


def test_standard_output_in_a_file_stays_in_the_file(tmp_path):
    body = 'with Panel("t") as p:\n p.train(step(1)); p.note("file\\x1b[2J.py"); print("result")'
    with open(tmp_path / "out", "w") as out:
        output, _ = run_in_terminal(body, stdout=out)
    assert (tmp_path / "out").read_text() == "result\n"
    assert "result" not in output
    assert "file␛[2J.py" in output


def test_colours_stay_away_when_asked():
    colour = re.compile(r"\x1b\[[0-9;]*3[0-8]")
    assert colour.search(run_in_terminal(LIVE)[0])
    assert not colour.search(run_in_terminal(LIVE, NO_COLOR="1")[0])


def test_a_dumb_terminal_gets_lines():
    output, _ = run_in_terminal('with Panel("t") as p:\n p.train(step(1)); p.evaluation(score(1, 2.0))', TERM="dumb")
    assert not set("\x1b╭") & set(output)
    assert "step 1  val_loss 2.0000  val_bpb 1.0000, best" in output
