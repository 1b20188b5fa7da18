"""Which model to train: the largest for which there is enough text, time and memory.

A model of N parameters is best trained on about 20 N tokens (Hoffmann et al., arXiv 2203.15556); with fewer a smaller
one does better. What it sees is the least of two: the tokens that this machine trains on in the time, measured in a few
steps, and 16 times the project's own, since text that is read again is worth ever less and beyond 16 times next to
nothing (Muennighoff et al., arXiv 2305.16264). A step must fit what `memory.room` leaves it. The
smallest model is proposed whatever there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlxgpt import bench, config, models
from mlxgpt.config import Recipe
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import memory
from mlxgpt.training.step import training_dtype

TOKENS_A_PARAMETER = 20
EPOCHS = 16
BYTES_A_TOKEN = 3.4  # of code: 3.45 in Python's standard library with a vocabulary of 4,096
STEPS = 3  # measured of each candidate
TOKENS_AT_LEAST = 20_000  # of a project: with fewer a tokenizer and a model have next to nothing to learn from


@dataclass(frozen=True)
class Size:
    """A recipe, and what of it is changed."""

    recipe: str
    settings: tuple[str, ...] = ()

    def load(self) -> Recipe:
        """The recipe with the changes."""
        return config.load_recipe(self.recipe, self.settings)


SIZES = (
    Size("tiny"),
    Size("tiny", (
        "model.hidden_size=256", "model.intermediate_size=704", "model.num_attention_heads=4",
        "model.max_position_embeddings=1024", "tokenizer.vocab_size=4096", "train.sequence_length=512",
    )),
    Size("autocomplete"),
    Size("autocomplete", (
        "model.hidden_size=512", "model.intermediate_size=1536", "model.num_attention_heads=8",
        "model.num_hidden_layers=8",
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Proposal:
    """A size for a project of `tokens`: it has so many parameters and sees so many tokens in `minutes`."""

    size: Size
    parameters: int
    minutes: float
    tokens: int
    tokens_per_second: float

    @property
    def seen(self) -> float:
        """Tokens that are trained on in the time."""
        return 60 * self.minutes * self.tokens_per_second

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f}M parameters ({self.size.recipe}): in {self.minutes:g} minutes at "
            f"{self.tokens_per_second:,.0f} tokens/s it sees the project's {self.tokens / 1e6:.2f}M tokens "
            f"{self.seen / max(1, self.tokens):.1f} times"
        )


def tokens_in(size: int) -> int:
    """About how many tokens so many bytes of code are."""
    return round(size / BYTES_A_TOKEN)


def enough_for(tokens: int, seen: float) -> float:
    """Parameters for which a project's tokens, of which so many are seen in all, are enough."""
    return min(seen, EPOCHS * tokens) / TOKENS_A_PARAMETER


def propose(tokens: int, minutes: float, sizes: Sequence[Size] = SIZES) -> Proposal:
    """The size for a project of so many tokens. Measures a few steps of the sizes it considers, the smallest first.

    Raises Error where not even the smallest fits the memory.
    """
    best = _measured(sizes[0], tokens, minutes)
    for size in sizes[1:]:
        count = parameters(size)
        # A larger one sees fewer tokens, so it need not be measured where the last did not see enough for it.
        if count > enough_for(tokens, best.seen) or not _fits(size):
            break
        larger = _measured(size, tokens, minutes)
        if count > enough_for(tokens, larger.seen):
            break
        best = larger
    return best


def parameters(size: Size) -> int:
    """Number of its weights."""
    return sum(p.size for p in named_parameters(_outline(size.load())).values())


def _outline(recipe: Recipe) -> models.Model:
    """The model of a recipe, of which nothing is computed."""
    return models.build(models.config_from_table({"vocab_size": recipe.tokenizer.vocab_size} | recipe.model))


def _fits(size: Size) -> bool:
    recipe = size.load()
    step = memory.estimate(_outline(recipe), recipe, training_dtype(recipe.train.dtype))
    return step.total <= memory.room(1)


def _measured(size: Size, tokens: int, minutes: float) -> Proposal:
    recipe = size.load()
    train = recipe.train
    model, seconds = bench.pace(recipe, STEPS)
    count = sum(p.size for p in named_parameters(model).values())
    speed = train.batch_size * train.sequence_length * train.accumulation / seconds
    return Proposal(size, count, minutes, tokens, speed)
