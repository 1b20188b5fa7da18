"""The report: what a run wrote, on one page that loads nothing and runs nothing."""

import json
import math
import os
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mlxgpt.errors import Error, UsageError
from mlxgpt.training.report import smooth, thin, write_report

SAMPLE = 'if a < b && c > "d":\n\t<script>alert(1)</script></pre>\x00\ud800 {x} &amp;'


def step(n: int, **more) -> dict:
    return {
        "kind": "train", "step": n, "loss": 2 + 3 / n, "lr": 1e-3, "grad_norm": 0.5, "tokens": n * 4096,
        "elapsed": n * 2.0, "tokens_per_second": 45231.4, "memory_bytes": 1_900_000_000, "progress": n / 100,
    } | more  # fmt: skip


def score(n: int, val_loss: float, **more) -> dict:
    record = {"kind": "evaluation", "step": n, "val_loss": val_loss, "val_bpb": val_loss / 2, "elapsed": 1.0}
    return record | {"sample": SAMPLE, "best": True} | more


def make_run(run: Path, records: list[dict], tail: str = "", **tables) -> Path:
    (run / "training").mkdir(parents=True)
    (run / "training" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + tail)
    for name, table in tables.items():
        (run / "training" / f"{name}.json").write_text(json.dumps(table))
    return run


class Page(HTMLParser):
    """Reads a page whole: refuses tags left open, and keeps tags, attributes and the text of some of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.texts[tag][-1] += data

    def tiles(self) -> dict[str, str]:
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))


def report(run: Path) -> tuple[str, Page]:
    path = write_report(run)
    assert path == run / "report.html"
    assert [p.name for p in run.iterdir() if p.name != "training"] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    records = []
    for n in range(1, 101):
        records.append(step(n))
        if n % 25 == 0:
            records.append(score(n, 2.5 if n == 75 else 3.0 - n / 1000, best=n == 75, sample=f"{n}\n{SAMPLE}"))
    recipe = {"model": {"type": "gpt2", "n_layer": 6}, "tokenizer": {"path": ""}, "train": {"minutes": 0.5},
              "parameters": 10_812_416}  # fmt: skip
    data = {
        "documents": 640,
        "bytes": 10_912_345,
        "tokens": {"train": 3_012_345},
        "skipped": {"too <big>": 3},
    }
    return report(make_run(tmp_path_factory.mktemp("runs") / "a <b> & c", records, recipe=recipe, data=data))


def test_the_summary_tells_the_run(whole):
    _, page = whole
    assert page.texts["h1"] == ["a <b> & c"]
    assert page.texts["title"] == ["a <b> & c · mlxgpt"]
    assert page.tiles() == {
        "Best validation loss": "2.5000nats per token, step 75", "Bits per byte": "1.2500validation, step 75",
        "Training loss": "2.0302nats per token, last steps", "Steps": "100410k tokens",
        "Time": "3 min 20 selapsed", "Speed": "45.2ktokens per second, median", "Memory": "1.9 GBat its peak",
        "Parameters": "10.8M10,812,416",
    }  # fmt: skip


def test_tables_tell_the_configuration_and_the_corpus(whole):
    _, page = whole
    assert dict(zip(page.texts["th"], page.texts["td"], strict=True)) == {
        "type": "gpt2", "n_layer": "6", "path": "–", "minutes": "0.5",
        "documents": "640", "bytes": "10,912,345", "train tokens": "3,012,345", "skipped: too <big>": "3",
    }  # fmt: skip


def test_samples_are_text_newest_first(whole):
    text, page = whole
    expected = SAMPLE.replace("\t", "    ").replace("\0", "␀").replace("\ud800", "�")
    assert page.texts["pre"] == [f"{n}\n{expected}" for n in (100, 75, 50, 25)]
    assert "<script" not in text
    assert [s.split(" · ")[0] for s in page.texts["summary"]] == [f"step {n}" for n in (100, 75, 50, 25)]
    assert [s.endswith("best so far") for s in page.texts["summary"]] == [False, True, False, False]
    assert [attrs for tag, attrs in page.tags if tag == "details"] == [{"open": None}, {}, {}, {}]


def test_the_page_loads_nothing(whole):
    text, page = whole
    assert "default-src 'none'" in text
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(attrs)
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("href", attrs.get("xlink:href", "#")).startswith("#")
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert re.findall(r"https?://[^\"]*", text) == []


def test_curves_follow_the_page(whole):
    text, page = whole
    assert page.texts["figcaption"] == ["Loss, nats per token, logarithmic", "Learning rate", "Gradient norm",
                                        "Tokens per second"]  # fmt: skip
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svgs) == 4
    assert not re.findall(r"#[0-9a-f]{6}|font-family", "".join(svgs)), "a colour that one of the schemes cannot show"
    assert "stroke: var(--two)" in svgs[0]
    assert all("stroke: var(--one)" in svg and "fill: currentColor" in svg for svg in svgs)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert ">0.001<" in svgs[1], "tick labels keep their digits"


def test_matplotlib_is_left_as_it_was(tmp_path):
    import matplotlib

    pyplot = "matplotlib.pyplot" in sys.modules
    own = {"text.usetex": True, "svg.fonttype": "path", "font.size": 33.0}  # TeX is not there: it would fail
    with matplotlib.rc_context(own):
        text, _ = report(make_run(tmp_path / "run", [step(1), step(2)]))
        assert {key: matplotlib.rcParams[key] for key in own} == own
    assert "33px" not in text
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


@pytest.mark.parametrize(
    "records",
    [
        [step(1)],
        [score(0, 8.0)],
        [step(1), step(2), score(2, 3.0)],
        [step(1), step(2, loss=math.nan, grad_norm=math.inf)],
        [step(1, loss=math.nan, memory_bytes=None), score(1, math.nan, sample="")],
        [step(n, loss=0.0, grad_norm=0.0, tokens_per_second=0.0) for n in (1, 2, 3)],
        [step(n, loss=1 - n / 10, grad_norm=10.0 ** (n - 5)) for n in range(1, 20)],
        [{"kind": "train", "step": 1}, {"kind": "evaluation", "step": 1}],
    ],
)
def test_short_and_broken_runs_have_a_report(tmp_path, records):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, page = report(make_run(tmp_path / "run", records))
    assert len(page.texts["svg"]) == (4 if records[0]["kind"] == "train" else 1)
    assert ("Best validation loss" in page.tiles()) == any(r.get("val_loss", math.nan) > 0 for r in records)


@pytest.mark.parametrize(
    "tail", ['{"kind":"train","step":3,"lo', "\0" * 100, "[1]\n", '"text"\n', '{"kind":"new","step":1}']
)
def test_a_line_that_cannot_be_read_is_left_out_and_told(tmp_path, tail):
    text, page = report(make_run(tmp_path / "run", [step(1), step(2)], tail))
    assert page.tiles()["Steps"].startswith("2")
    assert "could not be read: 1." in text


def test_the_later_record_of_a_step_counts(tmp_path):
    first = [step(n, memory_bytes=9e9) for n in range(1, 6)] + [score(5, 1.0, sample="old")]
    second = [step(n, loss=7.0) for n in range(3, 5)] + [score(5, 2.0, sample="new")]
    _, page = report(make_run(tmp_path / "run", first + second))
    assert page.tiles()["Best validation loss"].startswith("2.0000")
    assert page.tiles()["Training loss"].startswith("7.0000")
    assert page.tiles()["Steps"].startswith("4"), "where the run stands, not where it once was"
    assert page.texts["pre"] == ["new"]


def test_tables_that_are_missing_or_broken_are_left_out(tmp_path):
    run = make_run(tmp_path / "run", [step(1)], recipe=["not a table"])
    (run / "training" / "data.json").write_text("{half")
    text, _ = report(run)
    assert "Configuration" not in text


def test_a_long_run_has_a_small_report(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5001, 3))
    records = [
        step(
            n,
            loss=2 + abs(noise[n, 0]),
            grad_norm=1 + noise[n, 1] ** 2,
            tokens_per_second=4e4 + 1e3 * noise[n, 2],
        )
        for n in range(1, 5001)
    ]
    text, _ = report(make_run(tmp_path / "run", records))
    assert len(text) < 200_000


def test_thinning_keeps_the_spikes():
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[[0, 1234, 9999]], y[777], y[5000] = (3, 50, 4), -20, math.nan
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= 802
    assert thin_x[0] == 0
    assert thin_x[-1] == 9999
    assert {(1234, 50), (777, -20)} <= set(zip(thin_x, thin_y, strict=True))
    assert (np.diff(thin_x) > 0).all()


def test_smoothing_is_a_mean_over_what_is_known():
    y = np.ones(500)
    y[::2], y[100] = 3, math.nan
    mean = smooth(y)
    assert np.isnan(mean[100])
    assert np.nanmax(abs(mean - 2)) < 0.35
    assert np.array_equal(smooth(np.array([1.0, 5.0])), [1, 5])


def test_no_metrics_is_one_clear_line(tmp_path):
    for run, words in (
        (tmp_path / "none", "has the run trained yet"),
        (make_run(tmp_path / "empty", []), "no step"),
    ):
        with pytest.raises(Error, match=words) as caught:
            write_report(run)
        assert not isinstance(caught.value, UsageError)
        assert "metrics.jsonl" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (run / "report.html").exists()


@pytest.mark.parametrize("broken", ["write", "replace"])
def test_a_failure_leaves_the_old_report_whole(tmp_path, monkeypatch, broken):
    run = make_run(tmp_path / "run", [step(1)])
    before, _ = report(run)
    (run / "training" / "metrics.jsonl").write_text(json.dumps(step(2)))

    def half(self: Path, text: str, **_) -> None:
        self.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    def refuse(*_) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(*((Path, "write_text", half) if broken == "write" else (os, "replace", refuse)))
    with pytest.raises(Error, match=r"report\.html could not be written .*(device|Input)"):
        write_report(run)
    monkeypatch.undo()
    assert (run / "report.html").read_text(encoding="utf-8") == before
    assert sorted(p.name for p in run.iterdir()) == ["report.html", "training"]
    assert report(run)[0] != before
