"""Batches: a pure function of (seed, step), each window once an epoch; evaluation sees every token once."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxgpt.data import fim
from mlxgpt.data.batches import Batches, Stream, in_order, shuffled
from mlxgpt.data.fim import Infilling
from mlxgpt.errors import Error
from mlxgpt.tokenizer import FIM, CharTokenizer

BYTES = CharTokenizer("", extra=FIM)


def one_corpus(tokens: np.ndarray, batch_size: int, length: int, seed: int) -> Batches:
    return Batches([Stream(tokens, length, seed)], batch_size)


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
    windows = batches.streams[0].windows
    return [int(batches.row(epoch * windows + i).tokens[0]) for i in range(windows)]


sizes = st.tuples(st.integers(2, 400), st.integers(1, 40)).filter(lambda size: size[0] > size[1])


@given(size=sizes, seed=st.integers(0, 2**33), epoch=st.integers(0, 5))
def test_an_epoch_visits_disjoint_windows_once(size, seed, epoch):
    n, length = size
    batches = one_corpus(np.arange(n, dtype=np.uint16), 1, length, seed)
    starts = sorted(starts_of(batches, epoch))
    assert starts == list(range(starts[0], starts[0] + batches.streams[0].windows * length, length))
    assert starts[0] >= 0
    assert starts[-1] + length < n
    left_out = n - 1 - batches.streams[0].windows * length
    assert left_out < 2 * length, "no more than the room that moving the windows needs"


def test_every_epoch_cuts_elsewhere_and_in_another_order():
    batches = one_corpus(np.arange(10_001, dtype=np.uint16), 1, 100, seed=3)
    epochs = [starts_of(batches, e) for e in range(100)]
    assert len({min(starts) for starts in epochs}) == 100, "as many offsets as there are"
    assert len({tuple(start // 100 for start in starts) for starts in epochs}) == 100
    assert all(starts != sorted(starts) for starts in epochs)


def test_batch_is_a_pure_function_of_seed_and_step():
    tokens = np.arange(5000, dtype=np.uint16)
    batches = one_corpus(tokens, 4, 16, seed=7)
    steps = list(range(200))
    first = {step: batches.batch(step) for step in steps}
    random.Random(0).shuffle(steps)
    again = one_corpus(tokens, 4, 16, seed=7)
    for step in steps:
        for one, two in zip(first[step], again.batch(step), strict=True):
            assert np.array_equal(one, two)
    other = one_corpus(tokens, 4, 16, seed=8)
    assert not all(np.array_equal(first[s][0], other.batch(s)[0]) for s in steps)
    assert not np.array_equal(first[0][0], first[1][0])


def test_a_batch_in_another_shape_has_the_same_rows_cut_or_left_out():
    batches = one_corpus(np.arange(5000, dtype=np.uint16), 4, 16, seed=7)
    inputs, targets = batches.batch(3)
    for array, part, cut in zip((inputs, targets), batches.batch(3, 2, 16), batches.batch(3, 16, 4), strict=True):
        assert np.array_equal(part, array[:2])
        assert np.array_equal(cut, array.reshape(16, 4))
    both = batches.batch(3, 4, 8)
    assert np.array_equal(both[0], inputs[:2].reshape(4, 8))
    assert np.array_equal(both[0] + 1, both[1]), "a target is the token that follows, also where a row is cut"


def test_documents_stay_apart_where_rows_are_cut():
    tokens, starts = corpus(*[30] * 40)
    batches = Batches([Stream(tokens, 64, 1, starts)], 4, isolated=True)
    inputs, _, documents = batches.batch(0)
    cut, _, pieces = batches.batch(0, 16, 16)
    assert np.array_equal(pieces.reshape(4, 64), documents)
    assert np.array_equal(cut.reshape(4, 64), inputs)


def test_batches_go_through_the_epochs_without_a_gap():
    batches = one_corpus(np.arange(1001, dtype=np.uint32), 3, 10, seed=1)
    rows = [int(row[0]) for step in range(2 * batches.streams[0].windows) for row in batches.batch(step)[0]]
    expected = [start for epoch in range(6) for start in starts_of(batches, epoch)]
    assert rows == expected


def test_targets_are_the_tokens_that_follow():
    tokens = np.arange(60_000, 65_536, dtype=np.uint16)
    inputs, targets = one_corpus(tokens, 5, 32, seed=0).batch(11)
    assert inputs.shape == targets.shape == (5, 32)
    assert inputs.dtype == targets.dtype == np.int32
    assert np.array_equal(inputs + 1, targets)
    assert inputs.min() >= 60_000, "uint16 tokens do not become negative"


@pytest.mark.parametrize(("n", "batch", "length"), [(0, 1, 4), (1, 1, 4), (4, 1, 4), (40, 12, 4), (16, 4, 4)])
def test_a_corpus_too_small_for_one_batch_is_an_error(n, batch, length):
    with pytest.raises(Error, match=f"too small: {n} training tokens do not fill one batch of {batch} sequences") as e:
        one_corpus(np.zeros(n, np.uint16), batch, length, 0)
    assert "\n" not in str(e.value)


def test_the_smallest_corpus_is_one_window():
    inputs, targets = one_corpus(np.arange(5, dtype=np.uint16), 1, 4, 0).batch(9)
    assert (inputs.tolist(), targets.tolist()) == ([[0, 1, 2, 3]], [[1, 2, 3, 4]])


def corpus(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents of letters, opened and closed: their tokens, and where they begin."""
    draw, documents = random.Random(3), []
    for number, length in enumerate(lengths):
        text = "".join(draw.choice("abcdefgh \n") for _ in range(length)) + f"<{number}>"
        documents.append(BYTES.document(text))
    return np.concatenate(documents).astype(np.uint16), np.cumsum([0] + [len(d) for d in documents[:-1]])


LENGTHS = (300, 3, 40, 700, 5, 5, 120, 260, 31, 90)


@given(rate=st.sampled_from([0.0, 0.5, 1.0]), spm=st.sampled_from([0.0, 0.5, 1.0]), step=st.integers(0, 10**6))
@settings(deadline=None)
def test_rows_are_full_and_a_function_of_seed_and_number_whatever_is_rearranged(rate, spm, step):
    tokens, starts = corpus(*LENGTHS)
    made = [
        Batches([Stream(tokens, 64, seed, starts)], 3, Infilling(BYTES, rate, spm), isolated=True) for seed in (5, 5, 6)
    ]
    one, two, other = (batches.batch(step) for batches in made)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert {a.shape for a in one} == {(3, 64)}
    assert {a.dtype for a in one} == {np.dtype(np.int32)}
    assert np.array_equal(one[0][:, 1:], one[1][:, :-1])


@given(index=st.integers(0, 10**6), spm=st.sampled_from([0.0, 1.0]))
@settings(deadline=None)
def test_a_rearranged_row_holds_pieces_of_its_documents(index, spm):
    tokens, starts = corpus(*LENGTHS)
    stream = Stream(tokens, 100, 1, starts)
    row = Batches([stream], 1, Infilling(BYTES, 1.0, spm)).row(index)
    assert len(row.documents) == row.pieces[-1] + 1
    for number, document in enumerate(row.documents):
        ids, parts = (a[row.pieces == number].tolist() for a in (row.tokens, row.parts))
        whole = BYTES.decode(tokens[starts[document] : stream.end(document)].tolist())
        text = fim.restore(BYTES, ids, parts) if fim.CONTROL in parts else BYTES.decode(ids)
        assert text in whole
        assert (fim.CONTROL in parts) == (fim.TEXT not in parts)
        assert fim.CONTROL not in parts or ids[-1] == BYTES.eos_id
        assert fim.CONTROL in parts or len(ids) < fim.SHORTEST or number == row.pieces[-1], "all that are long enough"


def test_without_documents_to_tell_apart_a_batch_is_inputs_and_targets():
    tokens, starts = corpus(5000, 40)
    whole = Batches([Stream(tokens, 16, 0, starts)], 1, isolated=True)
    apart = [whole.batch(step) for step in range(whole.streams[0].windows)]
    assert {len(batch) for batch in apart} == {2, 3}
    for batch in (batch for batch in apart if len(batch) == 3):
        inputs, _, documents = batch
        begins = np.flatnonzero(inputs[0] == BYTES.bos_id)
        assert np.array_equal(np.flatnonzero(np.diff(documents[0])) + 1, begins[begins > 0])
    assert all(len(Batches([Stream(tokens, 16, 0, starts)], 1).batch(step)) == 2 for step in range(300))


@settings(deadline=None)
@given(shares=st.lists(st.sampled_from(["1/5", "0.3", "1/7", "0.01"]), min_size=1, max_size=3))
def test_others_give_their_share_of_the_rows_evenly_spread_and_each_in_its_own_order(shares):
    streams = [Stream(np.full(500, 0, np.uint16), 4, 0)]
    streams += [Stream(np.full(300, i, np.uint16), 4, 0, share=Fraction(s)) for i, s in enumerate(shares, 1)]
    batches = Batches(streams, 5)
    places = [batches.place(index) for index in range(1000)]
    for number in range(len(streams)):
        within = [k for stream, k in places if stream == number]
        assert within == list(range(len(within))), "none is left out and none comes twice"
        if number:
            assert abs(len(within) - 1000 * Fraction(shares[number - 1])) <= len(shares)
    for index in range(0, 1000, 37):
        row = batches.row(index)
        assert set(row.tokens.tolist()) == {places[index][0]} == {row.stream}


def test_a_corpus_to_mix_in_needs_one_row():
    main = Stream(np.zeros(500, np.uint16), 10, 0)
    Batches([main, Stream(np.zeros(11, np.uint16), 10, 0, share=Fraction(1, 2))], 8)
    with pytest.raises(Error, match="the corpus to mix in is too small: 10 training tokens do not fill one sequence"):
        Batches([main, Stream(np.zeros(10, np.uint16), 10, 0, share=Fraction(1, 2))], 8)


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
