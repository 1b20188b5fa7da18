"""The key and value cache of one attention layer: growing, rolling within a window, quantized; and its view inside a
compiled step.

A buffer is a ring: position p lies in slot p modulo the capacity. A growing cache never comes around; a rolling one
stops growing at its window and a little more, and overwrites what no query can see.
"""

from collections.abc import Sequence
from functools import cache

import mlx.core as mx

from mlxgpt.errors import UsageError
from mlxgpt.kernels import dispatch, quantized_kv_attention
from mlxgpt.kernels.attention import causal_attention, masked_attention

STEP = 256  # positions a cache grows by: a compiled decode step is traced anew only when it does
SLACK = 512  # positions a rolling cache keeps beyond its window: most tokens at once, and most that can be trimmed


class KVCache:
    """Keys and values of the positions seen so far, `offset` of them.

    `buffers` are the keys' arrays and then the values': one each, [B, Hkv, capacity, D], or with `bits` the three of
    `mx.quantize` each. `window` is the model's sliding window, or None.
    """

    def __init__(self, window: int | None = None, bits: int | None = None) -> None:
        self.limit = None if window is None else window + SLACK
        self.bits = bits
        self.buffers: list[mx.array] = []
        self.offset = 0
        self.written = 0  # the furthest the offset was before a trim: what that overwrote is gone

    @property
    def capacity(self) -> int:
        """Positions the buffers hold."""
        return self.buffers[0].shape[2] if self.buffers else 0

    def reserve(self, T: int) -> None:
        """Make room for T more positions in buffers that have their shape, as far as the limit allows."""
        needed = -(-(self.offset + T) // STEP) * STEP
        room = min(needed, self.limit or needed) - self.capacity
        if room > 0:
            self.buffers = [grown(b, room) for b in self.buffers]

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        """Append k, v [B, Hkv, T, D] and return q's attention over everything seen. q [B, H, T, D].

        A rolling cache takes at most `SLACK` positions at once; more raise ValueError.
        """
        T = k.shape[2]
        if self.limit is not None and T > SLACK:
            raise ValueError(f"a rolling cache takes at most {SLACK} positions at once, not {T}")
        new = pack(k, self.bits) + pack(v, self.bits)
        if self.offset == 0 and (not self.buffers or self.buffers[0].shape[0] != k.shape[0]):
            self.buffers = [piece[:, :, :0] for piece in new]
        self.reserve(T)
        for buffer, piece in zip(self.buffers, new, strict=True):
            _write(buffer, piece, self.offset)
        self.offset += T
        if in_place(q, self.buffers, self.bits):
            position = mx.array([self.offset - 1] * q.shape[0])
            return quantized_kv_attention.quantized_kv_attention(
                q, self.buffers, position, scale, self.bits or 0, window
            )
        low = 0 if window is None else max(0, self.offset - T - window + 1)
        keys, values = unpack([_read(b, low, self.offset) for b in self.buffers], self.bits, k.dtype)
        return causal_attention(q, keys, values, scale, window)

    def place(self, T: int) -> tuple[mx.array, mx.array, mx.array] | None:
        """Keys and values with room for T more, and the position of the first, int32 [1]: for a layer that writes and
        reads them itself, and `put`s them back. None where they are quantized or empty, or of several sequences."""
        if self.bits is not None or not self.offset or self.buffers[0].shape[0] != 1:
            return None
        self.reserve(T)
        return self.buffers[0], self.buffers[1], mx.array([self.offset])

    def put(self, keys: mx.array, values: mx.array, T: int) -> None:
        """Take back what `place` gave, with T more positions."""
        self.buffers, self.offset = [keys, values], self.offset + T

    def oldest(self) -> int:
        """The smallest position that `trim` can go back to."""
        furthest = max(self.offset, self.written)
        return 0 if self.limit is None or furthest <= self.limit else furthest - SLACK

    def trim(self, offset: int) -> None:
        """Forget every position from `offset` on. What a rolling cache has overwritten does not come back."""
        if not self.oldest() <= offset <= self.offset:
            raise ValueError(f"cannot trim a cache of positions {self.oldest()} to {self.offset} to {offset}")
        self.written = max(self.offset, self.written)
        self.offset = offset

    def clear(self) -> None:
        """Forget everything, the buffers too."""
        self.buffers, self.offset, self.written = [], 0, 0


def grown(buffer: mx.array, room: int) -> mx.array:
    """A buffer [B, H, capacity, D] with `room` more positions, empty."""
    return mx.concatenate([buffer, mx.zeros((*buffer.shape[:2], room, buffer.shape[3]), buffer.dtype)], axis=2)


def _write(buffer: mx.array, piece: mx.array, start: int) -> None:
    capacity, T = buffer.shape[2], piece.shape[2]
    slot = start % capacity
    first = min(T, capacity - slot)
    buffer[:, :, slot : slot + first] = piece[:, :, :first]
    if first < T:
        buffer[:, :, : T - first] = piece[:, :, first:]


def _read(buffer: mx.array, low: int, end: int) -> mx.array:
    capacity = buffer.shape[2]
    slot, count = low % capacity, end - low
    if slot + count <= capacity:
        return buffer[:, :, slot : slot + count]
    return mx.concatenate([buffer[:, :, slot:], buffer[:, :, : count - (capacity - slot)]], axis=2)


def pack(x: mx.array, bits: int | None) -> list[mx.array]:
    """What a cache stores of x [B, H, T, D]: x itself, or the arrays of `mx.quantize` over groups of the head."""
    if bits is None:
        return [x]
    return list(mx.quantize(x, group_size=_group(x.shape[-1]), bits=bits))


def unpack(buffers: Sequence[mx.array], bits: int | None, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Keys and values [B, H, S, D] of what a cache stores, in `dtype`."""
    if bits is None:
        return buffers[0], buffers[1]
    group = buffers[0].shape[-1] * 32 // bits // buffers[1].shape[-1]
    keys = mx.dequantize(buffers[0], buffers[1], buffers[2], group_size=group, bits=bits)
    values = mx.dequantize(buffers[3], buffers[4], buffers[5], group_size=group, bits=bits)
    return keys.astype(dtype), values.astype(dtype)


def in_place(q: mx.array, buffers: Sequence[mx.array], bits: int | None) -> bool:
    """Whether a kernel attends over the quantized buffers as they are: a few queries q [B, H, T, D], on a GPU."""
    if bits is None or q.shape[2] > quantized_kv_attention.MOST_QUERIES:
        return False
    return dispatch.use_kernel("quantized_kv_attention", quantized_kv_attention.problem(q, buffers))


def _group(head_size: int) -> int:
    """The group size for a head: 64, or 32 where that does not divide it. Raises UsageError where neither does."""
    for size in (64, 32):
        if head_size % size == 0:
            return size
    raise UsageError(f"a quantized cache needs heads of a multiple of 32 numbers; this model's have {head_size}")


@cache
def _slots(capacity: int) -> mx.array:
    """0, 1, … as a constant of the compiled step, which then computes the mask once and not in every layer."""
    slots = mx.arange(capacity)
    mx.eval(slots)
    return slots


class Slot:
    """A cache inside a compiled step: its buffers, and the position, int [B], each row writes to.

    The caller keeps a growing cache's positions below its capacity: nothing inside checks them.
    """

    def __init__(self, buffers: Sequence[mx.array], position: mx.array, bits: int | None = None) -> None:
        self.buffers, self.offset, self.bits = list(buffers), position, bits

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        """Write k, v [B, Hkv, 1, D] at the positions and return q's attention over the positions up to them."""
        B, capacity = k.shape[0], self.buffers[0].shape[2]
        slot = self.offset % capacity
        new = pack(k, self.bits) + pack(v, self.bits)
        for i, piece in enumerate(new):
            if B == 1:
                self.buffers[i] = mx.slice_update(self.buffers[i], piece, slot, axes=(2,))
            else:
                self.buffers[i][mx.arange(B), :, slot] = piece[:, :, 0]
        if in_place(q, self.buffers, self.bits):
            return quantized_kv_attention.quantized_kv_attention(
                q, self.buffers, self.offset, scale, self.bits or 0, window
            )
        age = (self.offset[:, None] - _slots(capacity)) % capacity  # [B, capacity]: how long ago a slot was written
        mask = age <= self.offset[:, None]
        if window is not None:
            mask = mask & (age < window)
        keys, values = unpack(self.buffers, self.bits, k.dtype)
        return masked_attention(q, keys, values, scale, mask[:, None, None])

    def place(self, T: int) -> tuple[mx.array, mx.array, mx.array] | None:
        """As `KVCache.place`."""
        one = self.bits is None and self.buffers[0].shape[0] == 1
        return (self.buffers[0], self.buffers[1], self.offset) if one else None

    def put(self, keys: mx.array, values: mx.array, T: int) -> None:
        """As `KVCache.put`."""
        self.buffers = [keys, values]


Cache = KVCache | Slot
Caches = Sequence[KVCache] | Sequence[Slot]  # one a layer
