"""Batches: a pure function of (seed, step), each window once an epoch; evaluation sees every token once."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxgpt.data.batches import Batches, in_order, shuffled
from mlxgpt.errors import Error


@given(n=st.integers(1, 700), seed=st.integers(0, 2**40))
def test_shuffled_is_a_permutation(n, seed):
    assert sorted(shuffled(i, n, seed) for i in range(n)) == list(range(n))


@given(index=st.integers(0, 10**15 - 1), seed=st.integers(0, 2**40))
def test_shuffled_stays_in_a_range_of_any_size(index, seed):
    assert 0 <= shuffled(index, 10**15, seed) < 10**15


def test_shuffled_sends_every_index_everywhere_about_equally_often():
    n, seeds = 10, 2000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        for i in range(n):
            counts[i, shuffled(i, n, seed)] += 1
    spread = (counts * n / seeds).std()
    assert spread < 0.11, "ideal draws are off by 0.07; two rounds of the network instead of four, by 0.23"


def starts_of(batches: Batches, epoch: int) -> list[int]:
    """Where the windows of one epoch begin, for a corpus whose tokens are their own positions."""
    return [int(batches._row(epoch * batches.windows + i)[0]) for i in range(batches.windows)]


sizes = st.tuples(st.integers(2, 400), st.integers(1, 40)).filter(lambda size: size[0] > size[1])


@given(size=sizes, seed=st.integers(0, 2**33), epoch=st.integers(0, 5))
def test_an_epoch_visits_disjoint_windows_once(size, seed, epoch):
    n, length = size
    batches = Batches(np.arange(n, dtype=np.uint16), 1, length, seed)
    starts = sorted(starts_of(batches, epoch))
    assert starts == list(range(starts[0], starts[0] + batches.windows * length, length))
    assert starts[0] >= 0
    assert starts[-1] + length < n
    left_out = n - 1 - batches.windows * length
    assert left_out < 2 * length, "no more than the room that moving the windows needs"


def test_every_epoch_cuts_elsewhere_and_in_another_order():
    batches = Batches(np.arange(10_001, dtype=np.uint16), 1, 100, seed=3)
    epochs = [starts_of(batches, e) for e in range(100)]
    assert len({min(starts) for starts in epochs}) == 100, "as many offsets as there are"
    assert len({tuple(start // 100 for start in starts) for starts in epochs}) == 100
    assert all(starts != sorted(starts) for starts in epochs)


def test_batch_is_a_pure_function_of_seed_and_step():
    tokens = np.arange(5000, dtype=np.uint16)
    batches = Batches(tokens, 4, 16, seed=7)
    steps = list(range(200))
    first = {step: batches.batch(step) for step in steps}
    random.Random(0).shuffle(steps)
    again = Batches(tokens, 4, 16, seed=7)
    for step in steps:
        for one, two in zip(first[step], again.batch(step), strict=True):
            assert np.array_equal(one, two)
    other = Batches(tokens, 4, 16, seed=8)
    assert not all(np.array_equal(first[s][0], other.batch(s)[0]) for s in steps)
    assert not np.array_equal(first[0][0], first[1][0])


def test_batches_go_through_the_epochs_without_a_gap():
    batches = Batches(np.arange(1001, dtype=np.uint32), 3, 10, seed=1)
    rows = [int(row[0]) for step in range(2 * batches.windows) for row in batches.batch(step)[0]]
    expected = [start for epoch in range(6) for start in starts_of(batches, epoch)]
    assert rows == expected


def test_targets_are_the_tokens_that_follow():
    tokens = np.arange(60_000, 65_536, dtype=np.uint16)
    inputs, targets = Batches(tokens, 5, 32, seed=0).batch(11)
    assert inputs.shape == targets.shape == (5, 32)
    assert inputs.dtype == targets.dtype == np.int32
    assert np.array_equal(inputs + 1, targets)
    assert inputs.min() >= 60_000, "uint16 tokens do not become negative"


@pytest.mark.parametrize(("n", "batch", "length"), [(0, 1, 4), (1, 1, 4), (4, 1, 4), (40, 12, 4), (16, 4, 4)])
def test_a_corpus_too_small_for_one_batch_is_an_error(n, batch, length):
    with pytest.raises(Error, match=f"too small: {n} training tokens do not fill one batch of {batch} sequences") as e:
        Batches(np.zeros(n, np.uint16), batch, length, 0)
    assert "\n" not in str(e.value)


def test_the_smallest_corpus_is_one_window():
    inputs, targets = Batches(np.arange(5, dtype=np.uint16), 1, 4, 0).batch(9)
    assert (inputs.tolist(), targets.tolist()) == ([[0, 1, 2, 3]], [[1, 2, 3, 4]])


@given(n=st.integers(0, 300), batch=st.integers(1, 5), length=st.integers(1, 20))
def test_in_order_has_every_target_once(n, batch, length):
    tokens = np.arange(100, 100 + n, dtype=np.uint16)
    seen: list[int] = []
    for inputs, targets, weights in in_order(tokens, batch, length):
        assert inputs.shape == targets.shape == weights.shape == (batch, length)
        assert (inputs.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
        assert set(weights.ravel()) <= {0.0, 1.0}
        counted = weights == 1
        assert counted.any(), "no batch of padding alone"
        assert np.array_equal(inputs[counted] + 1, targets[counted])
        seen += targets[counted].tolist()
    assert seen == list(range(101, 100 + n))
