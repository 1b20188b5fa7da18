"""Samplers and penalties: mlx-lm's, loaded without the rest of it."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import mlx.core as mx

from mlxgpt.config import require


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy, and top_p, top_k and min_p then do nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must be at least 0, not {self.temperature}")
        require(0 < self.top_p <= 1, f"top-p must be above 0 and at most 1, not {self.top_p}")
        require(self.top_k >= 0, f"top-k must be at least 0, not {self.top_k}")
        require(0 <= self.min_p <= 1, f"min-p must be between 0 and 1, not {self.min_p}")
        require(self.repetition_penalty > 0, f"the repetition penalty must be above 0, not {self.repetition_penalty}")


@cache
def _mlx_lm_samplers() -> ModuleType:
    """mlx_lm.sample_utils by its file: `import mlx_lm` would import transformers, 0.9 s that no sampler needs."""
    package = importlib.util.find_spec("mlx_lm")
    origin = package.origin if package else None
    if origin is None:
        raise ModuleNotFoundError("mlx-lm is not installed")
    loader = SourceFileLoader("mlxgpt._sample_utils", str(Path(origin).with_name("sample_utils.py")))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


class Chooser:
    """Logits -> the next token, drawn from MLX's global generator: seed it first."""

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        samplers = _mlx_lm_samplers()
        self._sampler = samplers.make_sampler(
            temp=sampling.temperature, top_p=sampling.top_p if sampling.top_p < 1 else 0.0,
            top_k=sampling.top_k if sampling.top_k < vocab_size else 0, min_p=sampling.min_p,
        )  # fmt: skip
        penalty = sampling.repetition_penalty
        self._processors = samplers.make_logits_processors(repetition_penalty=penalty if penalty != 1 else None)

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on the tokens before, which must then be known."""
        return bool(self._processors)

    def __call__(self, logits: mx.array, history: list[int]) -> tuple[mx.array, mx.array]:
        """Logits [1, V] and the tokens so far -> the next token, int [1], and its log-probability, float32 [1].

        The log-probability is the model's own, after penalties and before temperature and truncation.
        """
        logits = logits.astype(mx.float32)
        for process in self._processors:
            logits = process(mx.array(history), logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        token = self._sampler(logprobs)
        return token, mx.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
