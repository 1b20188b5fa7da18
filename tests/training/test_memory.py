"""Memory: activations computed twice change nothing else, a peak is foreseen, a batch fits, and nothing grows."""

import dataclasses
import gc
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxgpt import adapters, backend, models
from mlxgpt.config import InitConfig, OptimizerConfig, Recipe, TrainConfig
from mlxgpt.errors import Error
from mlxgpt.models import gpt2, layers, mistral, qwen3
from mlxgpt.training import memory, optimizers
from mlxgpt.training.step import frozen_head_loss, make_step, mean_loss

SMALL_GPT2 = gpt2.Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=3, n_head=2)
SMALL_MISTRAL = mistral.Config(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, sliding_window=9,
)  # fmt: skip
WIDE_GPT2 = gpt2.Config(vocab_size=1024, n_positions=128, n_embd=128, n_layer=4, n_head=4)
WIDE_MISTRAL = mistral.Config(
    vocab_size=1024, hidden_size=128, intermediate_size=448, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256,
)  # fmt: skip
DEEP = dataclasses.replace(WIDE_MISTRAL, num_hidden_layers=10)
LOW_RANK = adapters.Adapter(rank=4, scale=4.0, dropout=0.0, blocks=2)


def build(config, lora: adapters.Adapter | None = None, bits: int = 0, recompute: bool = False):
    mx.random.seed(1)
    model = models.build(config)
    model.init_weights()
    if bits:
        nn.quantize(model, 32, bits)
    if lora:
        adapters.attach(model, lora)
        for name, p in tree_flatten(model.trainable_parameters()):  # as if some steps were done
            if name.endswith("lora_b"):
                model.load_weights([(name, mx.random.normal(p.shape) * 0.1)], strict=False)
    if recompute:
        layers.recompute(model)
    model.train()
    mx.eval(model.parameters())
    return model


def batch(vocabulary: int, size: int, length: int) -> tuple[mx.array, mx.array]:
    block = np.random.default_rng(2).integers(0, vocabulary, (size, length + 1)).astype(np.int32)
    return mx.array(block[:, :-1]), mx.array(block[:, 1:])


def loss_and_gradients(model) -> tuple[float, dict[str, np.ndarray]]:
    x, y = batch(model.config.vocab_size, 3, 24)
    parameters = model.trainable_parameters()
    lora = any(name.endswith("lora_a") for name, _ in tree_flatten(parameters))
    loss = frozen_head_loss if lora else mean_loss

    def of(parameters):
        model.update(parameters)
        return loss(model, model.features(x), y)

    mx.random.seed(11)
    value, gradients = mx.value_and_grad(of)(parameters)
    return value.item(), {name: np.array(g) for name, g in tree_flatten(gradients)}


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("lora", [None, LOW_RANK])
@pytest.mark.parametrize("config", [SMALL_GPT2, SMALL_MISTRAL], ids=["gpt2", "mistral"])
def test_blocks_computed_again_give_the_same_loss_and_gradients(config, lora, bits):
    if bits and not lora:
        pytest.skip("quantized weights are trained beside only")
    loss, gradients = loss_and_gradients(build(config, lora, bits))
    again, its = loss_and_gradients(build(config, lora, bits, recompute=True))
    assert again == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == its.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            its[name], gradient, rtol=0, atol=1e-6 * max(1, np.abs(gradient).max()), err_msg=name
        )


@pytest.mark.parametrize("lora", [None, dataclasses.replace(LOW_RANK, dropout=0.3)])
def test_what_is_dropped_is_dropped_again(lora):
    """With the same key, the loss's slope along the gradient is the gradient's square: by finite differences."""
    config = dataclasses.replace(SMALL_GPT2, dropout=0.0 if lora else 0.3)
    model = build(config, lora, recompute=True)
    parameters = dict(tree_flatten(model.trainable_parameters()))
    _, gradients = loss_and_gradients(model)
    square = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values())
    values = []
    for step in (3e-3, -3e-3):
        moved = [(n, p + step / square**0.5 * mx.array(gradients[n])) for n, p in parameters.items()]
        model.load_weights(moved, strict=False)
        values.append(loss_and_gradients(model)[0])
    assert (values[0] - values[1]) / 6e-3 == pytest.approx(square**0.5, rel=2e-2)
    model.load_weights(list(parameters.items()), strict=False)
    still = loss_and_gradients(build(config, lora))[0]
    model.eval()
    assert loss_and_gradients(model)[0] != pytest.approx(still, rel=1e-6)  # something was dropped


@pytest.mark.parametrize("bits", [0, 4])
def test_a_frozen_heads_loss_is_the_mean_and_in_chunks_too(bits, monkeypatch):
    model = build(SMALL_MISTRAL, LOW_RANK, bits)
    whole, gradients = loss_and_gradients(model)
    monkeypatch.setattr("mlxgpt.training.step.CHUNK", 96 * 10)  # 10 of 72 tokens at a time
    parts, its = loss_and_gradients(build(SMALL_MISTRAL, LOW_RANK, bits))
    assert parts == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(its[name], gradient, rtol=0, atol=1e-6 * max(1, np.abs(gradient).max()))
    if not bits:
        x, y = batch(96, 3, 24)
        assert mean_loss(model, model.features(x), y).item() == pytest.approx(whole, rel=1e-5)


def test_the_largest_batch_that_fits_is_found_and_a_step_stays_what_it_was(monkeypatch):
    """Machines in which 0.8 of the memory is between what one sequence and the whole batch of 12 take, or is plenty."""
    recipe = Recipe({}, train=TrainConfig(batch_size=6, accumulation=2, sequence_length=128, auto_batch=True))
    config = dataclasses.replace(WIDE_MISTRAL, num_hidden_layers=2)
    model = build(config)
    before = {name: np.array(p) for name, p in tree_flatten(model.parameters())}
    peaks = {n: memory._peak(model, recipe, mx.float32, n) for n in (1, 2, 3, 4, 6, 12)}
    monkeypatch.setattr(memory, "_peak", lambda model, recipe, dtype, size: peaks[size])  # once each is enough
    for total in (0.3, 0.62, 4.0):
        room = peaks[1] + total * (peaks[12] - peaks[1])
        monkeypatch.setattr(backend, "total_memory", lambda room=room: int(room / memory.SHARE))
        fitted = memory.fitted(model, recipe).train
        assert fitted.batch_size * fitted.accumulation == 12
        assert not fitted.auto_batch
        best = max(n for n, peak in peaks.items() if peak <= room)
        assert best / 2 <= fitted.batch_size <= best
        assert total < 1 or fitted.batch_size == 12
    for name, p in tree_flatten(model.parameters()):
        np.testing.assert_array_equal(np.array(p), before[name])
    monkeypatch.setattr(backend, "total_memory", lambda: peaks[1] // 2)
    with pytest.raises(Error, match=r"one sequence of 128 tokens takes .*: lower train.sequence_length"):
        memory.fitted(model, recipe)


def test_a_step_beyond_the_machine_is_refused_before_it_starts_with_what_to_do(monkeypatch):
    """Mistral 7B's QLoRA, of which nothing is computed: some gigabytes in 4 bits, more than 100 in full training."""
    model = models.build(mistral.Config(vocab_size=32000))
    nn.quantize(model, 64, 4)
    adapters.attach(model, dataclasses.replace(LOW_RANK, rank=8, blocks=32))
    train = TrainConfig(batch_size=4, sequence_length=512, grad_checkpoint=True)
    recipe = Recipe({}, train=train, init=InitConfig(model="mistral-7b", lora=True, bits=4))
    found = memory.estimate(model, recipe, mx.float16)
    assert 4e9 < found.weights < 5e9
    assert 5e9 < found.total < 9e9
    monkeypatch.setattr(backend, "total_memory", lambda: 5 << 30)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(train, grad_checkpoint=False))
    with pytest.raises(
        Error, match=r"takes about .* GB .*and this machine has 5.37 GB: lower train.batch_size"
    ) as caught:
        memory.require(model, recipe, mx.float16)
    assert "train.grad_checkpoint=true" in str(caught.value)
    assert "--bits" not in str(caught.value)
    monkeypatch.setattr(backend, "total_memory", lambda: 20 << 30)
    memory.require(model, recipe, mx.float16)
    with pytest.raises(Error, match=r"this machine has 10.74 GB for each of 2 processes: lower"):
        memory.require(model, recipe, mx.float16, processes=2)
    plain = models.build(mistral.Config(vocab_size=32000))
    assert memory.estimate(plain, Recipe({}), mx.float16).total > 100e9


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much is in memory is read from /proc")
def test_memory_is_constant_over_a_thousand_steps():
    model = build(gpt2.Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, dropout=0.1))
    optimizer = optimizers.make(OptimizerConfig())
    step = make_step(model, optimizer, 1.0, mx.float32)
    pairs = [batch(64, 2, 16)]
    sizes = []
    for n in range(1, 1401):
        optimizer.learning_rate = 1e-3 / n
        mx.eval(step(pairs), model.state, optimizer.state)
        if n in (400, 1400):
            gc.collect()
            mx.synchronize()
            sizes.append((mx.get_active_memory(), resident()))
    (active, held), (still, later) = sizes
    assert still - active < 16_000  # less than 16 bytes a step
    assert later - held < 4 << 20


CASES = {
    "gpt2": (WIDE_GPT2, {}, {}),
    "mistral": (WIDE_MISTRAL, {}, {}),
    "qwen3": (qwen3.Config(**vars(WIDE_MISTRAL)), {}, {}),
    "small batch": (WIDE_MISTRAL, {"batch_size": 1, "sequence_length": 32}, {}),
    "accumulation": (WIDE_MISTRAL, {"batch_size": 2, "accumulation": 2}, {}),
    "recomputed": (DEEP, {"grad_checkpoint": True}, {}),
    "lora": (DEEP, {"batch_size": 2}, {"lora": True, "model": "x"}),
    "qlora": (DEEP, {"batch_size": 2}, {"lora": True, "model": "x", "bits": 4}),
    "qlora recomputed": (DEEP, {"batch_size": 8, "grad_checkpoint": True}, {"lora": True, "model": "x", "bits": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_steps_peak_is_foreseen(name):
    """Within a factor of 1.5 of what MLX counts, either way."""
    config, train, init = CASES[name]
    recipe = Recipe({}, train=TrainConfig(**{"batch_size": 8, "sequence_length": 128} | train), init=InitConfig(**init))
    lora = dataclasses.replace(LOW_RANK, blocks=config.num_hidden_layers) if init else None
    model = build(config, lora, recipe.init.bits, recipe.train.grad_checkpoint)
    expected = memory.estimate(model, recipe, mx.float32).total
    optimizer = optimizers.make(OptimizerConfig())
    step = make_step(model, optimizer, 1.0, mx.float32)
    batches = [batch(1024, recipe.train.batch_size, 128 if "sequence_length" not in train else 32)]
    gc.collect()
    before = mx.get_active_memory() - sum(p.nbytes for p in dict(tree_flatten(model.parameters())).values())
    mx.eval(step(batches * recipe.train.accumulation), model.state, optimizer.state)
    mx.reset_peak_memory()
    mx.eval(step(batches * recipe.train.accumulation), model.state, optimizer.state)
    peak = mx.get_peak_memory() - before
    print(f"{name}: estimate {expected / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB, ratio {expected / peak:.2f}")
    assert 1 / 1.5 < expected / peak < 1.5
