"""sample: the distribution is the Chooser's, each draw a function of its key, and the Chooser uses it on a GPU."""

import mlx.core as mx
import numpy as np
import pytest
from metal_model.simulated import simulated_metal
from mlxgpt.kernels.dispatch import Unsupported
from mlxgpt.kernels.sample import sample, threefry

from mlxgpt.generation.sampling import Chooser, Sampling

KEY = mx.array([7, 11], mx.uint32)
DRAWS = 20_000
LOGITS = mx.array(np.log([0.05, 0.4, 0.02, 0.25, 0.01, 0.15, 0.12]) + 3.0)[None]


@pytest.mark.parametrize(
    ("key", "counter", "bits"),
    [
        ((0, 0), (0, 0), 0x6B200159),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), 0x1CB996FC),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), 0xC4923A9C),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, bits):
    """Those of its authors' library, Random123."""
    row, index = (mx.array(c, mx.uint32) for c in counter)
    assert threefry(mx.array(key, mx.uint32), row, index).item() == bits


@pytest.mark.parametrize(
    "options",
    [
        {}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 7}, {"top_k": 100},
        {"top_p": 0.6}, {"top_p": 0.7}, {"top_p": 0.01}, {"min_p": 0.35}, {"min_p": 1.0},
        {"temperature": 2.0, "top_p": 0.9, "top_k": 3, "min_p": 0.2}, {"temperature": 0.0, "top_k": 3},
    ],
    ids=str,
)  # fmt: skip
def test_draws_follow_the_chooser_s_distribution(options):
    options = {"temperature": 1.0, **options}
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    history = [1, 1, 5, 4]
    choose = Chooser(Sampling(**options, **penalties), 7)
    logprobs = choose.logprobs(LOGITS, history)
    wanted = np.array(choose.distribution(logprobs, 0)[0], np.float64)
    rows = mx.broadcast_to(LOGITS, (DRAWS, 7))
    tokens, found = sample(
        rows, KEY, **options, history=mx.broadcast_to(mx.array(history), (DRAWS, 4)), penalties=(1.2, 0.1, 0.2)
    )
    drawn = np.bincount(np.array(tokens), minlength=7) / DRAWS
    assert (drawn[wanted == 0] == 0).all()
    assert (np.abs(drawn - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-9).all()
    np.testing.assert_allclose(np.array(found), np.array(logprobs[0])[np.array(tokens)], atol=1e-5)


def test_exactly_k_of_equals_stay_and_the_nucleus_keeps_them_all():
    rows = mx.zeros((2000, 50))
    assert set(sample(rows, KEY, top_k=3)[0].tolist()) == {0, 1, 2}
    assert set(sample(rows, KEY, top_p=0.1)[0].tolist()) == set(range(50))


def test_a_draw_depends_on_its_key_and_row_alone():
    rows = mx.zeros((40, 1000))
    tokens = sample(rows, KEY)[0].tolist()
    assert sample(rows, KEY)[0].tolist() == tokens
    assert sample(rows[:3], KEY)[0].tolist() == tokens[:3]
    assert len(set(tokens)) > 30
    for other in (np.array([7, 12], np.uint32), np.array([8, 11], np.uint32)):
        assert sum(a == b for a, b in zip(sample(rows, mx.array(other))[0].tolist(), tokens, strict=True)) < 4


@pytest.mark.parametrize("form", ["kernel", "reference"])
def test_what_is_not_a_number_is_not_chosen_and_infinity_always_is(form):
    inf, nan = float("inf"), float("nan")
    rows = mx.array([[1, nan, -inf, 1], [inf, 1, nan, inf], [-inf, -inf, -inf, -inf], [nan, -inf, nan, nan]])
    with simulated_metal():
        for seed in range(10):
            for options in ({}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.1}, {"temperature": 0}):
                tokens, logprobs = sample(rows, mx.array([seed, 0], mx.uint32), **options, form=form)
                first, second, *rest = tokens.tolist()
                assert first in (0, 3)
                assert second in (0, 3)
                assert all(token < 4 for token in rest)
                np.testing.assert_allclose(np.array(logprobs), -np.log([2, 2, 4, 4]), rtol=1e-5)


def test_both_forms_choose_the_same_over_a_large_vocabulary():
    rng = np.random.default_rng(0)
    logits = mx.array(rng.normal(0, 3, (1, 200_000)).astype(np.float32)).astype(mx.bfloat16)
    history = mx.array(rng.integers(0, 200_000, (1, 20)))
    with simulated_metal() as simulation:
        for step, options in enumerate(({"top_k": 40}, {"top_p": 0.95}, {"temperature": 0.0})):
            key = mx.array([5, step], mx.uint32)
            one, other = (
                sample(logits, key, **options, history=history, penalties=(1.1, 0.0, 0.0), form=form)
                for form in ("kernel", "reference")
            )
            assert one[0].tolist() == other[0].tolist()
            np.testing.assert_allclose(np.array(one[1]), np.array(other[1]), atol=1e-3)  # MLX's sum on a CPU is plain
    assert len(simulation.launches) == 3


def test_rows_that_are_not_contiguous_and_no_rows():
    wide = mx.array(np.random.default_rng(1).normal(0, 3, (5, 64)).astype(np.float32))
    with simulated_metal():
        for x in (wide.T, wide[:, ::3], mx.broadcast_to(wide[:1], (4, 64))):
            assert sample(x, KEY, top_k=4, form="kernel")[0].tolist() == sample(x, KEY, top_k=4)[0].tolist()
        token, logprob = sample(wide[:0], KEY, form="kernel")
    assert (token.shape, token.dtype, logprob.shape, logprob.dtype) == ((0,), mx.uint32, (0,), mx.float32)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"logits": mx.zeros((2, 3), mx.int32)}, TypeError, "logits must be float32, float16 or bfloat16, not .*int32"),
        ({"logits": mx.zeros((3,))}, ValueError, r"logits must be \[B, V\] with V at least 1, not \[3\]"),
        ({"logits": mx.zeros((2, 0))}, ValueError, r"logits must be \[B, V\] with V at least 1, not \[2, 0\]"),
        ({"key": mx.array([1, 2])}, ValueError, r"key must be uint32 \[2\], not mlx.core.int32 \[2\]"),
        ({"history": mx.zeros((2, 3))}, TypeError, "history must be integers, not mlx.core.float32"),
        ({"history": mx.zeros((3, 3), mx.int32)}, ValueError, r"history must be \[2, N\], not \[3, 3\]"),
        ({"temperature": -1.0}, ValueError, "temperature must be at least 0 and finite, not -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be at least 0 and finite, not nan"),
        ({"top_k": -1}, ValueError, "top_k must be at least 0, not -1"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, not 0.0"),
        ({"min_p": 1.1}, ValueError, "min_p must be between 0 and 1, not 1.1"),
        ({"penalties": (0.0, 0.0, 0.0)}, ValueError, "the repetition penalty must be above 0 and finite, not 0.0"),
        ({"form": "kernel"}, Unsupported, "the kernel needs a GPU, and MLX computes on the CPU here"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, kind, message):
    with pytest.raises(kind, match=f"^sample: {message}$"):
        sample(**({"logits": mx.zeros((2, 3)), "key": KEY} | change))


def test_the_chooser_draws_in_one_kernel_on_a_gpu_and_as_before_on_a_cpu(monkeypatch):
    sampling = Sampling(0.8, top_p=0.9, top_k=5, min_p=0.01, repetition_penalty=1.3, presence_penalty=0.2)
    choose = Chooser(sampling, 7, seed=5)
    history = [1] * 30 + [2, 3]
    logprobs = choose.logprobs(LOGITS, history)
    assert choose.choose(LOGITS, history, 0) is None
    before = [choose.draw(logprobs, step).item() for step in range(20)]
    with simulated_metal() as simulation:
        drawn = [choose.draw(logprobs, step).item() for step in range(20)]
        chosen = [choose.choose(LOGITS, history, step) for step in range(20)]
        assert len(simulation.launches) == 40
        xtc = Chooser(Sampling(0.8, xtc_probability=0.5), 7)
        assert xtc.choose(LOGITS, [], 0) is None
        xtc.draw(LOGITS, 0)
        monkeypatch.setenv("MLXGPT_KERNELS", "reference")
        assert [choose.draw(logprobs, step).item() for step in range(20)] == before
        assert len(simulation.launches) == 40
    assert [token.item() for token, _ in chosen] == drawn
    found = [logprob.item() for _, logprob in chosen]
    np.testing.assert_allclose(found, np.array(logprobs[0])[drawn], atol=1e-5)
