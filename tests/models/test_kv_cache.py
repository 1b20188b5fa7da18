"""The key and value cache: the same attention as over the whole sequence, however it is filled."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels.attention import reference, visible

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
    np.testing.assert_array_equal(np.array(store.keys[:, :, :5]), np.array(qkv()[1][:, :, :5]))


@pytest.mark.parametrize("window", [None, 1, 3, T + 5])
def test_a_slot_attends_as_the_cache_does(window):
    store = KVCache()
    fill(store, [5], window)
    store.reserve(T - 5)
    slot = Slot(store.keys, store.values, mx.array(5))
    for t in range(5, T):
        mine, its = (fill(s, [1], window, start=t) for s in (slot, store))
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)
        slot.offset = slot.offset + 1
    np.testing.assert_array_equal(np.array(slot.keys[:, :, :T]), np.array(store.keys[:, :, :T]))
    np.testing.assert_array_equal(np.array(slot.values[:, :, :T]), np.array(store.values[:, :, :T]))


@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_a_trimmed_cache_goes_on_as_if_it_had_never_seen_more(kept):
    store, fresh = KVCache(), KVCache()
    fill(store, [11], 3)
    store.trim(kept)
    store.keys[:, :, kept:] = 100  # what is forgotten may be anything
    store.values[:, :, kept:] = 100
    if kept:
        fill(fresh, [kept], 3)
    mine, its = (fill(s, [3, 1], 3, start=kept) for s in (store, fresh))
    np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [-1, 6])
def test_a_cache_cannot_be_trimmed_to_what_it_does_not_have(offset):
    store = KVCache()
    fill(store, [5], None)
    with pytest.raises(ValueError, match=f"cannot trim a cache of 5 positions to {offset}"):
        store.trim(offset)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_a_cache_holds_the_type_it_is_given(dtype):
    q, k, v = (x.astype(dtype) for x in qkv())
    store = KVCache()
    out = store.attend(q, k, v, SCALE)
    slot = Slot(store.keys, store.values, mx.array(T))
    last = slot.attend(q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], SCALE)
    assert {x.dtype for x in (store.keys, store.values, slot.keys, slot.values, out, last)} == {dtype}
