"""Samplers: truncation and temperature hold in what is drawn, not only in what is asked for."""

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlxgpt.errors import UsageError
from mlxgpt.generation.sampling import Chooser, Sampling

PROBABILITIES = np.array([0.05, 0.4, 0.02, 0.25, 0.01, 0.15, 0.12])
LOGITS = mx.array(np.log(PROBABILITIES) + 3.0)  # not normalised
DRAWS = 20_000


def frequencies(**sampling) -> np.ndarray:
    mx.random.seed(0)
    choose = Chooser(Sampling(**sampling), 7)
    tokens, _ = choose(mx.broadcast_to(LOGITS, (DRAWS, 7)), [])
    return np.bincount(np.array(tokens), minlength=7) / DRAWS


def renormalised(kept: list[int], temperature: float = 1.0) -> np.ndarray:
    powers = np.zeros(7)
    powers[kept] = PROBABILITIES[kept] ** (1 / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, renormalised(list(range(7)))),
        ({"temperature": 0.5}, renormalised(list(range(7)), 0.5)),
        ({"temperature": 2.0}, renormalised(list(range(7)), 2.0)),
        ({"temperature": 1.0, "top_k": 1}, renormalised([1])),
        ({"temperature": 1.0, "top_k": 3}, renormalised([1, 3, 5])),
        ({"temperature": 1.0, "top_k": 6}, renormalised([0, 1, 2, 3, 5, 6])),
        ({"temperature": 1.0, "top_k": 7}, renormalised(list(range(7)))),
        ({"temperature": 1.0, "top_k": 100}, renormalised(list(range(7)))),
        ({"temperature": 1.0, "top_p": 0.6}, renormalised([1, 3])),
        ({"temperature": 1.0, "top_p": 0.7}, renormalised([1, 3, 5])),
        ({"temperature": 1.0, "top_p": 0.01}, renormalised([1])),
        ({"temperature": 1.0, "min_p": 0.35}, renormalised([1, 3, 5])),
        ({"temperature": 1.0, "min_p": 1.0}, renormalised([1])),
        ({"temperature": 2.0, "top_p": 0.9, "top_k": 3, "min_p": 0.2}, renormalised([1, 3, 5], 2.0)),
        ({"temperature": 0.0, "top_p": 0.9, "top_k": 3, "min_p": 0.2}, renormalised([1])),
    ],
    ids=str,
)
def test_draws_follow_the_truncated_distribution(sampling, expected):
    drawn = frequencies(**sampling)
    assert (drawn[expected == 0] == 0).all()
    sigma = np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(drawn - expected) <= 4.5 * sigma).all()


def test_greedy_takes_the_likeliest_and_gives_the_model_s_own_logprob():
    token, logprob = Chooser(Sampling(), 7)(LOGITS[None], [])
    assert (token.tolist(), token.shape, logprob.shape) == ([1], (1,), (1,))
    np.testing.assert_allclose(np.array(logprob), np.log(0.4), rtol=1e-5)


def test_the_logprob_is_that_before_temperature_and_truncation():
    mx.random.seed(1)
    choose = Chooser(Sampling(temperature=3.0, top_k=4), 7)
    tokens, logprobs = choose(mx.broadcast_to(LOGITS, (50, 7)), [])
    assert len(set(tokens.tolist())) == 4
    np.testing.assert_allclose(np.array(logprobs), np.log(PROBABILITIES)[np.array(tokens)], rtol=1e-4)


def test_half_precision_logits_are_chosen_from_in_float32():
    logits = mx.array([[256.0, 255.0, 250.0]], mx.bfloat16)
    _, logprob = Chooser(Sampling(), 3)(logits, [])
    assert logprob.dtype == mx.float32
    np.testing.assert_allclose(np.array(logprob), -np.log(1 + np.exp(-1) + np.exp(-6)), rtol=1e-4)


def test_the_repetition_penalty_lowers_the_last_twenty_tokens_and_no_others():
    choose = Chooser(Sampling(repetition_penalty=2.0), 5)
    assert choose.needs_history
    assert not Chooser(Sampling(), 5).needs_history
    logits = mx.array([[4.0, 3.0, -1.0, -3.0, 2.5]])
    token, logprob = choose(logits, [1, 1, 2] + [0] * 18 + [3, 0])  # the last twenty are all 0 but for one 3
    penalised = np.array([2.0, 3.0, -1.0, -6.0, 2.5])
    assert token.item() == 1
    np.testing.assert_allclose(logprob.item(), 3.0 - np.log(np.exp(penalised).sum()), rtol=1e-5)
    assert choose(logits, [2])[0].item() == 0
    assert logits.tolist() == [[4.0, 3.0, -1.0, -3.0, 2.5]]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, not -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, not nan"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.1}, "top-p must be above 0 and at most 1, not 1.1"),
        ({"top_k": -1}, "top-k must be at least 0, not -1"),
        ({"min_p": 1.5}, "min-p must be between 0 and 1, not 1.5"),
        ({"repetition_penalty": 0.0}, "the repetition penalty must be above 0, not 0.0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(sampling, message):
    with pytest.raises(UsageError) as refused:
        Sampling(**sampling)
    assert str(refused.value) == message


def test_samplers_come_without_mlx_lm_and_transformers():
    script = """
import sys
import mlxgpt.generation.engine
from mlxgpt.generation.sampling import Chooser, Sampling
import mlx.core as mx
print(Chooser(Sampling(temperature=1.0, top_k=2, repetition_penalty=1.1), 4)(mx.zeros((1, 4)), [1])[0].item())
print([m for m in sys.modules if m.split(".")[0] in ("mlx_lm", "transformers", "torch", "huggingface_hub")])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    token, loaded = result.stdout.splitlines()
    assert token in "0123"
    assert loaded == "[]"
