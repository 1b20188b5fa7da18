"""The learning rate as a function of how far the run is."""

import math

from mlxgpt.config import OptimizerConfig


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
