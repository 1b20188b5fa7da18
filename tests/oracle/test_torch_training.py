"""PyTorch, live: from the same weights and batches its AdamW, clip and schedule give our losses, step for step.

Needs PyTorch: `pip install -e ".[oracle]"`, as .ci/run does.
"""

import math

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is PyTorch: pip install -e '.[oracle]'")

import torch
import transformers

from mlxgpt import models, weights
from mlxgpt.config import OptimizerConfig
from mlxgpt.models import gpt2
from mlxgpt.tokenizer import CharTokenizer
from mlxgpt.training import optimizers
from mlxgpt.training.schedule import Clock
from mlxgpt.training.step import make_step

STEPS = 40
CONFIG = gpt2.Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)
RECIPE = OptimizerConfig(lr=5e-3, min_lr=5e-4, warmup_steps=8, clip=0.3)


def theirs(folder, batches: np.ndarray) -> list[float]:
    """The loop of nanoGPT's train.py: decay on matrices, cosine after a linear warm-up, clip, AdamW."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": RECIPE.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RECIPE.lr, betas=(RECIPE.beta1, RECIPE.beta2), eps=RECIPE.eps)
    losses = []
    for step, batch in enumerate(torch.from_numpy(batches)):
        ratio = (step - RECIPE.warmup_steps) / (STEPS - RECIPE.warmup_steps)
        cosine = RECIPE.min_lr + (RECIPE.lr - RECIPE.min_lr) * 0.5 * (1 + math.cos(math.pi * ratio))
        warm = RECIPE.lr * (step + 1) / (RECIPE.warmup_steps + 1)
        for group in optimizer.param_groups:
            group["lr"] = warm if step < RECIPE.warmup_steps else cosine
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, RECIPE.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_run_is_pytorchs_step_for_step(tmp_path):
    mx.random.seed(4)
    model = models.build(CONFIG)
    model.init_weights()
    weights.save_tokenizer_and_config(tmp_path, CONFIG, CharTokenizer("abcdefghij"))
    weights.save_weights(tmp_path / "model.safetensors", weights.to_disk(model))
    successors = np.random.default_rng(0).integers(0, 40, 40)  # something to learn: each token has its own next one
    batches = np.random.default_rng(1).integers(0, 40, (STEPS, 6, 17))
    batches[:, :, 1::2] = successors[batches[:, :, :-1:2]]
    optimizer = optimizers.make(RECIPE)
    step, clock = make_step(model, optimizer, RECIPE.clip, mx.float32), Clock(STEPS, 0.0)
    ours = []
    for number, batch in enumerate(batches.astype(np.int32)):
        optimizer.learning_rate = clock.rate(RECIPE, number)
        ours.append(step([(mx.array(batch[:, :-1]), mx.array(batch[:, 1:]))])[0].item())
    assert ours[-1] < 0.8 * ours[0]
    np.testing.assert_allclose(ours, theirs(tmp_path, batches), rtol=0, atol=1e-3)
