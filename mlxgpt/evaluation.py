"""Loss on held-out text, all of it: nats a token and bits a byte."""

import math
from dataclasses import dataclass
from itertools import islice

import mlx.core as mx
import numpy as np

from mlxgpt.data.batches import in_order
from mlxgpt.kernels.cross_entropy import cross_entropy
from mlxgpt.models import Model


@dataclass(frozen=True)
class Evaluation:
    """val_loss in nats a token; val_bpb in bits a byte of text, which compares across tokenizers."""

    val_loss: float
    val_bpb: float


class Evaluator:
    """Evaluates a model on one token array, whose text has `n_bytes` bytes."""

    def __init__(self, model: Model, tokens: np.ndarray, n_bytes: int, batch_size: int, length: int) -> None:
        self.model, self.tokens, self.n_bytes = model, tokens, n_bytes
        self.batch_size, self.length = batch_size, length
        self._nats = mx.compile(self._batch, inputs=model.state)

    def _batch(self, x: mx.array, y: mx.array, weights: mx.array) -> mx.array:
        return (cross_entropy(self.model(x), y) * weights).sum()

    def run(self) -> Evaluation:
        """Evaluate the whole split once, in sequences side by side; the model must be in evaluation mode."""
        return self.result(self.nats())

    def nats(self, part: int = 0, parts: int = 1) -> float:
        """The sum of the losses of one of so many parts of the split, which is every `parts`-th batch."""
        nats = 0.0
        for x, y, weights in islice(in_order(self.tokens, self.batch_size, self.length), part, None, parts):
            nats += self._nats(mx.array(x), mx.array(y), mx.array(weights)).item()  # type: ignore[assignment]
        return nats

    def result(self, nats: float) -> Evaluation:
        """The evaluation of a split whose losses' sum is `nats`."""
        return Evaluation(nats / max(1, len(self.tokens) - 1), nats / math.log(2) / max(1, self.n_bytes))
