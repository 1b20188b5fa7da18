"""What serves in tests of what serves many: a tiny random model of bytes, and a suggester that is given its steps."""

import threading

import mlx.core as mx

from mlxgpt import models
from mlxgpt.completion.suggest import Suggester
from mlxgpt.models import mistral
from mlxgpt.tokenizer import CharTokenizer

SECONDS = 60
BYTES = CharTokenizer("")


def network(context: int = 512) -> models.Model:
    """A model of bytes whose weights are random, and large enough to say different things."""
    mx.random.seed(3)
    config = mistral.Config(
        vocab_size=BYTES.vocab_size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=context,
    )  # fmt: skip
    model = models.build(config).apply(lambda p: p + 0.3 * mx.random.normal(p.shape)).eval()
    mx.eval(model.parameters())
    return model


class Paced(Suggester):
    """Takes a step (a look at whether it was cancelled) only when it is given one, and counts them."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.steps, self.taken, self.began = threading.Semaphore(0), 0, threading.Semaphore(0)
        self.order: list[bytes] = []

    def suggest(self, prefix, *given, cancelled=lambda: False, **more):
        self.order.append(prefix)
        self.began.release()

        def asked() -> bool:
            assert self.steps.acquire(timeout=SECONDS)
            self.taken += 1
            return cancelled()

        return super().suggest(prefix, *given, cancelled=asked, **more)
