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
LOGPROBS = mx.array(np.log(PROBABILITIES))[None]
DRAWS = 20_000


def chosen(choose: Chooser, logits: mx.array, history: list[int]) -> tuple[mx.array, mx.array]:
    """Tokens [B] drawn from logits [B, V], and their log-probabilities [B]."""
    logprobs = choose.logprobs(logits, history)
    tokens = choose.draw(logprobs, 0)
    return tokens, mx.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]


def frequencies(**sampling) -> np.ndarray:
    choose = Chooser(Sampling(**sampling), 7)
    tokens, _ = chosen(choose, mx.broadcast_to(LOGITS, (DRAWS, 7)), [])
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
    token, logprob = chosen(Chooser(Sampling(), 7), LOGITS[None], [])
    assert (token.tolist(), token.shape, logprob.shape) == ([1], (1,), (1,))
    np.testing.assert_allclose(np.array(logprob), np.log(0.4), rtol=1e-5)


def test_the_logprob_is_that_before_temperature_and_truncation():
    choose = Chooser(Sampling(temperature=3.0, top_k=4), 7, seed=1)
    tokens, logprobs = chosen(choose, mx.broadcast_to(LOGITS, (50, 7)), [])
    assert len(set(tokens.tolist())) == 4
    np.testing.assert_allclose(np.array(logprobs), np.log(PROBABILITIES)[np.array(tokens)], rtol=1e-4)


def test_half_precision_logits_are_chosen_from_in_float32():
    logits = mx.array([[256.0, 255.0, 250.0]], mx.bfloat16)
    _, logprob = chosen(Chooser(Sampling(), 3), logits, [])
    assert logprob.dtype == mx.float32
    np.testing.assert_allclose(np.array(logprob), -np.log(1 + np.exp(-1) + np.exp(-6)), rtol=1e-4)


def test_the_repetition_penalty_lowers_the_last_twenty_tokens_and_no_others():
    choose = Chooser(Sampling(repetition_penalty=2.0), 5)
    assert choose.needs_history
    assert not Chooser(Sampling(), 5).needs_history
    logits = mx.array([[4.0, 3.0, -1.0, -3.0, 2.5]])
    token, logprob = chosen(choose, logits, [1, 1, 2] + [0] * 18 + [3, 0])  # the last twenty are all 0 but for one 3
    penalised = np.array([2.0, 3.0, -1.0, -6.0, 2.5])
    assert token.item() == 1
    np.testing.assert_allclose(logprob.item(), 3.0 - np.log(np.exp(penalised).sum()), rtol=1e-5)
    assert chosen(choose, logits, [2])[0].item() == 0
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
        ({"xtc_probability": 1.1}, "XTC's probability must be from 0 to 1, not 1.1"),
        ({"xtc_threshold": 0.6}, "XTC's threshold must be from 0 to 0.5, not 0.6"),
        ({"penalty_context": 0}, "the penalties must look back at least 1 token, not 0"),
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
choose = Chooser(Sampling(temperature=1.0, top_k=2, repetition_penalty=1.1), 4)
print(choose.draw(choose.logprobs(mx.zeros((1, 4)), [1]), 0).item())
print([m for m in sys.modules if m.split(".")[0] in ("mlx_lm", "transformers", "torch", "huggingface_hub")])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    token, loaded = result.stdout.splitlines()
    assert token in "0123"
    assert loaded == "[]"


def test_presence_and_frequency_penalties_are_subtracted_once_and_for_each_time():
    logits = mx.array([[4.0, 3.0, -1.0, -3.0, 2.5]])
    history = [4] * 9 + [1, 2, 1, 0]
    counts = np.array([1, 2, 1, 0, 0])  # in the last four

    def penalised(**penalties) -> np.ndarray:
        choose = Chooser(Sampling(penalty_context=4, **penalties), 5)
        assert choose.needs_history
        return np.array(choose.logprobs(logits, history)[0])

    def expected(by: np.ndarray) -> np.ndarray:
        lowered = np.array(logits[0], np.float64) - by
        return lowered - np.log(np.exp(lowered).sum())

    np.testing.assert_allclose(penalised(presence_penalty=0.7), expected(0.7 * (counts > 0)), rtol=1e-5)
    np.testing.assert_allclose(penalised(frequency_penalty=0.7), expected(0.7 * counts), rtol=1e-5)
    both = penalised(presence_penalty=0.5, frequency_penalty=-0.2)
    np.testing.assert_allclose(both, expected(0.5 * (counts > 0) - 0.2 * counts), rtol=1e-5)
    np.testing.assert_allclose(
        np.array(Chooser(Sampling(presence_penalty=1.0), 5).logprobs(logits, [])[0]), expected(np.zeros(5)), rtol=1e-5
    )


def test_xtc_takes_away_all_likely_tokens_but_the_least_of_them_as_often_as_asked():
    """Above a tenth: 0.4, 0.25, 0.15 and 0.12, of which the last stays."""
    without = renormalised([0, 2, 4, 6])

    def drawn(probability: float, protected=(), threshold=0.1) -> np.ndarray:
        choose = Chooser(
            Sampling(1.0, xtc_probability=probability, xtc_threshold=threshold), 7, protected=protected
        )  # fmt: skip
        tokens = [choose.draw(LOGPROBS, step) for step in range(800)]
        return np.bincount(np.array(mx.concatenate(tokens)), minlength=7) / 800

    for probability in (0.3, 1.0):
        expected = probability * without + (1 - probability) * PROBABILITIES
        assert (np.abs(drawn(probability) - expected) <= 4.5 * np.sqrt(expected / 800)).all()
    kept = renormalised([0, 1, 2, 4, 6])
    assert (np.abs(drawn(1.0, protected=[1]) - kept) <= 4.5 * np.sqrt(kept / 800)).all()
    assert (np.abs(drawn(1.0, threshold=0.3) - PROBABILITIES) <= 4.5 * np.sqrt(PROBABILITIES / 800)).all()


def test_a_draw_depends_on_the_seed_and_the_step_alone():
    def draws(seed: int, steps=range(40)) -> list[int]:
        choose = Chooser(Sampling(1.0), 7, seed)
        return [int(choose.draw(LOGPROBS, step).item()) for step in steps]

    forward = draws(3)
    mx.random.seed(99)
    assert draws(3, range(39, -1, -1)) == forward[::-1]
    assert len(set(forward)) > 2
    assert draws(4) != forward != draws(3 + (1 << 31)) != draws(-3)


@pytest.mark.parametrize("sampling", [{"temperature": 0.6, "top_k": 3}, {"temperature": 2.0, "top_p": 0.7}], ids=str)
def test_the_distribution_is_that_of_the_draws(sampling):
    choose = Chooser(Sampling(**sampling), 7)
    given = np.array(choose.distribution(LOGPROBS, 0)[0])
    np.testing.assert_allclose(given, renormalised([1, 3, 5], sampling["temperature"]), rtol=1e-4)
    drawn = frequencies(**sampling)
    assert (np.abs(drawn - given) <= 4.5 * np.sqrt(given * (1 - given) / DRAWS) + 1e-9).all()
