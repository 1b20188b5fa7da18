"""The key and value cache: the same attention as over the whole sequence, however it is filled."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels.attention import reference, visible

from mlxgpt.errors import UsageError
from mlxgpt.models import cache
from mlxgpt.models.cache import KVCache, Slot

T, SCALE = 19, 0.5


def qkv() -> tuple[mx.array, mx.array, mx.array]:
    shapes = (2, 4, T, 6), (2, 2, T, 6), (2, 2, T, 6)
    q, k, v = (mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes))
    return q, k, v


def fill(store: KVCache | Slot, sizes: list[int], window: int | None, start: int = 0) -> mx.array:
    q, k, v = qkv()
    outs = []
    for size in sizes:
        at = slice(start, start + size)
        outs.append(store.attend(q[:, :, at], k[:, :, at], v[:, :, at], SCALE, window))
        start += size
    return mx.concatenate(outs, axis=2)


@pytest.fixture(autouse=True)
def small_step(monkeypatch):
    monkeypatch.setattr(cache, "STEP", 4)


@pytest.mark.parametrize("window", [None, 1, 3, T, T + 5])
@pytest.mark.parametrize("sizes", [[T], [1] * T, [4, 4, 1, 7, 3], [5, 14]], ids=str)
def test_attention_through_the_cache_is_that_over_all(sizes, window):
    store = KVCache()
    out = fill(store, sizes, window)
    expected = reference(*qkv(), SCALE, visible(T, T, window))
    np.testing.assert_allclose(np.array(out), np.array(expected), rtol=1e-5, atol=1e-6)
    assert store.offset == T
    assert T <= store.capacity < T + 4


def test_capacity_grows_by_whole_steps_and_only_when_full():
    store = KVCache()
    fill(store, [3], None)
    assert store.capacity == 4
    fill(store, [1], None, start=3)
    assert store.capacity == 4
    fill(store, [1], None, start=4)
    assert store.capacity == 8
    store.reserve(3)
    assert store.capacity == 8
    store.reserve(12)
    assert (store.capacity, store.offset) == (20, 5)
    for buffer, given in zip(store.buffers, qkv()[1:], strict=True):
        np.testing.assert_array_equal(np.array(buffer[:, :, :5]), np.array(given[:, :, :5]))


@pytest.mark.parametrize("window", [None, 1, 3, T + 5])
def test_a_slot_attends_as_the_cache_does(window):
    store = KVCache()
    fill(store, [5], window)
    store.reserve(T - 5)
    slot = Slot(store.buffers, mx.array([5, 5]))
    for t in range(5, T):
        mine, its = (fill(s, [1], window, start=t) for s in (slot, store))
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)
        slot.offset = slot.offset + 1
    for mine, its in zip(slot.buffers, store.buffers, strict=True):
        np.testing.assert_array_equal(np.array(mine[:, :, :T]), np.array(its[:, :, :T]))


@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_a_trimmed_cache_goes_on_as_if_it_had_never_seen_more(kept):
    store, fresh = KVCache(), KVCache()
    fill(store, [11], 3)
    store.trim(kept)
    for buffer in store.buffers:
        buffer[:, :, kept:] = 100  # what is forgotten may be anything
    if kept:
        fill(fresh, [kept], 3)
    mine, its = (fill(s, [3, 1], 3, start=kept) for s in (store, fresh))
    np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [-1, 6])
def test_a_cache_cannot_be_trimmed_to_what_it_does_not_have(offset):
    store = KVCache()
    fill(store, [5], None)
    with pytest.raises(ValueError, match=f"cannot trim a cache of positions 0 to 5 to {offset}"):
        store.trim(offset)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_a_cache_holds_the_type_it_is_given(dtype):
    q, k, v = (x.astype(dtype) for x in qkv())
    store = KVCache()
    out = store.attend(q, k, v, SCALE)
    store.reserve(1)
    slot = Slot(store.buffers, mx.array([T, T]))
    last = slot.attend(q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], SCALE)
    assert {x.dtype for x in (*store.buffers, *slot.buffers, out, last)} == {dtype}


SLACK = 6


def roundtrip(x: mx.array, bits: int | None) -> mx.array:
    """What a cache makes of keys and values."""
    if bits is None:
        return x
    group = 64 if x.shape[-1] % 64 == 0 else 32
    return mx.dequantize(*mx.quantize(x, group_size=group, bits=bits), group_size=group, bits=bits)


class Checked:
    """A cache that compares every answer with attention over all that it should hold."""

    def __init__(self, window: int | None, bits: int | None = None, D: int = 32, seed: int = 0) -> None:
        self.cache, self.window, self.bits, self.D = KVCache(window, bits), window, bits, D
        self.keys = self.values = mx.zeros((1, 2, 0, D))
        self.random = np.random.default_rng(seed)

    def draw(self, heads: int, T: int) -> mx.array:
        return mx.array(self.random.standard_normal((1, heads, T, self.D)).astype(np.float32))

    def append(self, T: int, step: bool = False) -> None:
        """Give it T positions, through a slot as a compiled step does if `step`."""
        q, k, v = self.draw(4, T), self.draw(2, T), self.draw(2, T)
        at, store = self.cache.offset, self.cache
        self.keys = mx.concatenate([self.keys[:, :, :at], roundtrip(k, self.bits)], axis=2)
        self.values = mx.concatenate([self.values[:, :, :at], roundtrip(v, self.bits)], axis=2)
        if step and store.buffers:
            store.reserve(1)
            slot = Slot(store.buffers, mx.array([at]), self.bits)
            out = slot.attend(q, k, v, SCALE, self.window)
            store.buffers, store.offset = slot.buffers, at + 1
        else:
            out = store.attend(q, k, v, SCALE, self.window)
        expected = reference(q, self.keys, self.values, SCALE, visible(T, at + T, self.window))
        np.testing.assert_allclose(np.array(out), np.array(expected), rtol=1e-4, atol=1e-5)
        assert store.offset == at + T


@pytest.fixture
def small_slack(monkeypatch):
    monkeypatch.setattr(cache, "SLACK", SLACK)


WAYS = {"steps": [1], "chunks": [SLACK], "both": [4, 1, 1, SLACK, 1, 2, 3, 1]}


@pytest.mark.parametrize("first", [-1, 0, 1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [1, 5, 8])
def test_a_rolling_cache_is_all_there_is_to_see_and_no_larger(window, way, first, small_slack):
    """From a prompt of window - 1, window and window + 1 positions on, until the ring has come around twice."""
    checked = Checked(window)
    prompt, turn = window + first, 0
    while prompt > 0:
        checked.append(min(prompt, SLACK))
        prompt -= SLACK
    while checked.cache.offset < 3 * (window + SLACK) + 1:
        T = WAYS[way][turn % len(WAYS[way])]
        checked.append(T, step=T == 1)
        turn += 1
        assert checked.cache.capacity <= window + SLACK
    assert checked.cache.capacity == window + SLACK


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("window", [None, 1, 5, 8])
def test_trims_steps_and_chunks_in_any_order(window, bits, small_slack):
    """Also trims after trims, to the oldest place there is, and on past the place where the ring comes around."""
    checked, random = Checked(window, bits, seed=1), np.random.default_rng(2)
    store = checked.cache
    trims = 0
    for _ in range(120):
        T = int(random.integers(1, SLACK + 1))
        checked.append(T, step=T == 1)
        while random.random() < 0.4:
            oldest = store.oldest()
            to = oldest if random.random() < 0.3 else int(random.integers(oldest, store.offset + 1))
            store.trim(to)
            trims += 1
            assert store.oldest() == oldest  # what was written is not undone
    assert trims > 40
    assert window is None or store.offset > 3 * (window + SLACK)


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_a_rolling_cache_goes_back_by_its_slack_and_no_further(extra, small_slack):
    checked = Checked(4)
    for _ in range(10 + extra):
        checked.append(1)
    full = 10 + extra > 4 + SLACK
    assert checked.cache.oldest() == (10 + extra - SLACK if full else 0)
    checked.cache.trim(checked.cache.oldest() + 1)
    with pytest.raises(ValueError, match=f"cannot trim a cache of positions {checked.cache.oldest()} to "):
        checked.cache.trim(checked.cache.oldest() - 1)
    checked.append(3)
    checked.cache.clear()
    assert (checked.cache.oldest(), checked.cache.offset, checked.cache.capacity) == (0, 0, 0)
    checked.append(2)


def test_a_rolling_cache_refuses_more_at_once_than_its_slack(small_slack):
    with pytest.raises(ValueError, match="a rolling cache takes at most 6 positions at once, not 7"):
        Checked(4).append(7)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("D", [32, 64, 96, 128])
def test_a_quantized_cache_attends_over_what_quantizing_leaves(D, bits, small_slack):
    for window in (None, 3):
        checked = Checked(window, bits, D)
        for T in (5, 1, 1, 4, 1, 6, 1):
            checked.append(T, step=T == 1)
        unquantized = 19 if window is None else 3 + SLACK
        assert sum(b.nbytes for b in checked.cache.buffers) < 2 * 2 * (unquantized + 3) * D * (bits / 8 + 8 / 32 + 0.01)


@pytest.mark.parametrize("D", [6, 48, 80])
def test_a_head_that_cannot_be_quantized_in_groups_is_refused(D):
    with pytest.raises(UsageError, match=f"needs heads of a multiple of 32 numbers; this model's have {D}"):
        KVCache(bits=8).attend(*[mx.ones((1, 2, 1, D))] * 3, SCALE)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("window", [None, 5])
def test_rows_at_different_positions_step_as_each_alone(window, bits, small_slack):
    """Of a rolling cache some rows have come around and some have not."""
    rows = [Checked(window, bits, seed=i) for i in range(3)]
    for row, length in zip(rows, (1, 8, 13), strict=True):
        for _ in range(length):
            row.append(1)
        row.cache.reserve(20 - length if window is None else 11 - min(length, 11))
    buffers = [mx.concatenate(list(parts), axis=0) for parts in zip(*(r.cache.buffers for r in rows), strict=True)]
    positions = mx.array([r.cache.offset for r in rows])
    for _ in range(7):
        q, k, v = (mx.concatenate([r.draw(h, 1) for r in rows]) for h in (4, 2, 2))
        together = Slot(buffers, positions, bits)
        out = together.attend(q, k, v, SCALE, window)
        for i, row in enumerate(rows):
            at = slice(i, i + 1)
            alone = row.cache.attend(q[at], k[at], v[at], SCALE, window)
            np.testing.assert_allclose(np.array(out[at]), np.array(alone), rtol=1e-4, atol=1e-5)
        buffers, positions = together.buffers, positions + 1
