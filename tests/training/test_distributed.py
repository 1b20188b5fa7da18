"""Two processes that train together: the losses of one, one folder, one end, whatever happens to either of them."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxgpt import files
from mlxgpt.config import TrainConfig
from mlxgpt.errors import UsageError
from mlxgpt.training import checkpoint, distributed

RECIPE = """[model]
type = "mistral"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 32
sliding_window = 10

[tokenizer]
kind = "byte"

[data]
validation_fraction = 0.1
fim_rate = 0.5
isolate_documents = true

[optimizer]
lr = 3e-3
warmup_steps = 3

[train]
steps = 8
batch_size = 4
accumulation = 3
sequence_length = 24
dtype = "float32"
evaluations = 2
sample_tokens = 4
checkpoint_minutes = 1e-9
"""
QUICK = ("--set", "data.validation_fraction=0", "--set", "train.sample_tokens=0", "--set", "train.evaluations=1")
# The command line, after a piece of Python: what this rank does that the other one does not.
RANK = """
import os, signal, sys, time
from pathlib import Path
from mlxgpt.training import distributed, loop, panel, schedule

def at(number, act):
    def train(self, record, before=panel.Panel.train):
        before(self, record)
        if record["step"] == number:
            act()
    panel.Panel.train = train

exec(sys.argv[1])
from mlxgpt.cli import main
main.main(sys.argv[2:])
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two processes that wait for each other on two busy cores have no use for more."""
    monkeypatch.setenv("MLXGPT_THREADS", "1")


def hostfile(folder: Path) -> Path:
    """What `mlx.launch` tells the ring: an address a rank, of ports that are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    path = folder / "hosts.json"
    path.write_text(json.dumps([[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets]))
    for each in sockets:
        each.close()
    return path


@pytest.fixture
def together(tmp_path) -> Callable:
    """`mlxgpt` in two processes, as on two machines: each in a folder of its own. A piece of Python for each of them,
    and the arguments, to the status, the stdout and the stderr of each."""
    homes = [tmp_path / "rank0", tmp_path / "rank1"]
    for home in homes:
        home.mkdir()

    def call(*arguments: object, codes: tuple[str, str] = ("", ""), script: str = RANK) -> list[tuple[int, str, str]]:
        hosts = hostfile(tmp_path)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script, codes[rank], *map(str, arguments)], cwd=homes[rank], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            told = [process.communicate(timeout=120) for process in running[: 2 if "SIGSTOP" not in codes[1] else 1]]
        finally:
            for process in running:
                process.kill()
                process.wait()
        told += [("", "")] * (2 - len(told))
        return [(p.returncode, out, err) for p, (out, err) in zip(running, told, strict=True)]

    return call


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return path


def records(out: Path, kind: str = "train") -> list[dict]:
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in records(out)]


def state(out: Path) -> dict[str, mx.array]:
    kept = checkpoint.newest(out)
    return {**mx.load(str(kept / "model.safetensors")), **mx.load(str(kept / "optimizer.safetensors"))}


def last(text: str) -> str:
    assert "Traceback" not in text
    return text.splitlines()[-1]


def test_two_processes_take_the_steps_of_one(together, cli, code, recipe, tmp_path):
    """12 sequences a step in three passes; of two processes, six each in two. Rows are infilled, documents isolated."""
    alone = cli("train", code, "--config", recipe, "--out", tmp_path / "alone")
    assert alone.status == 0, alone.err
    ended = together("train", code, "--config", recipe, "--out", "run")
    assert [status for status, _, _ in ended] == [0, 0], ended
    out = tmp_path / "rank0" / "run"
    assert ended[0][1] == "model run\nreport run/report.html\n"
    assert ended[1][1] == ""
    assert list((tmp_path / "rank1").iterdir()) == [], "rank 0 alone writes"
    names = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (out, tmp_path / "alone")]
    assert names[0] == names[1]
    assert len(losses(out)) == 8
    for kind, keys in (("train", ("loss", "grad_norm", "lr", "tokens")), ("evaluation", ("val_loss", "val_bpb"))):
        for ours, its in zip(records(out, kind), records(tmp_path / "alone", kind), strict=True):
            for key in keys:
                assert ours[key] == pytest.approx(its[key], rel=1e-5), (kind, key)
    assert files.read_json(out / "training" / "recipe.json") == files.read_json(
        tmp_path / "alone" / "training" / "recipe.json"
    ), "any number of processes can go on with it"


def test_a_killed_rank_ends_the_other_and_a_resumed_run_is_what_it_would_have_been(together, code, recipe, tmp_path):
    begin = ("train", code, "--config", recipe, *QUICK, "--out")
    whole = together(*begin, "whole")
    assert [status for status, _, _ in whole] == [0, 0], whole
    ended = together(*begin, "run", codes=("", "at(4, lambda: os.kill(os.getpid(), signal.SIGKILL))"))
    assert [status for status, _, _ in ended] == [1, -signal.SIGKILL], ended
    line = last(ended[0][2])
    assert line.startswith("mlxgpt: error: another process of this run is gone (")
    assert line.endswith("--resume goes on from the last checkpoint")
    out = tmp_path / "rank0" / "run"
    kept = checkpoint.newest(out)
    hashes = files.read_json(kept / "manifest.json")
    assert {name: checkpoint.digest(kept / name) for name in checkpoint.CONTENTS} == hashes
    assert int(kept.name[-8:]) in (3, 4)
    resumed = together("train", "--resume", "--out", "run")
    assert [status for status, _, _ in resumed] == [0, 0], resumed
    ours, expected = state(out), state(tmp_path / "rank0" / "whole")
    assert ours.keys() == expected.keys()
    assert all(mx.array_equal(ours[name], expected[name]) for name in ours)
    assert losses(out) == losses(tmp_path / "rank0" / "whole")


def test_ctrl_c_on_either_stops_both_with_a_checkpoint(together, code, recipe, tmp_path):
    stop = "at(3, lambda: signal.raise_signal(signal.{}))"
    for number, codes in enumerate([("", stop.format("SIGINT")), (stop.format("SIGHUP"), "")]):
        ended = together("train", code, "--config", recipe, *QUICK, "--out", f"run{number}", codes=codes)
        assert [status for status, _, _ in ended] == [0, 0], ended
        assert "stopped at step 3" in ended[0][2]
        out = tmp_path / "rank0" / f"run{number}"
        assert checkpoint.newest(out).name == "checkpoint-00000003"
        assert (out / "model.safetensors").exists()


def test_the_time_is_the_first_ones_and_so_is_what_diverges(together, code, recipe, tmp_path):
    """Rank 1's own clock stands still, and its loss is no number once; both go back, and end when rank 0 says so."""
    apart = """
schedule.Clock.count = lambda clock, seconds: None
one = loop.Run._one_step
broken = []
def one_step(run, step, rate, now):
    loss, norm = one(run, step, rate, now)
    if step == 3 and not broken:
        broken.append(step)
        return float("nan"), norm
    return loss, norm
loop.Run._one_step = one_step
"""
    rollback = ("--set", 'train.on_divergence="rollback"', "--minutes", 0.005)
    ended = together("train", code, "--config", recipe, *QUICK, *rollback, "--out", "run", codes=("", apart))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "step 4: the loss is nan; back to step" in ended[0][2]
    done = records(tmp_path / "rank0" / "run")
    assert [record["step"] for record in done] == list(range(1, len(done) + 1))
    assert done[-1]["progress"] == 1
    assert done[-1]["lr"] < 3e-3 / 2


OTHERS = (
    "rank 1 has another corpus than rank 0: 2 files of [\\d,]+ bytes, not 10 of [\\d,]+; give every machine the same"
)


@pytest.mark.parametrize(
    ("files_there", "arguments", "errors"),
    [
        (("queue", "glob"), (), (OTHERS, OTHERS)),
        ((), (), ("on rank 1: no such file or folder: .*", "no such file or folder: .*")),
        (None, ("--set", "train.stepz=2"), ("unknown key 'train.stepz'", "on rank 0: unknown key 'train.stepz'")),
        (None, ("--set", "train.batch_size=5"), ("the 15 sequences of a step",) * 2),
    ],
    ids=["corpus", "missing", "recipe", "share"],
)
def test_what_is_wrong_with_one_is_said_by_both(together, code, recipe, tmp_path, files_there, arguments, errors):
    """Each has the corpus in its own folder. Nothing is written, and nobody waits."""
    shutil.copytree(code, tmp_path / "rank0" / "code")
    for name in [path.stem for path in code.iterdir()] if files_there is None else files_there:
        (tmp_path / "rank1" / "code").mkdir(exist_ok=True)
        shutil.copy(code / f"{name}.py", tmp_path / "rank1" / "code")
    ended = together("train", "code", "--config", recipe, *QUICK, "--out", "run", *arguments)
    for (status, out, err), error in zip(ended, errors, strict=True):
        assert status in (1, 2)
        assert out == ""
        assert re.match(f"mlxgpt: error: .*{error}", last(err)), err
    assert not (tmp_path / "rank0" / "run").exists()


def test_a_silent_rank_is_not_waited_for_for_ever(together, code, recipe, tmp_path):
    """Not every back end tells that a process is gone; here it is there, and stopped."""
    stopped = "at(3, lambda: os.kill(os.getpid(), signal.SIGSTOP))"
    begin = ("train", code, "--config", recipe, *QUICK, "--out", "run")
    ended = together(*begin, codes=("at(2, lambda: setattr(distributed, 'PATIENCE', 1.0))", stopped))
    assert ended[0][0] == 1
    assert "it has been silent for 1 s" in last(ended[0][2])
    assert checkpoint.newest(tmp_path / "rank0" / "run").name <= "checkpoint-00000003"


def test_the_largest_batch_that_fits_both(together, code, recipe, tmp_path):
    """Rank 1 has room for two sequences, rank 0 for all six of its share: three passes of two, each."""
    room = """
from mlxgpt import backend
from mlxgpt.training import memory

def fit(model, recipe, dtype, room):
    assert room == int(memory.SHARE * (backend.total_memory() // 2)), "both are on this machine"
    return {0}, 6 // {0}

memory.fit = fit
"""
    codes = (room.format(6), room.format(2))
    begin = ("train", code, "--config", recipe, *QUICK, "--steps", 2, "--out", "run")
    ended = together(*begin, "--batch-size", "auto", codes=codes)
    assert [status for status, _, _ in ended] == [0, 0], ended
    train = files.read_json(tmp_path / "rank0" / "run" / "training" / "recipe.json")["train"]
    assert (train["batch_size"], train["accumulation"], train["auto_batch"]) == (2, 6, False)


def test_mlx_launch_starts_it(code, recipe, tmp_path):
    launch = Path(sysconfig.get_path("scripts")) / "mlx.launch"
    first = random.randrange(20_000, 30_000)
    command = [sys.executable, "-m", "mlxgpt.cli", "train", code, "--config", recipe, *QUICK, "--out", tmp_path / "run"]
    done = subprocess.run(
        [str(part) for part in (launch, "-n", 2, "--starting-port", first, "--", *command)], capture_output=True,
        text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes train together" in done.stderr
    assert done.stdout.count("model ") == 1
    assert len(losses(tmp_path / "run")) == 8


GROUP = """
import sys
import mlxgpt
import mlx.core as mx
import numpy as np
from mlxgpt.training import distributed

group = distributed.join()
mine = group.rank + 1.0
assert group.tell({"rank": group.rank, "text": "é" * group.rank}) == [{"rank": 0, "text": ""}, {"rank": 1, "text": "é"}]
assert group.numbers(0.1 * mine, -0.0).tolist() == [[0.1, -0.0], [0.2, -0.0]]
assert (group.any(group.rank == 1), group.any(False)) == (True, False)
assert group.first(lambda: [group.rank]) == [0]
assert group.here == 2
odd = {0: [-0.0, float("nan"), 1e-45], 1: [1.0, 2.0, 3.0]}[group.rank]
tree = {"a": mx.array(odd), "b": [mx.array(group.rank, mx.uint64)], "c": mx.full((2, 3), mine, mx.bfloat16)}
got = group.spread(tree)
assert np.array(got["a"]).tobytes() == np.array([-0.0, np.nan, 1e-45], np.float32).tobytes()
assert (got["b"][0].item(), got["b"][0].dtype, got["c"].tolist()) == (0, mx.uint64, [[1.0] * 3] * 2)
large = {"a": mx.full((3000, 3000), mine), "b": {"c": mx.full((5,), mine), "d": mx.array([[mine]])}}
mx.eval(large)
mean = group.average(large)
assert (mean["a"] == 1.5).all() and (mean["b"]["c"] == 1.5).all() and mean["b"]["d"].tolist() == [[1.5]]
print("done")
"""


def test_what_the_processes_tell_each_other_is_exact(together):
    ended = together(script="import sys; exec(sys.argv[1])", codes=(GROUP, GROUP))
    assert [(status, out) for status, out, _ in ended] == [(0, "done\n")] * 2, ended


def test_a_group_of_one_communicates_nothing():
    group = distributed.join()
    assert (group.size, group.leads, group.any(True), group.tell(3), group.first(lambda: 4)) == (1, True, True, [3], 4)
    assert group.here == 1
    assert group.numbers(0.1).tolist() == [[0.1]]
    tree = {"a": mx.ones(2)}
    assert group.spread(tree) is tree


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "ranks", "expected"),
    [(4, 3, 1, (4, 3)), (4, 3, 2, (3, 2)), (4, 1, 2, (2, 1)), (1, 4, 4, (1, 1)), (5, 6, 3, (5, 2)), (8, 1, 8, (1, 1))],
)
def test_a_share_is_the_fewest_equal_passes(batch_size, accumulation, ranks, expected):
    train = TrainConfig(batch_size=batch_size, accumulation=accumulation)
    mine = distributed.share(train, ranks)
    assert (mine.batch_size, mine.accumulation) == expected


def test_sequences_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match=r"the 12 sequences of a step .* do not divide among 5 processes"):
        distributed.share(TrainConfig(batch_size=4, accumulation=3), 5)


def test_an_address_that_cannot_be_reached_is_one_line(spawn, code, tmp_path):
    (tmp_path / "hosts.json").write_text("not json")
    done = spawn("train", code, "--out", tmp_path / "run", MLX_RANK="0", MLX_HOSTFILE=str(tmp_path / "hosts.json"))
    assert done.status == 1
    assert done.error.startswith("the processes of this run cannot reach each other (")
