"""The learning rate, and how far a run is."""

import math

import pytest

from mlxgpt.config import OptimizerConfig, TrainConfig
from mlxgpt.training.schedule import Clock, Shape, learning_rate, shape


def rates(steps: int, **options) -> list[float]:
    config = OptimizerConfig(**{"lr": 1.0, "min_lr": 0.1, "warmup_steps": 0} | options)
    clock = Clock(steps, minutes=0.0)
    return [clock.rate(config, step) for step in range(steps + 1)]


def nanogpt(it: int, steps: int, warmup: int, lr: float, min_lr: float) -> float:
    """get_lr of nanoGPT's train.py."""
    if it < warmup:
        return lr * (it + 1) / (warmup + 1)
    ratio = (it - warmup) / (steps - warmup)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - min_lr)


@pytest.mark.parametrize(("steps", "warmup"), [(2000, 100), (10, 0), (50, 49)])
def test_cosine_is_nanogpts(steps, warmup):
    expected = [nanogpt(it, steps, warmup, 1e-3, 1e-4) for it in range(steps + 1)]
    assert rates(steps, lr=1e-3, min_lr=1e-4, warmup_steps=warmup) == pytest.approx(expected)


def test_wsd_is_flat_and_then_falls_to_its_end():
    values = rates(100, schedule="wsd", decay_fraction=0.25, warmup_steps=4)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(values[4:75]) == {1.0}
    assert values[75:] == pytest.approx([0.1 + 0.9 * (100 - s) / 25 for s in range(75, 101)])


def test_constant_only_warms_up():
    assert rates(6, schedule="constant", warmup_steps=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("decay_fraction", [0.0, 1.0])
def test_wsd_at_its_ends(decay_fraction):
    values = rates(10, schedule="wsd", decay_fraction=decay_fraction)
    assert values == pytest.approx([1 - 0.9 * decay_fraction * s / 10 for s in range(11)])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_ends_at_min_lr_by_steps_and_by_time(schedule):
    config = OptimizerConfig(lr=1.0, min_lr=0.1, warmup_steps=3, schedule=schedule)
    assert rates(1000, schedule=schedule, warmup_steps=3)[-1] == pytest.approx(0.1)
    assert learning_rate(config, 1000, 1.0) == pytest.approx(0.1)
    clock = Clock(steps=1, minutes=1.0, elapsed=60.0)
    assert clock.rate(config, 500) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_stays_a_warm_up():
    assert rates(3, warmup_steps=99)[:3] == pytest.approx([0.01, 0.02, 0.03])


WARM = TrainConfig(batch_size=4, accumulation=3, sequence_length=64, batch_warmup=0.4, sequence_warmup=0.8)


@pytest.mark.parametrize(
    ("train", "progress", "expected"),
    [
        (TrainConfig(batch_size=4, sequence_length=64), 0.0, Shape(1, 4, 64)),
        (WARM, 0.0, Shape(1, 12, 16)),  # 3 of 12 sequences, each in four
        (WARM, 0.2, Shape(1, 16, 16)),  # 6 of 12, in passes of at most 4
        (WARM, 0.39, Shape(1, 16, 16)),
        (WARM, 0.4, Shape(3, 8, 32)),
        (WARM, 0.79, Shape(3, 8, 32)),
        (WARM, 0.8, Shape(3, 4, 64)),
        (WARM, 1.0, Shape(3, 4, 64)),
        (TrainConfig(batch_size=1, sequence_length=6, batch_warmup=1.0), 0.3, Shape(1, 1, 6)),
        (TrainConfig(batch_size=2, accumulation=8, batch_warmup=1.0), 0.4, Shape(2, 2, 256)),
        (TrainConfig(batch_size=2, accumulation=8, batch_warmup=1.0), 0.9, Shape(4, 2, 256)),
    ],
)
def test_the_shape_of_a_step(train, progress, expected):
    found = shape(train, progress)
    assert found == expected
    assert found.tokens == expected.passes * expected.sequences * expected.length


def test_progress_by_steps():
    clock = Clock(steps=8, minutes=0.0)
    for _ in range(4):
        clock.count(1e6)
    assert [clock.progress(s) for s in (0, 2, 8, 9)] == [0, 0.25, 1, 1]


def test_progress_by_time_leaves_out_the_first_step_of_each_process():
    clock = Clock(steps=8, minutes=1.0)
    clock.count(500.0)  # compiles
    assert (clock.elapsed, clock.progress(1)) == (0, 0)
    clock.count(15.0)
    assert clock.progress(2) == 0.25
    resumed = Clock(steps=8, minutes=1.0, elapsed=clock.elapsed)
    resumed.count(500.0)
    assert resumed.progress(3) == 0.25
    resumed.count(45.0)
    assert resumed.progress(4) == 1.0


def test_a_pause_of_the_machine_is_no_training():
    """Asleep for eight hours in step 5: the run's minutes go on where they were."""
    clock = Clock(0, 1.0)
    for seconds in (9.0, 0.5, 0.5, 0.5, 28800.0, 0.5):
        clock.count(seconds)
    assert clock.elapsed == pytest.approx(2.5)
    assert clock.progress(5) == pytest.approx(2.5 / 60)


def test_a_pause_in_the_step_after_the_first_is_none_either():
    """There is no usual step yet: the first, which compiled, says how long one may take."""
    clock = Clock(0, 10.0)
    for seconds in (4.0, 7200.0, 0.5, 0.5):
        clock.count(seconds)
    assert clock.elapsed == pytest.approx(31.0)


def test_a_slow_step_is_no_pause():
    clock = Clock(0, 60.0)
    for seconds in (0.0, 2.0, 2.0, 39.0):
        clock.count(seconds)
    assert clock.elapsed == pytest.approx(43.0)
