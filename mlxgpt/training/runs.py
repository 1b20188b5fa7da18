"""Runs side by side: a list of them with their best figures, and a page that draws several."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import files
from mlxgpt.errors import Error, UsageError
from mlxgpt.training import report
from mlxgpt.training.panel import clean, duration, fixed, scaled

# Okabe and Ito's colours for the colour-blind, those that stand out on paper and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Run:
    """What a run reached. `state` is running, done or stopped; losses in nats a token, `best_bpb` in bits a byte, of
    the evaluation with the lowest loss; None for what is not known."""

    path: str
    model: str
    state: str
    parameters: int | None
    step: int
    elapsed: float | None
    best_loss: float | None
    best_bpb: float | None
    best_step: int | None
    train_loss: float | None
    tokens_per_second: float | None
    mfu: float | None


def find(folder: Path) -> list[Path]:
    """The runs in `folder`, at any depth, or `folder` itself, by their path. Raises UsageError for no folder."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; name the one that your runs are in")
    return sorted(path.parents[1] for path in folder.rglob("training/metrics.jsonl"))


def describe(run: Path) -> Run:
    """The figures of the run in a folder. Raises Error where no step is recorded."""
    steps, evaluations, _ = report.read_metrics(run / "training" / "metrics.jsonl")
    recipe = report.read_table(run / "training" / "recipe.json")
    last: dict[str, Any] = steps[-1] if steps else {}
    scored = [e for e in evaluations if isinstance(e.get("val_loss"), int | float)]
    best: dict[str, Any] = min(scored, key=lambda e: e["val_loss"], default={})
    state = "running" if files.is_locked(run / files.LOCK) else "done" if last.get("progress", 0) >= 1 else "stopped"
    parameters, init = recipe.get("parameters"), recipe.get("init") or {}
    smooth = report.smooth(report.column(steps, "loss")) if steps else np.full(1, math.nan)
    return Run(
        str(run), str((recipe.get("model") or {}).get("type", "")) + (" lora" if init.get("lora") else ""), state,
        parameters if isinstance(parameters, int) else None, last.get("step", 0), last.get("elapsed"),
        best.get("val_loss"), best.get("val_bpb"), best.get("step"), _finite(smooth[-1]),
        _median(steps, "tokens_per_second"), _median(steps, "mfu"),
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _median(steps: list[report.Record], key: str) -> float | None:
    values = report.column(steps, key)
    return float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else None


def listed(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs in `folder`, the one with the fewest bits a byte first, and what is wrong with those that cannot be
    read. Raises UsageError."""
    found, wrong = [], []
    for path in find(folder):
        try:
            found.append(describe(path))
        except Error as error:
            wrong.append(str(error))
    worst = math.inf
    found.sort(key=lambda r: (r.best_bpb if r.best_bpb is not None else worst, r.best_loss or worst, r.path))
    return found, wrong


COLUMNS = {
    "run": lambda r: clean(r.path), "model": lambda r: clean(r.model), "state": lambda r: r.state,
    "parameters": lambda r: scaled(r.parameters), "steps": lambda r: f"{r.step:,}",
    "time": lambda r: duration(r.elapsed), "val_loss": lambda r: fixed(r.best_loss),
    "bits/byte": lambda r: fixed(r.best_bpb), "at step": lambda r: fixed(r.best_step, ",d"),
    "tokens/s": lambda r: scaled(r.tokens_per_second), "MFU": lambda r: fixed(r.mfu, ".0%"),
}  # fmt: skip


def as_table(runs: Sequence[Run]) -> str:
    """The runs for people, a line each."""
    rows = [list(COLUMNS), *([show(run) for show in COLUMNS.values()] for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def as_json(runs: Sequence[Run]) -> dict[str, Any]:
    """The same for programs."""
    return {"runs": [asdict(run) for run in runs]}


def compare(runs: Sequence[Path], target: Path) -> Path:
    """Draw the runs in one page at `target`, whole or not at all, and return its path. Raises Error."""
    records = [report.read_metrics(run / "training" / "metrics.jsonl")[:2] for run in runs]
    described = [describe(run) for run in runs]
    names = _names(runs)
    curves = [
        ("Validation loss, nats per token", "val_loss", "step"),
        ("Validation, bits per byte", "val_bpb", "elapsed"),
        ("Training loss, running mean, nats per token", "loss", "step"),
        ("Training loss, running mean, nats per token", "loss", "elapsed"),
        ("Learning rate", "lr", "step"),
        ("Tokens per second, running mean", "tokens_per_second", "step"),
    ]
    drawn = [_chart(title, key, over, names, records) for title, key, over in curves]
    cells = "".join(
        "<tr>" + "".join(f"<td>{report.text(c)}</td>" for c in (name, *_figures(run))) + "</tr>\n"
        for name, run in zip(names, described, strict=True)
    )
    head = "".join(f"<th>{report.text(c)}</th>" for c in COLUMNS)
    table = f'<section class="card"><table><tr>{head}</tr>\n{cells}</table></section>'
    body = f'<h2>Best figures</h2>\n{table}\n<h2>Curves</h2>\n{drawn[0]}<div class="grid">{"".join(drawn[1:])}</div>'
    title = f"{len(runs)} runs compared"
    page = report.PAGE.format(name=title, css=report.CSS, body=body)
    files.write(target, lambda partial: partial.write_text(page, encoding="utf-8"))
    return target


def _figures(run: Run) -> list[str]:
    return [show(run) for name, show in COLUMNS.items() if name != "run"]


def _names(runs: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where two runs share that."""
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


def _chart(title: str, key: str, over: str, names: Sequence[str], records: Sequence[tuple]) -> str:
    """A `<figure>` with a curve a run of `key` over steps, or over minutes of training."""
    import matplotlib
    from matplotlib.figure import Figure

    wide, of_evaluations = key == "val_loss", key.startswith("val_")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mlxgpt"})
        figure = Figure(figsize=(11, 4) if wide else (3.7, 2.6), layout="constrained")
        axes, every = figure.subplots(), []
        for i, (name, (steps, evaluations)) in enumerate(zip(names, records, strict=True)):
            rows = sorted(evaluations if of_evaluations else steps, key=lambda r: r["step"])
            x, y = report.column(rows, over), report.column(rows, key)
            known = np.isfinite(x) & np.isfinite(y)
            if not known.any():
                continue
            x, y = x[known] / (60 if over == "elapsed" else 1), y[known]
            y = y if of_evaluations or key == "lr" else report.smooth(y)
            style = STYLES[i // len(COLOURS) % len(STYLES)]
            marker = "o" if of_evaluations else ""
            line: dict[str, Any] = {
                "color": COLOURS[i % len(COLOURS)],
                "ls": style,
                "marker": marker,
                "ms": 3,
                "lw": 1.5,
            }
            axes.plot(*report.thin(x, y), label=clean(name), **line)
            every.append(y)
        report.dress(axes, "loss" if "loss" in key or "bpb" in key else key, np.concatenate([*every, np.zeros(0)]))
        axes.set_xlabel("step" if over == "step" else "minutes of training", color=report.TEXT)
        if wide and every:
            axes.legend(frameon=False, labelcolor=report.TEXT)
        caption = title + (", logarithmic" if axes.get_yscale() == "log" else "")
        kind = ' class="wide"' if wide else ""
        drawn = report.svg(figure, f"{key}-{over}", title)
    return f"<figure{kind}><figcaption>{caption}</figcaption>{drawn}</figure>\n"
