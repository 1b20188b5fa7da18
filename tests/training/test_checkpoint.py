"""Checkpoints: bit for bit, whole or not there, one at a time."""

import json
import shutil
import threading

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxgpt import files
from mlxgpt.config import OptimizerConfig
from mlxgpt.errors import Error
from mlxgpt.models import gpt2
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import checkpoint, optimizers
from mlxgpt.training.checkpoint import Position
from mlxgpt.training.step import make_step

CONFIG = gpt2.Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2)
BATCH = mx.array(np.random.default_rng(0).integers(0, 20, (4, 8)).astype(np.int32))


def make(seed: int = 0, kind="adamw"):
    mx.random.seed(seed)
    model = gpt2.Model(CONFIG)
    model.init_weights()
    return model, optimizers.make(OptimizerConfig(kind=kind))


def stepper(model, optimizer):
    return lambda: make_step(model, optimizer, 1.0, mx.float32)([(BATCH, BATCH)])[0].item()


def content(model, optimizer) -> dict[str, bytes]:
    arrays = named_parameters(model) | dict(tree_flatten(optimizer.state))
    return {name: bytes(memoryview(np.array(a)).cast("B")) for name, a in arrays.items()}


def save(run, model, optimizer, position, keep=1):
    with checkpoint.Writer(run, keep) as writer:
        writer.save(model, optimizer, position)
    return checkpoint.latest(run)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "training").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_everything_comes_back_and_training_goes_on_as_if_nothing_was(kind, run):
    model, optimizer = make(kind=kind)
    step = stepper(model, optimizer)
    for _ in range(3):
        step()
    position = Position(step=3, elapsed=1.25, evaluations=1, best_loss=2.5, best_step=2)
    path = save(run, model, optimizer, position)
    again, its_optimizer = make(seed=9, kind=kind)
    assert checkpoint.restore(path, again, its_optimizer) == position
    assert content(again, its_optimizer) == content(model, optimizer)
    other = stepper(again, its_optimizer)
    assert [step(), step()] == [other(), other()]
    assert content(again, its_optimizer) == content(model, optimizer)


def test_the_newest_is_kept_and_half_written_ones_are_swept(run):
    model, optimizer = make()
    optimizer.init(model.parameters())
    with pytest.raises(Error, match="no checkpoint to resume from"):
        checkpoint.newest(run)
    (run / "training" / ".checkpoint-00000002-abc").mkdir()
    assert checkpoint.latest(run) is None
    for step in (2, 10):
        save(run, model, optimizer, Position(step=step))
    assert [p.name for p in (run / "training").iterdir()] == ["checkpoint-00000010"]
    for step in (12, 100_000_000, 100_000_001):
        save(run, model, optimizer, Position(step=step), keep=3)
    assert [p.name for p in checkpoint.saved(run)] == [
        "checkpoint-00000012", "checkpoint-100000000", "checkpoint-100000001"
    ]  # fmt: skip
    assert checkpoint.newest(run).name == "checkpoint-100000001"
    shutil.rmtree(run / "training")
    (run / "training").mkdir()
    save(run, model, optimizer, Position(step=10))
    assert checkpoint.newest(run) == run / "training" / "checkpoint-00000010"


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(run, monkeypatch):
    model, optimizer = make()
    step = stepper(model, optimizer)
    step()
    expected, go = content(model, optimizer), threading.Event()
    real = mx.save_safetensors

    def slow(path: str, arrays: dict) -> None:
        assert go.wait(30)
        real(path, arrays)

    monkeypatch.setattr(mx, "save_safetensors", slow)
    with checkpoint.Writer(run) as writer:
        writer.save(model, optimizer, Position(step=1))
        for _ in range(3):
            step()
        assert checkpoint.latest(run) is None
        go.set()
    again = make(5)
    assert checkpoint.restore(checkpoint.newest(run), *again).step == 1
    assert content(*again) == expected


def test_one_flipped_bit_is_found_and_the_checkpoint_before_it_named(run):
    model, optimizer = make()
    stepper(model, optimizer)()
    for number in (1, 2):
        path = save(run, model, optimizer, Position(step=number), keep=2)
    file = path / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(Error, match=r"checkpoint-00000002 is damaged: optimizer.* go on from checkpoint-00000001"):
        checkpoint.restore(path, *make(1))
    assert checkpoint.restore(checkpoint.saved(run)[0], *make(1)).step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "other"])
def test_damage_is_one_clear_line(run, name, damage):
    model, optimizer = make()
    stepper(model, optimizer)()
    path = save(run, model, optimizer, Position(step=1))
    file = path / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "other":  # whole, but not what belongs here
        if name.endswith(".json"):
            file.write_text(json.dumps({"step": 1, "colour": "red"}))
        else:
            mx.save_safetensors(str(file), {"x": mx.zeros(3)})
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(Error, match=r"checkpoint-00000001.*(damaged|missing|cannot be read)") as caught:
        checkpoint.restore(path, *make(1))
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_one_before_whole(run, monkeypatch):
    model, optimizer = make()
    step = stepper(model, optimizer)
    step()
    before = save(run, model, optimizer, Position(step=1))
    expected = content(model, optimizer)
    step()
    real = mx.save_safetensors

    def half(path: str, arrays: dict) -> None:
        real(path, arrays)
        if "optimizer" in path:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", half)
    with pytest.raises(Error, match=r"checkpoint-00000002 could not be written \(.*No space left"):
        save(run, model, optimizer, Position(step=2))
    assert list((run / "training").iterdir()) == [before]
    again = make(5)
    assert checkpoint.restore(before, *again).step == 1
    assert content(*again) == expected


def test_whatever_ends_the_writing_ends_the_run(run, monkeypatch):
    """Not an Error of ours: nothing may be lost in the thread that writes."""
    model, optimizer = make()
    optimizer.init(model.parameters())
    monkeypatch.setattr(checkpoint, "digest", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(run, model, optimizer, Position(step=1))
    assert list((run / "training").iterdir()) == []


def test_the_state_file_is_plain_json(run):
    model, optimizer = make()
    optimizer.init(model.parameters())
    path = save(run, model, optimizer, Position(step=4, elapsed=2.0))
    assert files.read_json(path / "state.json") == {
        "step": 4, "elapsed": 2.0, "evaluations": 0, "best_loss": None, "best_step": 0, "lr_scale": 1.0,
        "tokens": 0,
    }  # fmt: skip
