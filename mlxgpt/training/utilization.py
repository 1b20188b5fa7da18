"""How much of what the device can do a training step uses: its arithmetic over the measured peak (MFU)."""

from functools import partial

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxgpt import backend, measure, models
from mlxgpt.config import TrainConfig
from mlxgpt.kernels.bf16_matmul import bf16_matmul
from mlxgpt.models import Model
from mlxgpt.models.layers import QuantizedEmbedding, QuantizedLinear, named_parameters
from mlxgpt.training.step import training_dtype

TABLES = ("wpe", "embed", "wte")


def flops_a_token(model: Model, length: int) -> float:
    """Arithmetic of training on one token in a sequence of `length`: 6 a weight that is multiplied, 4 one that is
    frozen (it has no gradient), and attention's 12 · layers · width · length (PaLM, arXiv 2204.02311, appendix B; the
    causal half is counted as if it were whole). What gradient checkpointing computes twice counts once.
    """
    counts = {name: p.size for name, p in named_parameters(model).items()}
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):  # packed, and their scales
            counts |= {f"{path}.{name}": 0 for name in ("scales", "biases") if name in module}
            counts[f"{path}.weight"] = module.weight.size * 32 // module.bits
    tables = [name for name in counts if any(table in name for table in TABLES)]
    tied = not any(name.startswith("lm_head.") for name in counts)
    head = max(tables, key=lambda name: counts[name], default="") if tied else ""  # multiplied once
    trained = dict(tree_flatten(model.trainable_parameters()))
    work = sum((6 if name in trained else 4) * n for name, n in counts.items() if name == head or name not in tables)
    c = model.config
    width = c.n_embd if isinstance(c, models.gpt2.Config) else c.hidden_size
    return work + 12 * len(model.layers) * width * length


def peak(dtype: mx.Dtype, size: int = 2048) -> float:
    """FLOP/s of the fastest large matrix product, `size` each way, that training in `dtype` could do, measured now."""
    if dtype == mx.bfloat16 and backend.device() == "cpu":
        return measure.matmul(size, repeats=3, product=partial(bf16_matmul, rounded=True))
    return measure.matmul(size, dtype, repeats=3)


class Pace:
    """What share of the device's peak a pace of training is. The peak is that of a matrix product in the compute type,
    large enough to reach it and over in a moment, measured now."""

    def __init__(self, model: Model, train: TrainConfig) -> None:
        self.flops_a_token = flops_a_token(model, train.sequence_length)
        size = 1024 if backend.device() == "cpu" else 4096
        self.peak = peak(training_dtype(train.dtype), size)
        mx.reset_peak_memory()  # the run's own begins now

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilization, about 0 to 1."""
        return self.flops_a_token * tokens_per_second / self.peak
