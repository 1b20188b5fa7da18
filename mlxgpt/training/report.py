"""`report.html`: one self-contained page about a run, from the files the run wrote. No script, no network."""

import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxgpt import files
from mlxgpt.errors import Error
from mlxgpt.training.panel import clean, duration, fixed, scaled

Record = dict[str, Any]
BINS = 400  # of a curve, about one a pixel or two; of each, the lowest and the highest value are drawn

# matplotlib knows no CSS variables: draw in these colours, then put the variable in their place.
INKS = {"#010101": "currentColor", "#020202": "var(--grid)", "#030303": "var(--one)", "#040404": "var(--two)"}
TEXT, GRID, ONE, TWO = INKS
CHARTS = {"lr": "Learning rate", "grad_norm": "Gradient norm", "tokens_per_second": "Tokens per second"}

CSS = """
:root { color-scheme: light dark; --paper: #f7f6f3; --card: #fff; --ink: #24272c; --soft: #676d76;
  --grid: #e3e1dc; --one: #2f6fb3; --two: #c8641b; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1d2024; --ink: #dfe2e6;
  --soft: #989fa9; --grid: #33373d; --one: #6fa8e0; --two: #eb9a5b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem); max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 1.8rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .7rem; font-size: 1.15rem; }
h3 { margin: 0 0 .3rem; font-size: .9rem; }
p, figcaption, dt, dd small, th { color: var(--soft); }
p { margin: .2rem 0 0; }
dl, .grid { display: grid; gap: .8rem; }
dl { margin: 1.5rem 0 0; grid-template-columns: repeat(2, 1fr); }
@media (min-width: 48rem) { dl { grid-template-columns: repeat(4, 1fr); } }
.grid { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
dl > div, figure, .card, details { background: var(--card); border: 1px solid var(--grid); margin: 0;
  border-radius: 8px; padding: .7rem 1rem; }
dt, figcaption { font-size: .85rem; }
dd { margin: 0; font-size: 1.4rem; line-height: 1.3; }
dd small { display: block; font-size: .8rem; }
.wide { overflow-x: auto; margin-bottom: .8rem; }
svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
.wide svg { min-width: 40rem; }
.grid svg { max-width: 28rem; }
.tables { columns: 19rem; column-gap: .8rem; }
.card { break-inside: avoid; margin-bottom: .8rem; }
table { width: 100%; border-spacing: 0; font-size: .9rem; }
th { font-weight: normal; text-align: left; padding-right: 1.2rem; vertical-align: top; white-space: nowrap; }
td { overflow-wrap: anywhere; text-align: right; }
details { margin-bottom: .5rem; }
summary { cursor: pointer; font-size: .95rem; }
pre { margin: .6rem 0 .2rem; font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{name} · mlxgpt</title>
<style>{css}</style>
</head>
<body>
<h1>{name}</h1>
<p>mlxgpt training report</p>
{body}
</body>
</html>
"""


def write_report(run: Path) -> Path:
    """Write `run/report.html` whole or not at all, and return its path. Raises Error."""
    target, page = run / "report.html", _page(run)
    files.write(target, lambda partial: partial.write_text(page, encoding="utf-8"))
    return target


def read_metrics(path: Path) -> tuple[list[Record], list[Record], int]:
    """Steps and evaluations in the order written, and the number of lines that could not be read.

    A resumed run repeats steps: the later record of a step counts. A killed one ends in half a line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise Error(f"{path}: no metrics to report on ({error.strerror}); has the run trained yet?") from None
    kinds: dict[str, dict[int, Record]] = {"train": {}, "evaluation": {}}
    unreadable = 0
    for line in filter(bytes.strip, lines):
        try:
            record = json.loads(line)
            records, step = kinds[record["kind"]], int(record["step"])
        except (ValueError, KeyError, TypeError):
            unreadable += 1
            continue
        records.pop(step, None)
        records[step] = record
    steps, evaluations = list(kinds["train"].values()), list(kinds["evaluation"].values())
    if not steps and not evaluations:
        raise Error(f"{path}: no step is recorded in it; train the run before reporting on it")
    return steps, evaluations, unreadable


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none: the report then says less."""
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def column(records: Sequence[Record], key: str) -> np.ndarray:
    """Values of `key`; nan where there is none, or one that no curve can show."""
    y = np.array([v if isinstance(v := r.get(key), int | float) else math.nan for r in records], dtype=float)
    return np.where(np.isfinite(y), y, math.nan)


def smooth(y: np.ndarray) -> np.ndarray:
    """Running mean over about a fiftieth of the curve, with a gap where the curve has one."""
    known, window = np.isfinite(y), np.ones(len(y) // 50 + 1)
    weight, total = (np.convolve(v, window, "same") for v in (known, np.where(known, y, 0)))
    return np.where(known, total / np.maximum(weight, 1), math.nan)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve with no more than the lowest and the highest value of every bin, so that spikes survive."""
    if len(y) <= 2 * BINS:
        return x, y
    bins = np.array_split(np.arange(len(y)), BINS)
    low = [b[np.argmin(np.where(np.isfinite(y[b]), y[b], np.inf))] for b in bins]
    high = [b[np.argmax(np.where(np.isfinite(y[b]), y[b], -np.inf))] for b in bins]
    keep = np.unique([0, *low, *high, len(y) - 1])
    return x[keep], y[keep]


def _charts(steps: list[Record], evaluations: list[Record]) -> str:
    """All curves, the loss above the others."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own matplotlibrc may ask for TeX or another style
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mlxgpt"})
        loss = _chart("Loss, nats per token", "loss", steps, evaluations)
        rest = "".join(_chart(title, key, steps) for key, title in CHARTS.items()) if steps else ""
    return f'{loss}<div class="grid">{rest}</div>'


def _chart(title: str, key: str, steps: list[Record], evaluations: Sequence[Record] = ()) -> str:
    """A `<figure>` with the curve of `key`: every step faint, the running mean, evaluations as points."""
    from matplotlib.figure import Figure

    wide = key == "loss"
    figure = Figure(figsize=(11, 4) if wide else (3.7, 2.4), layout="constrained")
    axes, x, y = figure.subplots(), column(steps, "step"), column(steps, key)
    line: dict[str, Any] = {"color": ONE, "marker": "o" if np.isfinite(y).sum() == 1 else ""}
    if key == "lr":
        axes.plot(*thin(x, y), lw=1.5, **line)
    elif steps:
        axes.plot(*thin(x, y), lw=0.7, alpha=0.35, label="training, every step", **line)
        axes.plot(*thin(x, smooth(y)), color=ONE, lw=1.6, label="training, running mean")
    if evaluations:
        at, values = column(evaluations, "step"), column(evaluations, "val_loss")
        axes.plot(at, values, "o-", color=TWO, ms=4, lw=1, label="validation")
        best = values == np.nanmin(values, initial=math.inf)
        axes.plot(at[best], values[best], "o", color=TWO, ms=9, fillstyle="none", label="validation, best")
        y = np.concatenate([y, values])
    dress(axes, key, y[np.isfinite(y)])
    if wide:
        axes.legend(frameon=False, labelcolor=TEXT)
    caption = title + (", logarithmic" if axes.get_yscale() == "log" else "")
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{caption}</figcaption>{svg(figure, key, title)}</figure>\n"


def dress(axes: Any, key: str, values: np.ndarray) -> None:
    """Axes without a frame, in the page's colours; losses and norms that span much are logarithmic."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(6))
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    if key in ("loss", "grad_norm") and 0 < 2 * low < high:
        subs = (1, 1.5, 2, 3, 4, 6) if high < 20 * low else (1, 2, 5) if high < 200 * low else (1,)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=subs) if high > 3 * low else MaxNLocator(6))
        axes.yaxis.set_minor_locator(NullLocator())
    rate = key == "tokens_per_second"
    axes.yaxis.set_major_formatter(EngFormatter(sep="") if rate else FuncFormatter(lambda v, _: f"{v:.4g}"))
    axes.set_ylim(bottom=0 if rate else None)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v == round(v) else ""))
    axes.set_xlabel("step", color=TEXT)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.tick_params(colors=TEXT, length=0)
    axes.spines[:].set_visible(False)


def svg(figure: Any, name: str, title: str) -> str:
    """The figure's `<svg>`, to be sized, lettered and coloured by the page, its ids its own."""
    figure.savefig(out := io.StringIO(), format="svg", transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>|font-family: [^;]*; ", "", out.getvalue(), flags=re.DOTALL)
    head, body = svg.split("<svg", 1)[1].split(">", 1)
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r'(id="|"#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d)\d+", r"\1", d[0]).replace("\n", ""), body)
    body = re.sub("|".join(INKS), lambda ink: INKS[ink[0]], body)
    return f'<svg {box} role="img" aria-label="{title}">{body}'


def text(value: Any) -> str:
    """A value as text of the page."""
    return html.escape(clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))


def _table(title: str, rows: dict[str, Any]) -> str:
    cells = "".join(f"<tr><th>{text(k)}</th><td>{text('–' if v == '' else v)}</td></tr>\n" for k, v in rows.items())
    return f'<section class="card"><h3>{text(title)}</h3><table>{cells}</table></section>\n' if rows else ""


def _data_rows(data: dict[str, Any]) -> dict[str, Any]:
    """What the manifest tells about the corpus, as rows of a table; any part of it may be missing."""
    rows: dict[str, Any] = {k: data[k] for k in ("documents", "bytes") if k in data}
    for section, label in (("tokens", "{} tokens"), ("skipped", "skipped: {}")):
        part = data.get(section)
        rows |= {label.format(k): v for k, v in part.items()} if isinstance(part, dict) else {}
    return {k: f"{v:,}" if isinstance(v, int) else v for k, v in rows.items()}


def _tiles(steps: list[Record], evaluations: list[Record], parameters: Any) -> str:
    """The run in a few numbers."""
    tiles: list[tuple[str, str, str]] = []
    scores = column(evaluations, "val_loss")
    if np.isfinite(scores).any():
        best = evaluations[int(np.nanargmin(scores))]
        tiles += [
            ("Best validation loss", fixed(best["val_loss"]), f"nats per token, step {best['step']:,}"),
            ("Bits per byte", fixed(best.get("val_bpb")), f"validation, step {best['step']:,}"),
        ]
    if steps:
        last, loss = steps[-1], smooth(column(steps, "loss"))[-1]
        rates, memory, mfu = (column(steps, key) for key in ("tokens_per_second", "memory_bytes", "mfu"))
        rate = np.median(rates[np.isfinite(rates)]) if np.isfinite(rates).any() else None
        tiles += [
            ("Training loss", fixed(loss), "nats per token, last steps"),
            ("Steps", f"{last['step']:,}", f"{scaled(last.get('tokens'))} tokens"),
            ("Time", duration(last.get("elapsed")), "elapsed"),
            ("Speed", scaled(rate), "tokens per second, median"),
            *([("MFU", f"{np.nanmedian(mfu):.0%}", "of the measured peak, median")] if np.isfinite(mfu).any() else []),
            ("Memory", scaled(np.nanmax(memory, initial=0) or None, "B"), "at its peak"),
        ]
    if isinstance(parameters, int):
        tiles.append(("Parameters", scaled(parameters), f"{parameters:,}"))
    cells = "".join(f"<div><dt>{k}</dt><dd>{v}<small>{note}</small></dd></div>\n" for k, v, note in tiles)
    return f"<dl>{cells}</dl>"


def _sample(record: Record, newest: bool) -> str:
    scores = f"loss {fixed(record.get('val_loss'))}, {fixed(record.get('val_bpb'))} bits per byte"
    best = " · best so far" if record.get("best") else ""
    return (
        f"<details{' open' if newest else ''}><summary>step {record['step']:,} · {scores}{best}</summary>"
        f"<pre>{text(record['sample'])}</pre></details>\n"
    )


def _page(run: Path) -> str:
    steps, evaluations, unreadable = read_metrics(run / "training" / "metrics.jsonl")
    recipe, data = (read_table(run / "training" / f"{name}.json") for name in ("recipe", "data"))
    tiles = _tiles(steps, evaluations, recipe.get("parameters"))  # before sorting: the last step written
    steps, evaluations = (sorted(records, key=lambda r: r["step"]) for records in (steps, evaluations))
    tables = "".join(_table(k, v) for k, v in recipe.items() if isinstance(v, dict))
    tables += _table("corpus", _data_rows(data))
    samples = [e for e in reversed(evaluations) if e.get("sample")]
    shown = "".join(_sample(e, newest=e is samples[0]) for e in samples)
    parts = [
        f"{tiles}\n<h2>Curves</h2>\n{_charts(steps, evaluations)}",
        f"<h2>Samples</h2>\n{shown}" if shown else "",
        f'<h2>Configuration and data</h2>\n<div class="tables">{tables}</div>' if tables else "",
        f"<p>Lines of metrics.jsonl that could not be read: {unreadable}.</p>" if unreadable else "",
    ]
    return PAGE.format(name=text(run.resolve().name), css=CSS, body="\n".join(filter(None, parts)))
