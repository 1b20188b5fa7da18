"""`mlxgpt bench`: figures that are there, of the right kind, and consistent with each other."""

import json

import pytest

from mlxgpt import bench, models
from mlxgpt.models import gpt2, mistral


def test_a_training_step_is_measured(cli):
    done = cli("bench", "train", "--config", "shakespeare_char_cpu", "--steps", 2, "--json")
    found = json.loads(done.out.splitlines()[-1])
    assert found["tokens_per_second"] * found["step_ms"] / 1000 == pytest.approx(12 * 64)
    assert found["fraction_of_peak"] == pytest.approx(found["gflops"] / found["peak_gflops"])
    assert found["parameters"] > 800_000
    assert 0 < found["fraction_of_peak"] < 1.5
    assert found["peak_memory_bytes"] > 0


@pytest.mark.parametrize("with_model", [False, True])
def test_decoding_is_measured(cli, trained, with_model):
    options = ["--model", trained] if with_model else ["--config", "gpt2_decoder"]
    found = json.loads(cli("bench", "decode", *options, "--prompt", 8, "--tokens", 4, "--json").out.splitlines()[-1])
    assert found["tokens_per_second"] > 0
    assert found["prefill_tokens_per_second"] == pytest.approx(8 / found["time_to_first_token"])
    expected = found["bytes_a_token"] * found["tokens_per_second"] / found["bandwidth_gb_s"] / 1e9
    assert found["fraction_of_bandwidth"] == pytest.approx(expected)


def test_completion_is_measured_on_files_and_a_table_is_for_people(cli, trained, code):
    done = cli("bench", "complete", code, "--model", trained, "--cursors", 3)
    assert done.status == 0, done.err
    assert "cold_ms" in done.out
    assert "p95" in done.out


def test_what_cannot_be_measured_is_said(cli, trained):
    assert "needs a --model" in cli("bench", "complete").error
    assert "do not fit the model's context" in cli("bench", "decode", "--prompt", 600).error
    assert cli("bench", "train", "--config", "nothing").status == 2


def test_the_arithmetic_of_a_token_is_that_of_its_weights():
    """By hand: 6 for every weight of a matrix product, 12 · layers · width · length for attention."""
    tied = models.build(gpt2.Config(vocab_size=10, n_positions=8, n_embd=4, n_layer=2, n_head=2, bias=False))
    a_block, norms = 4 * 4 * (3 + 1 + 4 + 4), 5 * 4
    assert bench.flops_a_token(tied, 8) == 6 * (2 * a_block + norms + 10 * 4) + 12 * 2 * 4 * 8
    config = mistral.Config(
        vocab_size=10, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    a_block, norms = 4 * (4 + 2 + 2 + 4) + 3 * 4 * 6, 3 * 4
    assert bench.flops_a_token(models.build(config), 8) == 6 * (a_block + norms + 10 * 4) + 12 * 4 * 8
