"""Samplers and penalties: mlx-lm's, loaded without the rest of it; on a GPU one kernel that does the same."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx

from mlxgpt.config import require
from mlxgpt.kernels import dispatch
from mlxgpt.kernels.sample import sample


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy, and top_p, top_k and min_p then do nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_context: int = 20  # tokens back that the penalties look

    def __post_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must be at least 0, not {self.temperature}")
        require(0 < self.top_p <= 1, f"top-p must be above 0 and at most 1, not {self.top_p}")
        require(self.top_k >= 0, f"top-k must be at least 0, not {self.top_k}")
        require(0 <= self.min_p <= 1, f"min-p must be between 0 and 1, not {self.min_p}")
        require(0 <= self.xtc_probability <= 1, f"XTC's probability must be from 0 to 1, not {self.xtc_probability}")
        require(0 <= self.xtc_threshold <= 0.5, f"XTC's threshold must be from 0 to 0.5, not {self.xtc_threshold}")
        require(self.penalty_context >= 1, f"the penalties must look back at least 1 token, not {self.penalty_context}")
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
    """Logits -> the next token. Every draw is a function of (seed, step), whatever was drawn before.

    `protected` are ids that XTC never takes away (the closing token, the newline).
    """

    def __init__(self, sampling: Sampling, vocab_size: int, seed: int = 0, protected: Sequence[int] = ()) -> None:
        self.sampling, self.seed = sampling, seed
        self._samplers = samplers = _mlx_lm_samplers()
        s = sampling
        self._filters: list[Callable[[mx.array], mx.array]] = []
        if s.temperature > 0:
            if s.top_p < 1:
                self._filters.append(lambda x: samplers.apply_top_p(x, s.top_p))
            if s.min_p > 0:
                self._filters.append(lambda x: samplers.apply_min_p(x, s.min_p))
            if s.xtc_probability > 0:
                self._filters.append(
                    lambda x: samplers.apply_xtc(x, s.xtc_probability, s.xtc_threshold, list(protected))
                )
            if 0 < s.top_k < vocab_size:
                self._filters.append(lambda x: samplers.apply_top_k(x, s.top_k))
        self._penalties = samplers.make_logits_processors(
            repetition_penalty=s.repetition_penalty if s.repetition_penalty != 1 else None,
            repetition_context_size=s.penalty_context, presence_penalty=s.presence_penalty or None,
            presence_context_size=s.penalty_context, frequency_penalty=s.frequency_penalty or None,
            frequency_context_size=s.penalty_context,
        )  # fmt: skip

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on the tokens before, which must then be known."""
        return bool(self._penalties)

    def logprobs(self, logits: mx.array, history: list[int]) -> mx.array:
        """The model's log-probabilities [1, V], float32, after penalties, before temperature and truncation."""
        logits = logits.astype(mx.float32)
        for penalize in self._penalties:
            logits = penalize(mx.array(history[-self.sampling.penalty_context :]), logits)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def distribution(self, logprobs: mx.array, step: int) -> mx.array:
        """What `draw` draws from: probabilities [1, V], float32, after temperature and truncation."""
        if self.sampling.temperature == 0:
            index = mx.arange(logprobs.shape[-1])
            return (index == logprobs.argmax(axis=-1, keepdims=True)).astype(mx.float32)
        return mx.softmax(self._filtered(logprobs, step) / self.sampling.temperature, axis=-1)

    def draw(self, logprobs: mx.array, step: int) -> mx.array:
        """The token, int [1], that `step` (a count from 0) draws."""
        if self.sampling.temperature == 0:
            return logprobs.argmax(axis=-1)
        if self._in_one_kernel():
            return sample(logprobs, self._key(step), **self._truncation())[0]
        return self._samplers.categorical_sampling(self._filtered(logprobs, step), self.sampling.temperature)

    def choose(self, logits: mx.array, history: list[int], step: int) -> tuple[mx.array, mx.array] | None:
        """The token that `draw` takes from `logprobs` and its log-probability, [1] each, in one kernel.

        None where there is no GPU, or with XTC."""
        if not self._in_one_kernel():
            return None
        s = self.sampling
        recent = mx.array(history[-s.penalty_context :], mx.int32)[None] if self.needs_history else None
        penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        return sample(logits, self._key(step), **self._truncation(), history=recent, penalties=penalties)

    def _in_one_kernel(self) -> bool:
        return self.sampling.xtc_probability == 0 and dispatch.use_kernel("sample")

    def _truncation(self) -> dict[str, Any]:
        s = self.sampling
        return {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p}

    def _key(self, step: int) -> mx.array:
        return mx.array([self.seed & 0xFFFFFFFF, step & 0xFFFFFFFF], mx.uint32)

    def _filtered(self, logprobs: mx.array, step: int) -> mx.array:
        mx.random.seed((self.seed << 32 | step) & (1 << 64) - 1)  # mlx-lm draws from the global generator
        for keep in self._filters:
            logprobs = keep(logprobs)
        return logprobs
