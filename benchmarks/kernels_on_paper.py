"""What six kernels save on paper: bytes moved, launches and the time they stand for, on three Macs' published figures.

    python benchmarks/kernels_on_paper.py

Nothing here is measured. A time is bytes / bandwidth + launches · 6 µs, as if nothing overlapped; arithmetic is counted
where it matters. Launches of plain MLX are the operations of the exported graphs, one each, with MLX's own fused norm,
rotation and attention as one: a floor, since a long sort or sum takes several. Prints Markdown.
"""

from collections.abc import Iterable
from dataclasses import dataclass

LAUNCH = 6e-6  # seconds
CORE = 40e9  # bytes/s that one core of the GPU is taken to read by itself: an estimate
MACS = {"M1": (68e9, 2.6e12), "M3 Max": (400e9, 14.2e12), "M4 Max": (546e9, 18.4e12)}  # bytes/s, float32 operations/s
HALF = 2  # bytes of a float16 or bfloat16


@dataclass(frozen=True)
class Model:
    """A shape, and the bits a weight takes in decoding."""

    name: str
    parameters: float
    tensors: int
    layers: int
    kv_heads: int
    head: int
    vocabulary: int
    bits: float
    plain_launches: int  # a layer, in a decoding step
    launches: int  # the same with decode_block

    @property
    def weights(self) -> float:
        """Bytes read for each token."""
        return self.parameters * self.bits / 8

    def cache(self, positions: int, bits: float = 16) -> float:
        """Bytes of keys and values."""
        return 2 * self.layers * self.kv_heads * self.head * positions * bits / 8


MODELS = (
    Model("Mistral's shape, 30M, bf16", 31.8e6, 74, 8, 4, 64, 16_000, 16, 17, 14),
    Model("GPT-2, 124M, bf16", 124.4e6, 148, 12, 12, 64, 50_257, 16, 12, 10),
    Model("Mistral 7B, 4 bits", 7.24e9, 291, 32, 8, 128, 32_000, 4.5, 17, 14),
)
BESIDES = 6  # launches of a step outside of its layers: embedding, mask, head


@dataclass(frozen=True)
class Work:
    """Bytes moved and kernels launched."""

    moved: float
    launches: float
    by_one_core: bool = False
    operations: float = 0.0

    def on(self, mac: str) -> float:
        """Seconds."""
        speed, arithmetic = MACS[mac]
        return (
            self.moved / (CORE if self.by_one_core else speed) + self.launches * LAUNCH + self.operations / arithmetic
        )


def decode(model: Model, positions: int) -> Work:
    """One token with a float16 cache, decode_block and sample aside: the weights and the cache, read once."""
    return Work(model.weights + model.cache(positions), model.layers * model.plain_launches + BESIDES)


def sample(model: Model, operations: int, passes: int) -> tuple[Work, Work]:
    """Plain: each operation reads and writes a float32 row. The kernel: a write and `passes` reads of 4 bytes, by one
    threadgroup, while plain MLX is given all of the bandwidth."""
    row = 4 * model.vocabulary
    return Work(operations * 2 * row, operations), Work(row / 2 + (1 + passes) * row, 1, by_one_core=True)


def quantized_kv(model: Model, positions: int, bits: int) -> tuple[Work, Work]:
    """Plain: the cache is read packed, written in float16 and read again, three launches a layer. The kernel: read."""
    packed, whole = model.cache(positions, bits + 2 * 16 / 64), model.cache(positions)
    splits = positions >= 512
    return Work(packed + 2 * whole, 3 * model.layers), Work(packed, (1 + splits) * model.layers)


def adamw(model: Model) -> tuple[Work, Work]:
    """Float32 parameters, gradients and moments."""
    n = model.tensors
    plain = Work(40 * model.parameters, 3 * n + 12)
    return plain, Work(32 * model.parameters, -(-n // 24) + -(-n // 4) + 20)


WIDTH = 768  # of GPT-2, whose heads are 12 of 64


def attention(layers: int, T: int, window: int) -> tuple[Work, Work, float, float]:
    """Forward and backward with a window, bfloat16, one sequence; and the bytes that each keeps for the backward.

    Plain: scores, masked, made probabilities, multiplied, and as much twice over on the way back: 24 bytes a pair in
    all, of which the probabilities are kept; four products a pair forward, eight back, for every pair there is. The
    kernels: the pairs that are seen, four products forward and fourteen back (scores and their gradient anew for dQ and
    for dK, dV), keys and values read once for every 32 queries; one log-sum-exp a row is kept.
    """
    heads, D = WIDTH // 64, 64
    pairs, seen = T * T, T * window - window * (window - 1) / 2
    plain = Work(layers * heads * 24 * pairs, layers * 13, operations=layers * heads * 12 * D * pairs)
    read = 2 * D * HALF * (T / 32) * min(T, window + 32)  # keys and values, a pass
    rows = 4 * T * D * HALF
    kernel = Work(layers * heads * 3 * (read + rows), layers * 3, operations=layers * heads * 18 * D * seen)
    return plain, kernel, layers * heads * HALF * pairs, layers * heads * 4 * T


def cross_entropy(tokens: int, vocabulary: int) -> tuple[Work, Work, float, float]:
    """Head and loss, forward and backward, bfloat16; and the bytes that each holds at most.

    Plain: logits written, read for the loss and for their gradient, that written and read by two products. The kernel:
    the same for a chunk of 2^25 logits at a time, while dX and dW are made.
    """
    logits = tokens * vocabulary
    chunks = -(-logits // (1 << 25))
    work = 6 * logits * WIDTH
    kernel = Work(12 * logits + chunks * 8 * vocabulary * WIDTH, 6 * chunks, operations=work)
    return Work(12 * logits, 6, operations=work), kernel, 4 * logits, min(4 * logits, 4 << 25)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print Markdown."""
    columns = list(columns)
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def row(plain: Work, kernel: Work, around: Work) -> list[str]:
    """Bytes, launches, and on each Mac the milliseconds of both, and what the whole then takes of what it took."""
    cells = [f"{plain.moved / 1e6:,.1f} → {kernel.moved / 1e6:,.1f}", f"{plain.launches:.0f} → {kernel.launches:.0f}"]
    for mac in MACS:
        whole = (around.on(mac) + kernel.on(mac)) / (around.on(mac) + plain.on(mac))
        cells.append(f"{plain.on(mac) * 1e3:.2f} → {kernel.on(mac) * 1e3:.2f} ms ({100 * (whole - 1):+.1f} %)")
    return cells


COST = ("MB", "launches", *(f"{mac} (whole)" for mac in MACS))


def main() -> None:
    """Print a table for each kernel."""
    nothing = Work(0, 0)
    print("### decode_block: a token after 1,024 positions, the step without sampling\n")
    rows: list[list[object]] = []
    for m in MODELS:
        saved = m.layers * (m.plain_launches - m.launches)
        step = decode(m, 1024)
        rows.append([m.name, *row(step, Work(step.moved, step.launches - saved), nothing)])
    table(("model", *COST), rows)

    print("### sample: a token's choice, and the whole token after 1,024 positions\n")
    rows = []
    for m in MODELS:
        for name, operations, passes in (("greedy", 5, 2), ("temperature", 15, 2), ("all filters, a penalty", 37, 10)):
            rows.append([m.name, name, *row(*sample(m, operations, passes), decode(m, 1024))])
    table(("model", "setting", *COST), rows)

    print("### quantized_kv_attention: a token's attention, and the whole token\n")
    rows = []
    for m in MODELS:
        for positions in (1024, 8192, 32768) if m.kv_heads == 8 else (1024,):
            for bits in (8, 4):
                around = Work(m.weights, m.layers * (m.plain_launches - 1) + BESIDES)
                plain, kernel = quantized_kv(m, positions, bits)
                rows.append([m.name, f"{positions:,} in {bits} bits", *row(plain, kernel, around)])
    table(("model", "positions", *COST), rows)

    print("### adamw_multi: a step's update, and its share of a step at peak arithmetic (6 · parameters · tokens)\n")
    rows = []
    for m in MODELS[:2]:
        for tokens in (1024, 8192):
            plain, kernel = adamw(m)
            shares = []
            for mac, (_, arithmetic) in MACS.items():
                compute = 6 * m.parameters * tokens / arithmetic
                before, after = plain.on(mac), kernel.on(mac)
                change = 100 * ((compute + after) / (compute + before) - 1)
                shares.append(f"{before * 1e3:.1f} → {after * 1e3:.1f} ms ({change:+.1f} %)")
            rows.append([m.name, f"{tokens:,}", *row(plain, kernel, nothing)[:2], *shares])
    table(("model", "tokens", *COST), rows)

    gpt2 = MODELS[1]
    print("### windowed_attention: all of GPT-2's attention in a step on one sequence, forward and backward\n")
    rows = []
    for T, window in ((1024, 256), (8192, 1024), (8192, 256)):
        plain, kernel, kept, keeps = attention(gpt2.layers, T, window)
        compute = 6 * gpt2.parameters * T
        cells = row(plain, kernel, Work(0, 0, operations=compute))
        rows.append([f"{T:,}, window {window:,}", f"{kept / 1e6:,.0f} → {keeps / 1e6:,.1f}", *cells])
    table(("tokens", "MB kept", *COST), rows)

    print("### linear_cross_entropy: GPT-2's head and loss, forward and backward\n")
    rows = []
    for tokens in (1024, 8192):
        plain, kernel, held, holds = cross_entropy(tokens, gpt2.vocabulary)
        cells = row(plain, kernel, Work(0, 0, operations=6 * gpt2.parameters * tokens))
        rows.append([f"{tokens:,}", f"{held / 1e6:,.0f} → {holds / 1e6:,.0f}", *cells])
    table(("tokens", "MB held", *COST), rows)


if __name__ == "__main__":
    main()
