"""SIGKILL at fifty moments in a row, some in the midst of writing: nothing is corrupted, next to nothing lost."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxgpt import files
from mlxgpt.training import checkpoint

KILLS = 50
RECIPE = """[model]
type = "gpt2"
n_layer = 1
n_head = 2
n_embd = 16
n_positions = 16
dropout = 0.1

[tokenizer]
kind = "byte"

[data]
validation_fraction = 0.0

[train]
steps = 1_000_000
batch_size = 2
accumulation = 2
sequence_length = 16
dtype = "float32"
evaluations = 1
sample_tokens = 0
checkpoint_minutes = 1e-9
"""
# Imports once and computes nothing, which MLX would not survive a fork with; every run is a child of it. A line of
# stdin is a run: when to kill it, and its arguments. The answer: the child's status.
RUNNER = """
import json, os, random, signal, sys, time
from pathlib import Path
import mlxgpt.completion.calibration, mlxgpt.data.shards, mlxgpt.training.loop, mlxgpt.training.session
from mlxgpt.cli import main
from mlxgpt.training import panel

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at_call(n):
    # the n-th system call with which something is put in its place, before or after it
    left = [n]
    def counted(call):
        def run(*arguments, **options):
            left[0] -= 1
            if left[0] <= 0 and n % 2:
                die()
            result = call(*arguments, **options)
            if left[0] <= 0:  # another thread's may have been the n-th
                die()
            return result
        return run
    for name in ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))

class Panel(panel.Panel):
    def train(self, record):
        super().train(record)
        if record["step"] == stop:
            signal.raise_signal(signal.SIGINT)

for line in sys.stdin:
    how = json.loads(line)
    stop = how.get("stop")
    metrics = Path(how["out"]) / "training" / "metrics.jsonl"
    before = metrics.stat().st_size if metrics.exists() else 0
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(how["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        panel.Panel = Panel
        if "call" in how:
            kill_at_call(how["call"])
        try:
            main.main(how["arguments"])
        finally:
            os._exit(0 if sys.exc_info()[1] is None or sys.exc_info()[1].code == 0 else 1)
    if "after" in how:
        begun = time.monotonic()
        while metrics.exists() and metrics.stat().st_size <= before and time.monotonic() < begun + 60:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        time.sleep(how["after"])
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def runner(tmp_path):
    """A function that lets a run live, until it is killed or ends, and returns its wait status."""
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )

    def live(out: Path, *arguments: object, **how) -> int:
        table = {"out": str(out), "log": str(log), "arguments": [*map(str, arguments)]} | how
        process.stdin.write(json.dumps(table) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, log.read_text()
        return status

    yield live
    process.stdin.close()
    process.wait(60)


def verified(out: Path) -> int:
    """The step of the newest checkpoint, every file of which is what its manifest says."""
    newest = checkpoint.newest(out)
    hashes = files.read_json(newest / "manifest.json")
    assert {name: checkpoint.digest(newest / name) for name in checkpoint.CONTENTS} == hashes
    return json.loads((newest / "state.json").read_text())["step"]


def last_step(out: Path) -> int:
    whole = (out / "training" / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    return json.loads(whole[-1])["step"] if whole else 0


@pytest.mark.skipif(not hasattr(os, "waitid") or sys.platform == "darwin", reason="frameworks do not survive a fork")
def test_fifty_kills_in_a_row_lose_no_more_than_the_last_steps(runner, code, tmp_path):
    draw = random.Random(4)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    out, other = tmp_path / "run", tmp_path / "whole"
    begin = ("train", code, "--config", recipe, "--out")
    runner(out, *begin, out, stop=2)
    reached = [verified(out)]
    for n in range(KILLS):
        # checkpoints are written at every step: of what a child does after its first, most is writing
        how = {"call": draw.randrange(1, 60)} if n % 2 else {"after": draw.random() * 0.05}
        status = runner(out, "train", "--out", out, "--resume", **how)
        assert os.WIFSIGNALED(status), "it was to be killed"
        reached.append(verified(out))
        assert reached[-1] >= reached[-2], "a checkpoint was lost"
        assert last_step(out) - reached[-1] <= 3, "more was lost than the steps since the last checkpoint"
    assert reached[-1] > reached[0] + KILLS // 2
    assert len(checkpoint.saved(out)) <= 2
    runner(out, "train", "--out", out, "--resume", stop=reached[-1] + 3)
    runner(other, *begin, other, stop=reached[-1] + 3)
    hidden = [p for p in (out / "training").iterdir() if p.name.startswith(".checkpoint")]
    assert not hidden, "what was half-written is swept"
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (mx.load(str(checkpoint.newest(folder) / name)) for folder in (out, other))
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[n], theirs[n]) for n in ours), "the run is not what it would have been"
    runs = [[json.loads(line) for line in (f / "training" / "metrics.jsonl").open()] for f in (out, other)]
    assert [r["loss"] for r in runs[0]] == [r["loss"] for r in runs[1]]
    print(f"{KILLS} kills, {reached[-1]} steps")
