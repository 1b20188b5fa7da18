"""Runs side by side: the list with the best figures, the page that draws several, curves in text, TensorBoard."""

import io
import json
import math
import struct

import pytest
from test_report import Page, make_run, score, step

from mlxgpt import files
from mlxgpt.errors import UsageError
from mlxgpt.training import panel, plots, runs, tensorboard
from mlxgpt.training.metrics import Metrics
from mlxgpt.training.plots import History, braille


@pytest.fixture
def several(tmp_path):
    """Two whole runs, one that is not finished, one that is broken, and a folder that is no run."""
    folder = tmp_path / "runs"
    recipe = {"model": {"type": "gpt2"}, "parameters": 1234, "init": {"lora": False}}
    good = [step(n, progress=n / 20, mfu=0.25, loss=3 / n) for n in range(1, 21)] + [score(10, 2.0), score(20, 1.5)]
    worse = [step(n, progress=n / 20) for n in range(1, 21)] + [score(10, 1.75), score(20, 3.0, best=False)]
    make_run(folder / "good", good, recipe=recipe)
    make_run(folder / "deeper" / "worse", worse, recipe=recipe | {"init": {"lora": True}})
    make_run(folder / "young", [step(1, progress=0.05)])
    make_run(folder / "broken", [])
    (folder / "notes").mkdir()
    return folder


def test_runs_are_listed_with_their_best_figures_the_best_first(several, cli):
    done = cli("runs", several, "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)["runs"]
    assert [r["path"].removeprefix(f"{several}/") for r in found] == ["good", "deeper/worse", "young"]
    good, worse, young = found
    assert (good["best_loss"], good["best_bpb"], good["best_step"]) == (1.5, 0.75, 20)
    assert (worse["best_loss"], worse["best_step"], worse["model"]) == (1.75, 10, "gpt2 lora")
    assert (good["state"], young["state"]) == ("done", "stopped")
    assert (good["parameters"], good["step"], good["mfu"], worse["mfu"]) == (1234, 20, 0.25, None)
    assert young["best_loss"] is young["best_bpb"] is None
    assert "broken" in done.err
    table = cli("runs", several)
    lines = table.out.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:3] == ["run", "model", "state"]
    assert "0.7500" in lines[1]
    with files.lock(several / "young" / files.LOCK):
        assert "running" in cli("runs", several / "young").out


def test_no_folder_and_no_run_are_said(cli, tmp_path):
    nowhere = cli("runs", tmp_path / "nowhere")
    assert nowhere.status == 2
    assert "there is no folder" in nowhere.error
    assert "there is no run" in cli("runs", tmp_path).err


def test_several_runs_are_drawn_in_one_page(several, cli, tmp_path):
    target = tmp_path / "report.html"
    done = cli("compare", several / "good", several / "deeper" / "worse", several / "young", "--out", target)
    assert done.out == f"report {target}\n"
    as_json = cli("compare", several / "good", several / "deeper" / "worse", "--out", target, "--json")
    told = json.loads(as_json.out.splitlines()[-1])
    assert told["report"] == str(target)
    assert [run["path"] for run in told["runs"]] == [str(several / "good"), str(several / "deeper" / "worse")]
    assert told["runs"][0]["best_loss"] < told["runs"][1]["best_loss"]
    cli("compare", several / "good", several / "deeper" / "worse", several / "young", "--out", target)
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert page.texts["title"] == ["3 runs compared · mlxgpt"]
    assert page.texts["th"][0] == "run"
    assert page.texts["td"][0] == "good"
    figures = [tag for tag, _ in page.tags if tag == "figure"]
    assert len(figures) == 6
    assert text.count(runs.COLOURS[0]) >= 6
    assert text.count(runs.COLOURS[1]) >= 6
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    alone = cli("compare", several / "good")
    assert (alone.status, "two runs or more" in alone.error) == (2, True)
    missing = cli("compare", several / "good", several / "notes", "--out", target)
    assert (missing.status, "no metrics" in missing.error) == (1, True)
    assert target.read_text(encoding="utf-8") == text


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / a / "run", [step(1), step(2)]) for a in "ab"]
    text = runs.compare(folders, tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(str(folder) in text for folder in folders)


def test_a_curve_in_braille():
    assert braille([0.0, 1.0], 1, 1) == ["\u28f8"]  # up in one step: the first dot is low, the second column full
    flat = braille([2.0] * 9, 3, 2)
    assert len(flat) == 2
    assert [len(line) for line in flat] == [3, 3]
    falling = braille([4.0, 3.0, 2.0, 1.0], 2, 1)[0]
    assert [ord(c) - 0x2800 for c in falling] == [0x01 | 0x08 | 0x10, 0x02 | 0x04 | 0x20 | 0x80]
    assert braille([], 4, 2) == ["    ", "    "]


def test_a_history_is_bounded_and_keeps_the_shape():
    history = History()
    for n in range(100_000):
        history.add(float(n))
        history.add(math.nan)
    points = history.points
    assert plots.MOST / 2 <= len(points) < plots.MOST
    assert points == sorted(points)
    assert points[0] < 500
    assert points[-1] > 99_000


def test_the_live_panel_draws_loss_and_rate():
    from test_panel import run_in_terminal, screen

    body = """
with Panel("t") as p:
    for n in range(1, 200):
        p.train(step(n, loss=5 / n, lr=n * 1e-5, mfu=0.31, progress=n / 200))
"""
    rows = screen(run_in_terminal(body, 100)[0])
    heads = next(i for i, row in enumerate(rows) if "lr  1.0e-05 to 2.0e-03" in row)
    assert "loss  0.0" in rows[heads]
    drawn = rows[heads + 1 : heads + 1 + panel.PLOT]
    assert all(any(0x2800 < ord(c) < 0x2900 for c in row) for row in drawn)
    assert any("MFU" in row and "31%" in row for row in rows)
    low = screen(run_in_terminal(body, 100, height=14)[0])
    assert not any("lr  1.0e-05" in row for row in low)


def events(folder):
    """Every event of TensorBoard's files: records of a length, its checksum, the data and its checksum."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        stream = io.BytesIO(path.read_bytes())
        while head := stream.read(12):
            (size,) = struct.unpack("<Q", head[:8])
            event = Event()
            event.ParseFromString(stream.read(size))
            stream.read(4)
            yield event


def test_tensorboard_files_say_what_the_metrics_say_and_take_back_what_was_rolled_back(tmp_path):
    pytest.importorskip("tensorboardX")
    with Metrics(tmp_path / "metrics.jsonl", None, tensorboard=True) as metrics:
        for n in (1, 2, 3):
            metrics.write(step(n, loss=4.0 / n, mfu=None))
        metrics.write(score(3, 2.5))
        metrics.rewind(2)
        metrics.write(step(3, loss=math.nan))
        metrics.write(step(4, loss=0.5))
    found = list(events(tmp_path / "tensorboard"))
    scalars = [(v.tag, e.step, v.simple_value) for e in found for v in e.summary.value if v.HasField("simple_value")]
    assert [(s, v) for tag, s, v in scalars if tag == "train/loss"] == [
        (1, 4.0), (2, 2.0), (3, pytest.approx(4 / 3)), (4, 0.5)
    ]  # fmt: skip
    assert ("evaluation/val_loss", 3, 2.5) in scalars
    assert not [tag for tag, *_ in scalars if tag == "train/mfu"]
    assert any(e.session_log.status == 1 and e.step == 3 for e in found), "steps from 3 on are taken back"


def test_tensorboard_goes_with_a_run_and_its_absence_is_one_line(code, small, cli, tmp_path, monkeypatch):
    options = ("--config", small, "--steps", 2, "--set", "data.validation_fraction=0", "--tensorboard")
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"pip install 'mlxgpt\[tensorboard\]'"):
            tensorboard.require()
    pytest.importorskip("tensorboardX")
    out = tmp_path / "run"
    assert cli("train", code, *options, "--out", out).status == 0
    losses = [
        v.simple_value
        for e in events(out / "training" / "tensorboard")
        for v in e.summary.value
        if v.tag == "train/loss"
    ]
    written = [json.loads(line) for line in (out / "training" / "metrics.jsonl").open()]
    assert losses == pytest.approx([r["loss"] for r in written if r["kind"] == "train"])
