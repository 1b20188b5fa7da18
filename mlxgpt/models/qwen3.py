"""Qwen3 (arXiv 2505.09388): Mistral with QK-norm, an RMSNorm over each head's queries and keys before their rotation.

It bounds the scores of attention, and so stands higher learning rates (arXiv 2302.05442, arXiv 2010.04245). Parameter
names are the Hub's (`Qwen/Qwen3-0.6B-Base`).
"""

from dataclasses import dataclass
from typing import ClassVar

from mlxgpt.models import mistral


@dataclass(frozen=True)
class Config(mistral.Config):
    """[model] with type = "qwen3"; the names are the Hub's."""

    qk_norm: ClassVar[bool] = True


class Model(mistral.Model):
    """tokens [B, T] int -> logits [B, T, V]."""
