"""Which model is proposed: the rule over text, time and memory, with the speed of a machine that is made up."""

import pytest

from mlxgpt import backend
from mlxgpt.setup import proposal
from mlxgpt.setup.proposal import SIZES, Proposal, enough_for, parameters, propose

COUNTS = [parameters(size) for size in SIZES]


@pytest.fixture
def machine(monkeypatch):
    """Sets the arithmetic that this machine does, in FLOP/s (6 a parameter and token), and tells what was measured."""
    measured = []

    def set_to(flops: float) -> list:
        def of(size, tokens, minutes):
            count = parameters(size)
            measured.append(size)
            return Proposal(size, count, minutes, tokens, flops / (6 * count))

        monkeypatch.setattr(proposal, "_measured", of)
        return measured

    return set_to


def test_the_sizes_grow_and_can_be_trained():
    assert sorted(COUNTS) == COUNTS
    assert COUNTS[0] < 2e6
    assert 10e6 <= COUNTS[2] <= 30e6  # autocomplete
    for size in SIZES:
        recipe = size.load()
        assert recipe.train.sequence_length <= recipe.model["max_position_embeddings"]


def test_time_buys_size(machine):
    machine(100e9)
    chosen = [propose(100_000_000, minutes).parameters for minutes in (1, 10, 100, 1000, 10_000, 100_000)]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (COUNTS[0], COUNTS[-1])
    # 1,000 minutes at 100 GFLOP/s: sqrt(6e15 / 120) = 7.1M parameters is where 20 tokens a parameter are seen.
    assert chosen[3] == max(count for count in COUNTS if count <= 7.1e6)


def test_text_limits_size_whatever_the_time(machine):
    machine(1e15)
    for tokens in (50_000, 5_000_000, 20_000_000, 500_000_000):
        count = propose(tokens, 600).parameters
        assert count == max([c for c in COUNTS if c <= 16 * tokens / 20], default=COUNTS[0])


def test_what_is_seen_is_limited_by_time_and_by_text():
    assert enough_for(1000, 2000) == 100
    assert enough_for(1000, 1e9) == 800


def test_memory_limits_size(machine, monkeypatch):
    machine(1e15)
    monkeypatch.setattr(backend, "total_memory", lambda: 1 << 30)
    assert propose(500_000_000, 600).parameters < COUNTS[-1]


def test_no_larger_one_is_measured_than_could_be_chosen(machine):
    assert machine(100e9) == []
    measured = machine(100e9)
    propose(100_000_000, 1)
    assert measured == [SIZES[0]]


def test_speed_is_measured_in_real_steps():
    found = propose(30_000, 0.1)
    assert found.size == SIZES[0]
    assert found.parameters == COUNTS[0]
    assert found.tokens_per_second > 0
    assert "1.1M parameters (tiny): in 0.1 minutes" in str(found)
