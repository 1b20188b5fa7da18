"""Penalties, temperature, top-p, min-p, top-k and the draw over rows of logits: one kernel, one threadgroup a row.

Plain MLX sorts the row for top-p and partitions it for top-k: 5 operations when greedy, 15 with a temperature, 37 with
all filters and a penalty. Here a row is read about ten times where it is filtered and three times where it is not. The
draw is by the Gumbel trick with numbers that are a function of (key, row, index) alone, so that the two forms choose
the same token.
"""

import math

import mlx.core as mx
from mlxgpt.kernels import dispatch

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMS = {"metal": "kernel", "cuda": "kernel", "cpu": "reference"}
THREADS = 1024
KEYS = (0x1BD11BDA, (13, 15, 26, 6, 17, 29, 16, 24))  # Threefry-2x32's parity constant and rotations

Penalties = tuple[float, float, float]  # repetition, presence, frequency
NO_PENALTIES: Penalties = (1.0, 0.0, 0.0)

FORWARD = dispatch.Kernel(
    __file__, "forward", ("logits", "history", "key", "settings", "counts"), ("token", "logprob", "keys"),
    ("group", "ordered", "threefry"),
)  # fmt: skip


def threefry(key: mx.array, row: mx.array, index: mx.array) -> mx.array:
    """The first 32 of the 64 random bits of Threefry-2x32-20 (Salmon et al., SC 2011) for a key and a counter.

    key uint32 [2]; row and index uint32, broadcast against each other, are the counter. Returns uint32.
    """
    parity, turns = KEYS
    keys = [key[0], key[1], mx.array(parity, mx.uint32) ^ key[0] ^ key[1]]
    x, y = row + keys[0], index + keys[1]
    for i in range(20):
        x = x + y
        y = (y << turns[i % 8]) | (y >> (32 - turns[i % 8]))
        y = y ^ x
        if i % 4 == 3:
            s = i // 4 + 1
            x = x + keys[s % 3]
            y = y + keys[(s + 1) % 3] + mx.array(s, mx.uint32)
    return x


def _penalised(logits: mx.array, history: mx.array | None, penalties: Penalties) -> mx.array:
    """The logits [B, V] in float32 after the penalties; what is not a number becomes -inf, so that it is not chosen."""
    x = logits.astype(mx.float32)
    x = mx.where(mx.isnan(x), -mx.inf, x)
    if history is None or not history.size:
        return x
    repetition, presence, frequency = penalties
    rows = mx.arange(x.shape[0])[:, None]
    known = (history >= 0) & (history < x.shape[1])
    times = mx.zeros(x.shape).at[rows, mx.where(known, history, 0)].add(known.astype(mx.float32))
    x = mx.where(times > 0, mx.where(x < 0, x * repetition, x / repetition) - presence, x)
    for n in range(history.shape[1]):  # one after the other, as the kernel and mlx-lm subtract
        x = mx.where(times > n, x - frequency, x)
    return mx.where(mx.isnan(x), -mx.inf, x)


def _above(x: mx.array, top: mx.array) -> mx.array:
    """x - top, where two equal infinities differ by nothing."""
    return mx.where(x == top, 0.0, x - top)


def _kept(x: mx.array, top: mx.array, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Which of x [B, V] the filters leave: boolean [B, V]."""
    V = x.shape[1]
    kept = x >= (top + math.log(min_p) if min_p > 0 else -mx.inf)
    if top_p < 1:
        falling = -mx.sort(-x, axis=-1)
        mass = mx.cumsum(mx.exp(_above(falling, top)), axis=-1)
        before = mx.concatenate([mx.zeros((x.shape[0], 1)), mass[:, :-1]], axis=1)
        last = (before < top_p * mass[:, -1:]).sum(axis=-1, keepdims=True) - 1
        kept = kept & (x >= mx.take_along_axis(falling, last, axis=-1))
    if 0 < top_k < V:
        least = -mx.sort(-x, axis=-1)[:, top_k - 1 : top_k]
        ties = x == least
        room = top_k - (x > least).sum(axis=-1, keepdims=True)
        kept = kept & ((x > least) | (ties & (mx.cumsum(ties.astype(mx.int32), axis=-1) <= room)))
    return kept


def reference(
    logits: mx.array, key: mx.array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
    history: mx.array | None = None, penalties: Penalties = NO_PENALTIES,
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """`sample` in plain MLX: the same numbers are drawn, and the same token is chosen."""
    x = _penalised(logits, history, penalties)
    B, V = x.shape
    top = x.max(axis=-1, keepdims=True)
    if temperature == 0:
        token = x.argmax(axis=-1)
    else:
        bits = threefry(key, mx.arange(B, dtype=mx.uint32)[:, None], mx.arange(V, dtype=mx.uint32)[None])
        u = mx.minimum((bits.astype(mx.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
        e = mx.where(u < 2.0**-12, u * (1 + 0.5 * u), -mx.log(1 - u))  # exponentially distributed
        scores = _above(x, top) * (1 / temperature) - mx.log(e)
        token = mx.where(_kept(x, top, top_k, top_p, min_p), scores, -mx.inf).argmax(axis=-1)
    total = mx.log(mx.exp(_above(x, top)).sum(axis=-1))
    return token, _above(mx.take_along_axis(x, token[:, None], axis=-1), top)[:, 0] - total


def sample(
    logits: mx.array, key: mx.array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
    history: mx.array | None = None, penalties: Penalties = NO_PENALTIES, form: str = "auto",
) -> tuple[mx.array, mx.array]:  # fmt: skip
    """Choose a token from each row of logits [B, V] in float32, float16 or bfloat16.

    key: uint32 [2]; a draw is a function of it, the row and the logits. temperature 0 takes the largest, the first of
    equals. The filters are mlx-lm's, on the probabilities at temperature 1: top_p keeps the fewest likeliest tokens
    that have this mass, and those as likely as the last; min_p what has this share of the likeliest one's probability;
    top_k (0: all) the k likeliest, of equals the first. history: int [B, N], the tokens that the penalties lower,
    negative ones ignored. penalties: `repetition` divides a positive logit and multiplies a negative one (arXiv
    1909.05858), `presence` is subtracted once, `frequency` for each time; the time for them grows with N². A logit that
    is not a number is not chosen; a row of nothing else, or of -inf alone, is drawn from evenly.

    Returns the tokens, uint32 [B], and their log-probabilities, float32 [B], after the penalties and before temperature
    and filters. form: see `dispatch.use_kernel`. Raises TypeError for another dtype, ValueError for a shape or a
    setting out of range, dispatch.Unsupported where form="kernel" and there is no GPU.
    """
    _check(logits, key, history, temperature, top_k, top_p, min_p, penalties)
    problem = "logits has rows of 2^31 elements or more" if logits.shape[1] >= 1 << 31 else ""
    B, V = logits.shape
    kernel = dispatch.use_kernel("sample", problem, form)
    if not B:
        return mx.zeros((0,), mx.uint32), mx.zeros((0,), mx.float32)
    if not kernel:
        return reference(logits, key, temperature, top_k, top_p, min_p, history, penalties)
    if history is None or not history.size:
        history = mx.full((B, 1), -1, mx.int32)
    threads = min(THREADS, -(-V // 32) * 32)
    warmth = 1 / temperature if temperature > 0 else 0.0
    least = math.log(min_p) if min_p > 0 else -math.inf
    token, logprob, _ = FORWARD(
        logits,
        history.astype(mx.int32),
        key,
        mx.array([warmth, top_p, least, *penalties], mx.float32),
        mx.array([V, top_k if 0 < top_k < V else V, history.shape[1]], mx.uint32),
        template=[("T", logits.dtype)],
        grid=(B * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(B,), (B,), (B, V)],
        output_dtypes=[mx.uint32, mx.float32, mx.uint32],
    )
    return token, logprob


def _check(
    logits: mx.array, key: mx.array, history: mx.array | None, temperature: float, top_k: int, top_p: float,
    min_p: float, penalties: Penalties,
) -> None:  # fmt: skip
    if logits.dtype not in DTYPES:
        raise TypeError(f"sample: logits must be float32, float16 or bfloat16, not {logits.dtype}")
    if logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f"sample: logits must be [B, V] with V at least 1, not {list(logits.shape)}")
    if key.dtype != mx.uint32 or key.shape != (2,):
        raise ValueError(f"sample: key must be uint32 [2], not {key.dtype} {list(key.shape)}")
    if history is not None:
        if not mx.issubdtype(history.dtype, mx.integer):
            raise TypeError(f"sample: history must be integers, not {history.dtype}")
        if history.ndim != 2 or history.shape[0] != logits.shape[0]:
            raise ValueError(f"sample: history must be [{logits.shape[0]}, N], not {list(history.shape)}")
    ranges = {
        "temperature": (temperature, 0 <= temperature < math.inf, "at least 0 and finite"),
        "top_k": (top_k, top_k >= 0, "at least 0"),
        "top_p": (top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        "min_p": (min_p, 0 <= min_p <= 1, "between 0 and 1"),
        "the repetition penalty": (penalties[0], 0 < penalties[0] < math.inf, "above 0 and finite"),
    }
    for name, (value, right, allowed) in ranges.items():
        if not right:
            raise ValueError(f"sample: {name} must be {allowed}, not {value}")
