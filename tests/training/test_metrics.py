"""metrics.jsonl: one object a line, whole at any moment, and cut back when a run is resumed."""

import json
import math
import os

import pytest

from mlxgpt.errors import Error
from mlxgpt.training.metrics import Metrics


def test_records_are_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write({"kind": "train", "step": 1, "loss": 1.5, "sample": "é\n"})
        assert json.loads(path.read_text()) == {"kind": "train", "step": 1, "loss": 1.5, "sample": "é\n"}
        metrics.write({"step": 2, "loss": math.nan, "norm": math.inf})
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1], parse_constant=pytest.fail) == {"step": 2, "loss": None, "norm": None}


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [f'{{"step": {n}}}\n' for n in (1, 2, 2, 3)]
    path.write_text("".join(whole) + 'not json\n[1]\n{"loss": 1}\n{"step": 2')
    with Metrics(path, keep_until=2) as metrics:
        metrics.write({"step": 3, "again": True})
    assert path.read_text() == "".join(whole[:3]) + '{"step": 3, "again": true}\n'


def test_a_new_run_begins_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with Metrics(path):
        pass
    assert path.read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_one_clear_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), metrics._file.fileno())
    with metrics, pytest.raises(Error, match=r"metrics\.jsonl could not be written \(.*No space left.*--resume"):
        metrics.write({"step": 1})
