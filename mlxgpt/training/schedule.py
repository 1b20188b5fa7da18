"""How far a run is, and as functions of that the learning rate and the shape of a step."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

from mlxgpt.config import OptimizerConfig, TrainConfig

GAP = 30.0  # seconds: a shorter step is never taken for a pause


def learning_rate(config: OptimizerConfig, step: int, progress: float, warmup: float = 0.0) -> float:
    """The rate of step `step` (from 0), `progress` of the way through the run (0 to 1).

    Linear warm-up over `warmup_steps`, as nanoGPT's: (step + 1) / (warmup_steps + 1); `warmup` is the progress at
    which it ends. Then cosine to min_lr (arXiv 1608.03983), or flat with a linear fall at the end (WSD, arXiv
    2404.06395), or flat.
    """
    ramp = min(1.0, (step + 1) / (config.warmup_steps + 1))
    span = config.lr - config.min_lr
    if config.schedule == "cosine":
        along = min(1.0, max(0.0, (progress - warmup) / max(1e-9, 1 - warmup)))
        rate = config.min_lr + span * 0.5 * (1 + math.cos(math.pi * along))
    elif config.schedule == "wsd" and config.decay_fraction > 0:
        rate = config.min_lr + span * min(1.0, (1 - progress) / config.decay_fraction)
    else:
        rate = config.lr
    return ramp * rate


@dataclass(frozen=True)
class Shape:
    """What one step reads: passes, whose gradients are averaged, sequences a pass and tokens a sequence."""

    passes: int
    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.passes * self.sequences * self.length


def shape(train: TrainConfig, progress: float) -> Shape:
    """The shape of a step `progress` of the way through the run (0 to 1); few there are, since each is compiled.

    In `batch_warmup` fewer sequences (the small first batches of GPT-3, arXiv 2005.14165): passes that are still as
    large as may be. In `sequence_warmup` shorter ones and more of them, the tokens the same (arXiv 2108.06084, which
    leaves out the rest of each instead).
    """
    total = max(1, train.batch_size * train.accumulation // _part(progress, train.batch_warmup))
    sequences, cut = min(total, train.batch_size), _part(progress, train.sequence_warmup)
    return Shape(total // sequences, sequences * cut, train.sequence_length // cut)


def _part(progress: float, warmup: float) -> int:
    """What a size is divided by while it grows: 4 in the first half of the warm-up, then 2, then 1."""
    return 4 if progress < warmup / 2 else 2 if progress < warmup else 1


@dataclass
class Clock:
    """How far a run is, by its steps or, where `minutes` is not 0, by the time they took.

    Only steps count. Evaluations do not: they would leave a short run no time to decay its learning rate. Nor does a
    process's first step, most of which is compilation. A step that took far longer than the ones before it, because
    the machine slept or the process was stopped, counts as one of them.
    """

    steps: int
    minutes: float
    elapsed: float = 0.0  # seconds, of the run's earlier processes too
    _first: float | None = None  # seconds of this process's first step, compilation included
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    def count(self, seconds: float) -> None:
        """Take in the time of one step."""
        if self._first is not None:
            usual = statistics.median(self._recent) if self._recent else min(seconds, max(GAP, self._first))
            seconds = usual if seconds > max(GAP, 20 * usual) else seconds
            self._recent.append(seconds)
            self.elapsed += seconds
        else:
            self._first = seconds

    def progress(self, step: int) -> float:
        """The share of the run that is done, 0 to 1, when `step` steps are."""
        return min(1.0, self.elapsed / (60 * self.minutes) if self.minutes else step / self.steps)

    def rate(self, config: OptimizerConfig, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        warmup = 0.0 if self.minutes else min(0.99, config.warmup_steps / self.steps)
        return learning_rate(config, step, self.progress(step), warmup)
