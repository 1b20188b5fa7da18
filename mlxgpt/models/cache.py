"""The key and value cache of one attention layer, and the view of it that a compiled step writes through."""

from collections.abc import Sequence

import mlx.core as mx

from mlxgpt.kernels.attention import causal_attention, masked_attention

STEP = 256  # positions a cache grows by: a compiled decode step is traced anew only when it does


class KVCache:
    """Keys and values of the positions seen so far: buffers [B, Hkv, capacity, D], of which `offset` are filled."""

    def __init__(self) -> None:
        self.keys = self.values = mx.zeros((0, 0, 0, 0))
        self.offset = 0

    @property
    def capacity(self) -> int:
        """Positions the buffers hold."""
        return self.keys.shape[2]

    def reserve(self, T: int) -> None:
        """Make room for T more positions in buffers that have their shape."""
        missing = self.offset + T - self.capacity
        if missing > 0:
            B, H, _, D = self.keys.shape
            room = mx.zeros((B, H, -(-missing // STEP) * STEP, D), self.keys.dtype)
            self.keys, self.values = (mx.concatenate([x, room], axis=2) for x in (self.keys, self.values))

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        """Append k, v [B, Hkv, T, D] and return q's attention over everything seen. q [B, H, T, D]."""
        B, H, T, D = k.shape
        if self.offset == 0 and self.keys.shape[:2] != (B, H):
            self.keys = self.values = mx.zeros((B, H, 0, D), k.dtype)
        self.reserve(T)
        end = self.offset + T
        self.keys[:, :, self.offset : end] = k
        self.values[:, :, self.offset : end] = v
        self.offset = end
        return causal_attention(q, self.keys[:, :, :end], self.values[:, :, :end], scale, window)

    def trim(self, offset: int) -> None:
        """Forget every position from `offset` on."""
        if not 0 <= offset <= self.offset:
            raise ValueError(f"cannot trim a cache of {self.offset} positions to {offset}")
        self.offset = offset


class Slot:
    """A cache inside a compiled step: its buffers, and one position (a scalar mx.array) to write to.

    The caller keeps position < capacity: `mx.slice_update` does not check its bounds.
    """

    def __init__(self, keys: mx.array, values: mx.array, position: mx.array) -> None:
        self.keys, self.values, self.offset = keys, values, position

    def attend(self, q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None = None) -> mx.array:
        """Write k, v [B, Hkv, 1, D] at the position and return q's attention over the positions up to it."""
        self.keys = mx.slice_update(self.keys, k, self.offset, axes=(2,))
        self.values = mx.slice_update(self.values, v, self.offset, axes=(2,))
        index = mx.arange(self.keys.shape[2])
        mask = index <= self.offset
        if window is not None:
            mask = mask & (index > self.offset - window)
        return masked_attention(q, self.keys, self.values, scale, mask)


Cache = KVCache | Slot
Caches = Sequence[KVCache] | Sequence[Slot]  # one a layer
