"""What a person sees while a model trains: a live panel on a terminal, plain lines anywhere else."""

import math
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TextIO

from mlxgpt.training.plots import History, braille

Record = dict[str, Any]
REDRAW, LINE = 0.25, 10.0  # seconds between redraws of the panel, and between plain lines
PLOT = 4  # lines of a curve
WIDEST = 120  # columns: numbers spread further than this are harder to read, not easier
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, bidirectional overrides, lone surrogates, separators


def clean(text: str) -> str:
    """`text` with nothing in it that could steer a terminal: newlines stay, other controls become glyphs."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    harmful = {c for c in set(text) - {"\n"} if unicodedata.category(c) in INVISIBLE}
    return text.translate({ord(c): 0x2400 + ord(c) if ord(c) < 32 else 0xFFFD for c in harmful})


def duration(seconds: float | None) -> str:
    """8 s, 2 min 05 s, 3 h 07 min; a dash where there is nothing to tell."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix: 10.9 MB, 45.2k."""
    if value is None or not math.isfinite(value):
        return "–"
    prefixes = ["", "k", "M", "G", "T"]
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    return f"{value:.3g}{' ' if unit else ''}{prefixes[0]}{unit}"


def fixed(value: float | None, spec: str = ".4f") -> str:
    """A number in format `spec`, or a dash."""
    return "–" if value is None else format(value, spec)


class Panel:
    """Shows records of the training loop, as it writes them to metrics.jsonl. A context manager.

    A terminal gets a panel that redraws in place, with notes and evaluations printed above it; a file or a
    pipe gets lines, and then rich is not even imported.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title = clean(title)
        self._stream = sys.stderr if stream is None else stream
        self._console: Any = None
        self._live: Any = None
        self._gone = False  # the terminal or the pipe
        self._record: Record = {}  # the last step,
        self._shown, self._due = True, -math.inf  # whether it has been drawn, and when the next may be
        self._start = (0.0, 0.0)  # progress and elapsed at the first step, from which the ETA reckons
        self._loss, self._sum, self._weight = math.nan, 0.0, 0.0
        self._losses, self._rates = History(), History()
        self._last: Record = {}  # evaluations
        self._best: Record = {}
        if self._stream.isatty():
            from rich.console import Console

            console = Console(file=self._stream, markup=False, highlight=False, emoji=False)
            self._console = console if console.is_interactive else None  # TERM=dumb cannot move its cursor

    def __enter__(self) -> "Panel":
        if self._console is None:
            self._line(self.title)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()  # draws once more, and gives back the cursor and sys.stdout
        elif not self._shown:
            self._line(self._plain())

    def note(self, text: str) -> None:
        """Print a line of its own, above the panel."""
        if self._console is not None:
            self._show(lambda: self._console.print(clean(text)))
        else:
            self._line(clean(text))

    def train(self, record: Record) -> None:
        """Take in one step; draw it if the last drawing is long enough ago."""
        if not self._record:
            self._start = (record["progress"], record["elapsed"])
        self._record, self._shown, self._loss = record, False, record["loss"]
        self._rates.add(record["lr"])
        if math.isfinite(self._loss):  # a loss that is not a number is shown, but not remembered
            self._sum, self._weight = 0.9 * self._sum + self._loss, 0.9 * self._weight + 1
            self._loss = self._sum / self._weight  # the mean of about the last ten
            self._losses.add(self._loss)
        if monotonic() >= self._due:
            self._draw()

    def evaluation(self, record: Record) -> None:
        """Take in one evaluation and show it at once, after the step it belongs to."""
        if self._console is None and not self._shown:
            self._draw()
        self._last = record
        if record["best"]:
            self._best = record
        numbers = f"val_loss {fixed(record['val_loss'])}  val_bpb {fixed(record.get('val_bpb'))}"
        self.note(f"step {record['step']:,}  {numbers}{', best' if self._best is record else ''}")
        if self._console is not None:
            self._draw()
        elif record.get("sample"):
            self._line("\n".join(f"    {line}" for line in clean(record["sample"]).rstrip("\n").split("\n")))

    def _progress(self) -> float:
        return self._record.get("progress", 0.0)

    def _eta(self) -> str:
        """The time left at the pace since the first step, which leaves out what was done before a resume."""
        done, rest = self._progress() - self._start[0], 1 - self._progress()
        if rest <= 0:
            return "done"
        left = (self._record["elapsed"] - self._start[1]) / done * rest if done > 0 else None
        return f"ETA {duration(left)}"

    def _facts(self) -> dict[str, str]:
        record = self._record
        return {
            "loss": fixed(self._loss if record else None),
            "val loss": self._now_and_best("val_loss"),
            "bits/byte": self._now_and_best("val_bpb"),
            "step": fixed(record.get("step"), ",d"),
            "lr": fixed(record.get("lr"), ".2e"),
            "tokens": scaled(record.get("tokens")),
            "tokens/s": fixed(record.get("tokens_per_second"), ",.0f"),
            "elapsed": duration(record.get("elapsed")),
            "memory": scaled(record.get("memory_bytes"), "B"),
            "MFU": fixed(record.get("mfu"), ".0%"),
        }

    def _now_and_best(self, key: str) -> str:
        best = "best" if self._best is self._last else f"best {fixed(self._best.get(key))}"
        return fixed(self._last.get(key)) + (f"  {best}" if self._best else "")

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw, while there is where to: that nobody looks is no end of a run, whose metrics.jsonl says it all."""
        if self._gone:
            return
        try:
            draw()
        except OSError:
            self._gone = True

    def _line(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"

        def draw() -> None:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()

        self._show(draw)

    def _draw(self) -> None:
        self._shown, self._due = True, monotonic() + (LINE if self._console is None else REDRAW)
        if self._console is None:
            self._line(self._plain())
        else:
            self._show(self._refresh)

    def _refresh(self) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                console=self._console, get_renderable=self._render, auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
            )  # fmt: skip
            self._live.start()
        self._live.refresh()

    def _plain(self) -> str:
        facts = self._facts()
        return (
            f"step {facts['step']}  {self._progress():.0%}  loss {facts['loss']}  lr {facts['lr']}  "
            f"{facts['tokens/s']} tokens/s  {facts['memory']}  elapsed {facts['elapsed']}  {self._eta()}"
        )

    def _render(self) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width, facts = min(self._console.width, WIDEST), list(self._facts().items())
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        share = self._progress()
        line = ProgressBar(total=1.0, completed=share, complete_style="cyan", finished_style="green")
        bar.add_row(line, Text(f"{share:4.0%}", "bold"), Text(self._eta()))
        columns = 3 if width >= 100 else 2
        rows = math.ceil(len(facts) / columns)  # the facts run down the columns
        grid = Table.grid(expand=True, padding=(0, 1))
        for column in range(columns):
            grid.add_column(no_wrap=True, style="dim")
            grid.add_column(no_wrap=True, ratio=2 if column else 3)  # the first has the last and the best
        for row in range(rows):
            grid.add_row(*(cell for fact in facts[row::rows] for cell in fact))
        parts: list[Any] = [bar, Text(), grid]
        room = self._console.height - rows - 8
        if room >= PLOT + 2 and len(self._losses.points) > 1:
            parts += [Text(), self._plots(width - 4)]
            room -= PLOT + 2
        lines = [line for line in clean(self._last.get("sample") or "").split("\n") if line.strip()]
        lines = lines[: max(0, min(10, room))]
        if lines:
            parts += [Text(), Text(f"sample at step {self._last['step']:,}", "dim")]
            parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
        title = Text(self.title, "bold")
        return Panel(Group(*parts), title=title, title_align="left", border_style="dim", width=width)

    def _plots(self, width: int) -> Any:
        """The curves of the loss and the rate, side by side, each under its lowest and highest value."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(expand=True, padding=(0, 1))
        each = width // 2 - 2
        heads, curves = [], []
        for name, history, spec in (("loss", self._losses, ".3f"), ("lr", self._rates, ".1e")):
            grid.add_column(no_wrap=True, ratio=1)
            low, high = min(history.points), max(history.points)
            heads.append(Text(f"{name}  {fixed(low, spec)} to {fixed(high, spec)}", "dim"))
            curves.append(Text("\n".join(braille(history.points, each, PLOT)), "cyan"))
        grid.add_row(*heads)
        grid.add_row(*curves)
        return grid
