"""Requests that join and leave between tokens: each reads what it would alone."""

import dataclasses
import random

import numpy as np
import pytest

from mlxgpt.errors import Error
from mlxgpt.generation import continuous, engine
from mlxgpt.generation.continuous import Batch, Member
from mlxgpt.generation.engine import Decoder, Request, collect
from mlxgpt.generation.sampling import Sampling
from mlxgpt.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijklmnopq", byte_fallback=False)
KINDS = [
    Request(20, logprobs=2),
    Request(9, Sampling(1.0, top_k=9), seed=7),
    Request(12, Sampling(0.8, repetition_penalty=1.4), seed=2),
    Request(1),
    Request(15, Sampling(1.5), stops=["ab", "q"], seed=1),
    Request(0),
]


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 17, length).tolist()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(continuous, "PIECE", 6)


def alone(model, given, request):
    return collect(engine.generate(model, LETTERS, given, request, Decoder(model)))


def run(batch: Batch, arriving: dict[int, list[tuple[list[int], Request]]]) -> dict[Member, list]:
    """Steps until all have left; `arriving` says who joins before which step."""
    pieces: dict[Member, list] = {}
    for step in range(400):
        for given, request in arriving.pop(step, []):
            pieces[batch.join(given, request)] = []
        for member, piece in batch.step():
            pieces[member].append(piece)
        if not arriving and not len(batch):
            return pieces
    raise AssertionError("some never ended")


def assert_as_alone(model, member: Member, told: list) -> None:
    assert told[0] is None
    expected = alone(model, member.prompt, member.request)
    assert "".join(p.text for p in told[1:]) == expected.text
    assert [p.choice.token for p in told[1:]] == expected.token_ids
    assert [p.finish_reason for p in told[1:-1]] == [None] * (len(told) - 2)
    assert (told[-1].finish_reason if told[1:] else "length") == expected.finish_reason
    for mine, its in zip(told[1:], expected.choices, strict=True):
        assert mine.choice.logprob == pytest.approx(its.logprob, abs=1e-3)
        assert [t for t, _ in mine.choice.top] == [t for t, _ in its.top]


@pytest.mark.parametrize("seed", range(3))
def test_each_reads_what_it_would_alone_whenever_it_joins(tiny, small_steps, seed):
    draw = random.Random(seed)
    arriving: dict[int, list] = {}
    for i in range(12):
        arriving.setdefault(draw.randrange(25), []).append((prompt(i, draw.randrange(1, 70)), draw.choice(KINDS)))
    told = run(Batch(tiny, LETTERS, rows=20), arriving)
    assert len(told) == 12
    for member, pieces in told.items():
        assert_as_alone(tiny, member, pieces)


def test_the_context_ends_a_row_and_not_the_others(tiny, small_steps):
    told = run(Batch(tiny, LETTERS), {0: [(prompt(1, 88), Request(20)), (prompt(2, 3), Request(60))]})
    lengths = []
    for member, pieces in told.items():
        assert_as_alone(tiny, member, pieces)
        lengths.append(len(pieces) - 1)
    assert lengths == [3, 60]


def test_who_leaves_takes_nothing_from_the_others(tiny, small_steps):
    batch = Batch(tiny, LETTERS)
    members = [batch.join(prompt(i, 5 + 9 * i), Request(30)) for i in range(4)]
    told: dict[Member, list] = {member: [] for member in members}
    for step in range(60):
        if step == 3:
            batch.leave(members[3])  # whose prompt is not computed yet
        if step == 9:
            batch.leave(members[0])
            batch.leave(members[0])  # again, which changes nothing
        for member, piece in batch.step():
            told[member].append(piece)
    assert len(batch) == 0
    assert 0 < len(told[members[0]]) < 31
    assert told[members[3]] == []
    for member in members[1:3]:
        assert_as_alone(tiny, member, told[member])


def test_what_prompts_share_is_computed_once(tiny, small_steps):
    batch = Batch(tiny, LETTERS)
    first = prompt(1, 40)
    longer, other = first + prompt(2, 7), prompt(3, 40)
    cached = {}
    for name, given in (("first", first), ("longer", longer), ("again", longer), ("other", other), ("first", first)):
        (told,) = run(batch, {0: [(given, Request(6))]}).items()
        assert_as_alone(tiny, *told)
        cached[name] = told[0].cached
    assert cached["longer"] in (40, 0)  # a rolling cache may have overwritten what going back would need
    assert cached["again"] in (46, 0)
    assert cached["other"] == 0
    if tiny.config.context == 90 and getattr(tiny.config, "sliding_window", None) is None:
        assert (cached["longer"], cached["again"], cached["first"]) == (40, 46, 39)


def test_prompts_are_kept_in_a_memory_budget(tiny):
    batch = Batch(tiny, LETTERS, memory=0)
    for _ in range(2):
        (member,) = run(batch, {0: [(prompt(1, 30), Request(2))]})
        assert member.cached == 0


def test_what_does_not_fit_is_refused_and_the_rest_goes_on(tiny):
    batch = Batch(tiny, LETTERS, rows=2)
    batch.join(prompt(1, 4), Request(3))
    with pytest.raises(Error, match=r"^91 tokens do not fit the model's context of 90"):
        batch.join(prompt(2, 91), Request(5))
    with pytest.raises(Error, match=r"^the prompt is empty"):
        batch.join([], Request(5))
    assert not batch.full
    batch.join(prompt(2, 90), Request(5))
    assert batch.full
    assert len(run_out(batch)) == 3 + 1 + 2


def run_out(batch: Batch) -> list:
    told = []
    while len(batch):
        told += batch.step()
    return told


def test_a_request_is_not_changed(tiny):
    request = Request(500, stops=["x"])
    run(Batch(tiny, LETTERS), {0: [(prompt(1, 80), request)]})
    assert request == dataclasses.replace(request, max_tokens=500)
