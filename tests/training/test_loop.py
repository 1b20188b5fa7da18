"""Whole runs: the same every time, resumed bit for bit, stopped cleanly, and never lost."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt import backend, weights
from mlxgpt.evaluation import Evaluation
from mlxgpt.training import checkpoint, loop
from mlxgpt.training.schedule import Shape

GPT2 = """[model]
type = "gpt2"
n_layer = 2
n_head = 2
n_embd = 32
n_positions = 32
dropout = 0.2

[tokenizer]
kind = "byte"

[data]
validation_fraction = 0.1

[optimizer]
lr = 3e-3
warmup_steps = 3
weight_decay = 0.5

[train]
steps = 10
batch_size = 4
accumulation = 2
sequence_length = 24
dtype = "float32"
evaluations = 2
sample_tokens = 4
"""

MISTRAL = """[model]
type = "mistral"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 32
sliding_window = 10

[tokenizer]
kind = "char"

[data]
split = "tail"
validation_fraction = 0.1

[optimizer]
lr = 3e-3
schedule = "wsd"
warmup_steps = 3

[train]
steps = 10
batch_size = 4
sequence_length = 24
dtype = "float32"
evaluations = 2
sample_tokens = 4
"""

RECIPES = {"gpt2": GPT2, "mistral": MISTRAL}
TIMES = ("elapsed", "tokens_per_second", "memory_bytes", "cache_bytes", "mfu")
# The losses of ten steps, then val_loss twice; made with MLX 0.32.4 on a Linux CPU. BLAS kernels differ in last digits.
GOLDEN = {
    "gpt2": [5.5073, 5.438, 5.3241, 5.2077, 5.0783, 4.9649, 4.862, 4.7529, 4.7194, 4.6919, 4.9542, 4.6562],
    "mistral": [5.5571, 5.5133, 5.4411, 5.2824, 5.1374, 5.0139, 4.9053, 4.754, 4.6613, 4.534, 5.042, 4.5385],
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Files that are the same on every machine and look a little like code."""
    folder = tmp_path_factory.mktemp("text") / "made"
    folder.mkdir()
    draw = random.Random(5)
    for n in range(8):
        lines = [
            f"def {draw.choice('abc')}{i}({draw.choice('xyz')}):\n    return {draw.random():.3f}\n" for i in range(40)
        ]
        (folder / f"{n}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name, toml in RECIPES.items():
        (folder / f"{name}.toml").write_text(toml)
    return lambda name: folder / f"{name}.toml"


def records(out: Path, *without: str) -> list[dict]:
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in lines]


def content(out: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Everything a run is: where it stands, and the tensors of its model and its newest checkpoint."""
    newest = checkpoint.newest(out)
    state = json.loads((newest / "state.json").read_text())
    state.pop("elapsed")
    files = (out / "model.safetensors", *newest.glob("*.safetensors"))
    tensors = {f"{f.relative_to(out)} {n}": np.array(a) for f in files for n, a in mx.load(str(f)).items()}
    return state, tensors


def assert_same(out: Path, other: Path) -> None:
    """Both runs are the same bit for bit, apart from times; on a GPU, which adds in no fixed order, nearly so."""
    near = 0.0 if backend.device() == "cpu" else 1e-3
    (state, tensors), (other_state, others) = content(out), content(other)
    assert state == pytest.approx(other_state, abs=near)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype
        np.testing.assert_allclose(tensor, others[name], atol=near, rtol=near, err_msg=name)
    ours, theirs = records(out, *TIMES, "sample"), records(other, *TIMES, "sample")
    assert [r == pytest.approx(t, abs=near) for r, t in zip(ours, theirs, strict=True)] == [True] * len(ours)
    if not near:
        assert [r.get("sample") for r in records(out)] == [r.get("sample") for r in records(other)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text, recipe, spawn):
    """Each recipe's run, from its first step to its last."""
    outs = {}
    for name in RECIPES:
        outs[name] = tmp_path_factory.mktemp("whole") / name
        done = spawn("train", text, "--config", recipe(name), "--out", outs[name])
        assert done.status == 0, done.err
    return outs


@pytest.mark.parametrize("name", RECIPES)
def test_a_seed_gives_a_fixed_list_of_losses(whole, name):
    losses = [r["loss"] for r in records(whole[name]) if r["kind"] == "train"]
    losses += [r["val_loss"] for r in records(whole[name]) if r["kind"] == "evaluation"]
    assert losses == pytest.approx(GOLDEN[name], abs=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_repeats_bit_for_bit_and_another_seed_does_not(whole, name, text, recipe, cli, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    assert cli("train", text, "--config", recipe(name), "--out", again).status == 0
    assert cli("train", text, "--config", recipe(name), "--out", other, "--seed", 1, "--steps", 1).status == 0
    assert_same(again, whole[name])
    assert records(other)[0]["loss"] != records(again)[0]["loss"]


@pytest.mark.parametrize(("name", "step"), [("gpt2", 3), ("gpt2", 7), ("mistral", 5)])
def test_a_resumed_run_is_the_run_that_was_not_stopped(whole, name, step, text, recipe, at_step, spawn, tmp_path):
    out = tmp_path / "run"
    stop = "os.kill(os.getpid(), signal.SIGINT)"
    stopped = at_step(step, stop, "train", text, "--config", recipe(name), "--out", out)
    assert stopped.status == 0, stopped.err
    assert "stopping after this step" in stopped.err
    assert f"stopped at step {step} " in stopped.err
    assert "--resume" in stopped.err
    assert checkpoint.newest(out).name == f"checkpoint-{step:08d}"
    weights.load(out)  # a model is there, even before the first evaluation
    resumed = spawn("train", "--out", out, "--resume")
    assert resumed.status == 0, resumed.err
    assert_same(out, whole[name])


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_exact_however_its_rows_are_made(whole, name, text, recipe, cli, at_step, tmp_path):
    """Rearranged, isolated, put in the order of imports and mixed, with accumulation in one of them."""
    unbroken, out, other = tmp_path / "unbroken", tmp_path / "run", tmp_path / "other"
    other.mkdir()
    (other / "b.py").write_text("".join(f"import b{i}\nfor x in range({i * i}):\n    y(x)\n" for i in range(60)))
    keys = ("data.fim_rate=0.6", "data.isolate_documents=true", "data.order=imports")
    options = (*(part for key in keys for part in ("--set", key)), "--mix", f"{other}=0.3")
    command = ("train", text, "--config", recipe(name), *options, "--out")
    assert cli(*command, unbroken).status == 0
    stopped = at_step(4, "os.kill(os.getpid(), signal.SIGINT)", *command, out)
    assert "stopped at step 4 " in stopped.err, stopped.err
    assert cli("train", "--out", out, "--resume").status == 0
    assert_same(out, unbroken)
    assert records(out)[0]["loss"] != records(whole[name])[0]["loss"], "the rows are others"


@pytest.mark.parametrize(("optimizer", "step"), [("muon", 1), ("muon", 4), ("adamw", 4)])
def test_a_resumed_run_is_exact_while_its_steps_grow(optimizer, step, whole, text, recipe, cli, at_step, tmp_path):
    """Stopped within each stage and between them; zeros to begin with, infilled and isolated documents and QK-norm."""
    unbroken, out = tmp_path / "unbroken", tmp_path / "run"
    keys = ("model.type=qwen3", "model.zero_init=true", f"optimizer.kind={optimizer}", "data.isolate_documents=true",
            "data.fim_rate=0.5", "train.batch_warmup=0.6", "train.sequence_warmup=0.8",
            "train.accumulation=2")  # fmt: skip
    options = [part for key in keys for part in ("--set", key)]
    command = ("train", text, "--config", recipe("mistral"), *options, "--out")
    assert cli(*command, unbroken).status == 0
    stopped = at_step(step, "os.kill(os.getpid(), signal.SIGINT)", *command, out)
    assert f"stopped at step {step} " in stopped.err, stopped.err
    assert cli("train", "--out", out, "--resume").status == 0
    assert_same(out, unbroken)
    read = [r["tokens"] for r in records(out) if r["kind"] == "train"]
    sizes = [2, 2, 2, 4, 4, 4, 8, 8, 8, 8]  # sequences of 24 tokens
    assert read == [24 * sum(sizes[: i + 1]) for i in range(10)]


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(whole, cli, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole["gpt2"], out)
    assert cli("train", "--out", out, "--resume").status == 0
    assert records(out) == records(whole["gpt2"])
    assert_same(out, whole["gpt2"])


def test_metrics_tell_every_step_and_every_evaluation(whole):
    for name, out in whole.items():
        all_records = records(out)
        steps = [r for r in all_records if r["kind"] == "train"]
        evaluations = [r for r in all_records if r["kind"] == "evaluation"]
        assert len(all_records) == len(steps) + len(evaluations)
        assert [r["step"] for r in steps] == list(range(1, 11))
        assert [r["step"] for r in evaluations] == [5, 10]
        keys = "kind step loss lr grad_norm tokens tokens_per_second elapsed memory_bytes cache_bytes"
        keys += " cache_limit_bytes mfu progress" if backend.device() != "metal" else ""
        keys += " cache_limit_bytes wired_limit_bytes mfu progress" if backend.device() == "metal" else ""
        assert all(list(r) == keys.split() for r in steps)
        assert all(0 < r["mfu"] < 1.5 and r["cache_bytes"] <= r["cache_limit_bytes"] for r in steps)
        assert all(
            set(r) == set(["kind", "step", "val_loss", "val_bpb", "sample", "elapsed", "best"]) for r in evaluations
        )
        a_step = 4 * 24 * (2 if name == "gpt2" else 1)
        assert [r["tokens"] for r in steps] == [n * a_step for n in range(1, 11)]
        assert [r["progress"] for r in steps] == pytest.approx([n / 10 for n in range(1, 11)])
        assert all(r["tokens_per_second"] > 0 and r["memory_bytes"] > 0 and r["grad_norm"] > 0 for r in steps)
        assert [r["elapsed"] for r in steps] == sorted(r["elapsed"] for r in steps)
        assert steps[0]["elapsed"] == 0  # the first step compiles
        assert all(r["sample"] for r in evaluations)


def test_the_best_evaluation_is_the_model_on_disk(text, recipe, cli, tmp_path, monkeypatch):
    """Evaluations of 3, 2 and 4 nats: the second one's weights stay, and are not the last."""
    scores = iter([3.0, 2.0, 4.0])
    saved = []
    real = loop.Run._save_model

    def save(self):
        saved.append(self.position.step)
        real(self)

    monkeypatch.setattr(loop.Evaluator, "run", lambda self: Evaluation(next(scores), 1.0))
    monkeypatch.setattr(loop.Run, "_save_model", save)
    out = tmp_path / "run"
    options = ("--steps", 6, "--set", "train.evaluations=3")
    assert cli("train", text, "--config", recipe("gpt2"), "--out", out, *options).status == 0
    assert saved == [2, 4]
    assert [r["best"] for r in records(out) if r["kind"] == "evaluation"] == [True, True, False]
    state = json.loads((checkpoint.newest(out) / "state.json").read_text())
    assert (state["step"], state["best_step"], state["best_loss"]) == (6, 4, 2.0)


def test_minutes_end_in_time_with_the_rate_at_its_end(text, recipe, cli, tmp_path):
    out = tmp_path / "run"
    start = time.monotonic()
    done = cli("train", text, "--config", recipe("mistral"), "--out", out, "--minutes", 0.05)
    took = time.monotonic() - start
    assert done.status == 0, done.err
    steps = [r for r in records(out) if r["kind"] == "train"]
    evaluations = [r for r in records(out) if r["kind"] == "evaluation"]
    lr, min_lr = 3e-3, 1e-4
    assert max(r["lr"] for r in steps) > 0.9 * lr
    assert min_lr <= steps[-1]["lr"] < min_lr + 0.1 * (lr - min_lr)
    assert 3.0 <= steps[-1]["elapsed"] < 3.0 + 1.0
    assert took < 3.0 + 20.0  # compilation and two evaluations come on top
    assert steps[-1]["progress"] == 1.0
    assert [r["step"] for r in evaluations][-1] == steps[-1]["step"]
    assert len(evaluations) == 2


def test_a_machine_that_sleeps_and_a_clock_that_jumps_spoil_neither_the_minutes_nor_the_eta(
    text, recipe, cli, tmp_path, monkeypatch
):
    """Ten hours pass in each third step, and the wall clock goes back by a day at every look at it."""
    steps, ahead, real, day = [], [0.0], time.perf_counter, [time.time()]
    one_step = loop.Run._one_step

    def slow(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        result = one_step(self, step, rate, now)
        steps.append(step)
        ahead[0] += 36_000.0 if step % 3 == 2 else 0.05
        return result

    def wall() -> float:
        day[0] -= 86_400
        return day[0]

    monkeypatch.setattr(loop.Run, "_one_step", slow)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: real() + ahead[0])
    monkeypatch.setattr(time, "time", wall)
    out = tmp_path / "run"
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out, "--minutes", 0.05)
    monkeypatch.undo()
    assert done.status == 0, done.err
    records_of_steps = [r for r in records(out) if r["kind"] == "train"]
    assert len(steps) > 6  # a run of three seconds, steps of 0.05 to 0.3: the pauses were not taken for training
    assert records_of_steps[-1]["elapsed"] < 40
    assert records_of_steps[3]["progress"] < 1
    assert "h " not in "".join(line.partition("ETA ")[2] for line in done.err.splitlines())


def test_a_moment_is_enough_for_a_run(text, recipe, cli, tmp_path):
    done = cli("train", text, "--config", recipe("gpt2"), "--out", tmp_path / "run", "--minutes", "1e-7")
    assert done.status == 0, done.err
    assert records(tmp_path / "run")[-1]["kind"] == "evaluation"
    weights.load(tmp_path / "run")


def test_a_signal_from_outside_stops_cleanly(text, recipe, tmp_path):
    """SIGTERM, as `kill` and a machine that shuts down send it."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mlxgpt.cli", "train", text, "--config", recipe("gpt2"), "--out", out]
    process = subprocess.Popen(
        [*command, "--steps", "1000000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    metrics = out / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    last = records(out)[-1]["step"]
    assert checkpoint.newest(out).name == f"checkpoint-{last:08d}"
    assert str(out / "report.html") in stdout
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_stops_a_run_with_a_checkpoint_unless_nohup_has_it_ignored(
    ignored, text, recipe, cli, tmp_path, monkeypatch
):
    real = loop.Run._one_step

    def one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        if step == 2:
            signal.raise_signal(signal.SIGHUP)
        return real(self, step, rate, now)

    monkeypatch.setattr(loop.Run, "_one_step", one_step)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        options = ("--config", recipe("gpt2"), "--steps", 4, "--set", "data.validation_fraction=0")
        done = cli("train", text, *options, "--out", tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.status == 0, done.err
    assert checkpoint.newest(tmp_path / "run").name == f"checkpoint-{4 if ignored else 3:08d}"


def test_interrupted_twice_aborts(text, recipe, at_step, spawn, tmp_path):
    out = tmp_path / "run"
    twice = "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)"
    done = at_step(7, twice, "train", text, "--config", recipe("gpt2"), "--out", out)
    assert done.status == 130
    assert done.error == "aborted"
    assert checkpoint.newest(out).name == "checkpoint-00000005"  # the evaluation's
    assert spawn("train", "--out", out, "--resume").status == 0


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(text, recipe, cli, tmp_path):
    out = tmp_path / "run"
    options = ("--set", "optimizer.lr=1e30", "--set", "optimizer.clip=0", "--set", "optimizer.warmup_steps=0")
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out, *options)
    assert done.status == 1
    assert done.error.startswith("training diverged at step 2: the ")
    assert "no checkpoint had been written yet" in done.error
    assert "optimizer.lr" in done.error
    assert records(out)[-1]["step"] == 2
    assert not (out / "model.safetensors").exists()


def test_divergence_keeps_the_last_good_checkpoint_and_model(whole, text, recipe, cli, spawn, tmp_path, monkeypatch):
    """The weights turn to NaN in step 7; the evaluation of step 5 stays, and the run goes on from there."""
    out = tmp_path / "run"
    real = loop.Run._one_step

    def one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        if step == 6:
            self.model.wte.weight = self.model.wte.weight * mx.nan
        return real(self, step, rate, now)

    monkeypatch.setattr(loop.Run, "_one_step", one_step)
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out)
    monkeypatch.undo()
    assert done.status == 1
    assert "diverged at step 7: the loss is nan" in done.error
    assert str(out / "training" / "checkpoint-00000005") in done.error
    assert records(out)[-1]["loss"] is None
    weights.load(out)
    assert spawn("train", "--out", out, "--resume").status == 0
    assert_same(out, whole["gpt2"])


@pytest.mark.parametrize("what", ["no number", "a spike"])
def test_a_roll_back_goes_on_from_the_checkpoint_with_half_the_rate(what, text, recipe, cli, tmp_path, monkeypatch):
    """The weights are ruined once, in step 7; the checkpoint is of step 5, the evaluation's."""
    out, ruined = tmp_path / "run", []
    real = loop.Run._one_step

    def one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        if step == 6 and not ruined:
            ruined.append(rate)
            self.model.wte.weight = self.model.wte.weight * (mx.nan if what == "no number" else 1000.0)
        return real(self, step, rate, now)

    monkeypatch.setattr(loop.Run, "_one_step", one_step)
    monkeypatch.setattr(loop, "SPIKE_WINDOW", 4)
    options = ("--set", "train.on_divergence=rollback", "--set", "train.spike=2")
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out, *options)
    assert done.status == 0, done.err
    assert "back to step 5 with 0.5 of the learning rate" in done.err
    steps = [r for r in records(out) if r["kind"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 11))
    assert steps[6]["lr"] == pytest.approx(ruined[0] / 2)
    assert all(r["loss"] < 6 for r in steps)
    assert json.loads((checkpoint.newest(out) / "state.json").read_text())["lr_scale"] == 0.5


def test_a_resumed_run_knows_the_losses_before_it(text, recipe, cli, tmp_path, monkeypatch):
    """What is a spike in an unbroken run is one in the step after it was stopped, too."""
    out, real, stopped = tmp_path / "run", loop.Run._one_step, []

    def one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        loss, norm = real(self, step, rate, now)
        if step == 5 and not stopped:
            stopped.append(step)
            signal.raise_signal(signal.SIGINT)
        return (loss + 3 if step == 6 and self.position.lr_scale == 1 else loss), norm

    monkeypatch.setattr(loop.Run, "_one_step", one_step)
    options = ("--set", "train.on_divergence=rollback", "--set", "train.spike=2", "--set", "data.validation_fraction=0")
    assert cli("train", text, "--config", recipe("gpt2"), "--out", out, *options).status == 0
    done = cli("train", "--out", out, "--resume")
    assert done.status == 0, done.err
    usual = sum(r["loss"] for r in records(out)[:7] if r["kind"] == "train") / 6
    assert f"and was {usual:.4f} in the mean of the last 6 steps; back to step 6" in done.err


def test_roll_backs_end(text, recipe, cli, tmp_path, monkeypatch):
    real = loop.Run._one_step

    def one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        loss, norm = real(self, step, rate, now)
        return (float("nan") if step == 6 else loss), norm

    monkeypatch.setattr(loop.Run, "_one_step", one_step)
    out = tmp_path / "run"
    options = ("--set", "train.on_divergence=rollback")
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out, *options)
    assert done.status == 1
    assert done.err.count("back to step 5") == 5
    assert "diverged at step 7" in done.error


def test_checkpoints_come_in_time_too(text, recipe, cli, tmp_path, monkeypatch):
    kept = []
    real = checkpoint.Writer.save
    monkeypatch.setattr(checkpoint.Writer, "save", lambda self, *a: (kept.append(a[2].step), real(self, *a)))
    options = ("--set", "train.checkpoint_minutes=1e-9", "--set", "train.keep_checkpoints=3")
    out = tmp_path / "run"
    assert cli("train", text, "--config", recipe("gpt2"), "--out", out, *options).status == 0
    assert kept == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10]  # the first step's time is compilation's
    assert [p.name[-2:] for p in checkpoint.saved(out)] == ["08", "09", "10"]


def test_a_validation_loss_that_is_no_number_overwrites_nothing(text, recipe, cli, tmp_path, monkeypatch):
    """The last step's update ruins the weights: its own loss, computed before, does not show it."""
    out = tmp_path / "run"
    real = loop.Run._one_step

    def one_step(self, step: int, rate: float, now: Shape) -> tuple[float, float]:
        result = real(self, step, rate, now)
        if step == 9:
            self.model.wte.weight = self.model.wte.weight * mx.nan
        return result

    monkeypatch.setattr(loop.Run, "_one_step", one_step)
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out)
    assert done.status == 1
    assert "diverged at step 10: the validation loss is nan" in done.error
    assert checkpoint.newest(out).name == "checkpoint-00000005"
    assert mx.isfinite(weights.load(out).wte.weight).all().item()


@pytest.mark.parametrize("limit", ["training/checkpoint-00000010", "model.safetensors"])
def test_a_full_disk_leaves_the_previous_state_whole(whole, limit, text, recipe, at_step, spawn, tmp_path):
    """Files may not grow beyond what the optimizer's, or the model's, needs: as on a disk that is full."""
    out = tmp_path / "run"
    size = (whole["gpt2"] / "model.safetensors").stat().st_size + (1000 if "checkpoint" in limit else -1000)
    kept = out / "training" / "checkpoint-00000005"  # which is written beside the steps: the disk is full after it
    wait = f"import time\nwhile not os.path.isdir({str(kept)!r}):\n    time.sleep(0.01)\n"
    shrink = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    done = at_step(6, wait + shrink, "train", text, "--config", recipe("gpt2"), "--out", out)
    assert done.status == 1
    assert f"{out / limit} could not be written (" in done.error
    assert checkpoint.newest(out).name == "checkpoint-00000005"
    assert not [p for p in out.rglob("*") if p.name.startswith(".")]
    weights.load(out)
    assert spawn("train", "--out", out, "--resume").status == 0
    assert_same(out, whole["gpt2"])


def test_without_a_validation_split_the_newest_model_is_kept(text, recipe, cli, tmp_path):
    out = tmp_path / "run"
    done = cli("train", text, "--config", recipe("gpt2"), "--out", out, "--set", "data.validation_fraction=0")
    assert done.status == 0, done.err
    evaluations = [r for r in records(out) if r["kind"] == "evaluation"]
    assert [(r["val_loss"], r["val_bpb"], r["best"]) for r in evaluations] == [(None, None, True)] * 2
    assert all(r["sample"] for r in evaluations)
    newest = mx.load(str(checkpoint.newest(out) / "model.safetensors"))
    assert mx.array_equal(weights.load(out).wte.weight, newest["wte.weight"])
    refused = cli("eval", "--model", out)
    assert refused.status == 1
    assert "without a validation split" in refused.error


def test_the_report_is_no_condition_of_the_run(text, recipe, at_step, tmp_path):
    out = tmp_path / "run"
    block = f"os.mkdir({str(out / 'report.html')!r})"
    done = at_step(3, block, "train", text, "--config", recipe("gpt2"), "--out", out)
    assert done.status == 1
    assert "report.html could not be written" in done.error
    assert done.out == f"model {out}\n"
    weights.load(out)
