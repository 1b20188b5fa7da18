"""Muon over many matrices, in C++ where that serves, against the same in float64."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import compiled, muon_multi

RATE, MOMENTUM, DECAY = 0.03, 0.9, 0.2
SHAPES = [(128, 128), (64, 128), (384, 128), (128, 384), (6, 9), (3, 1), (3, 50), (51, 17)]


def exact(p: np.ndarray, g: np.ndarray, m: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Jordan et al.'s Muon of one matrix in float64."""
    m = MOMENTUM * m + (1 - MOMENTUM) * g
    a, b, c = muon_multi.op.COEFFICIENTS
    pieces = []
    for piece in np.split(MOMENTUM * m + (1 - MOMENTUM) * g, parts):
        x = piece / (np.linalg.norm(piece) + 1e-7)
        for _ in range(muon_multi.op.STEPS):
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
        pieces.append(x * max(1, piece.shape[0] / piece.shape[1]) ** 0.5)
    return p * (1 - RATE * DECAY) - RATE * np.concatenate(pieces), m


def drawn(shapes: list[tuple[int, int]]) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(3)
    return [[rng.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(3)]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("step", [muon_multi.muon, muon_multi.reference])
def test_a_step_is_the_papers(step, parts):
    shapes = [(3 * rows, columns) for rows, columns in SHAPES] if parts == 3 else SHAPES
    parameters, gradients, momenta = drawn(shapes)
    new = step(*([mx.array(a) for a in group] for group in (parameters, gradients, momenta)), mx.array(RATE), MOMENTUM,
               DECAY, parts)  # fmt: skip
    for shape, p, g, m, (after, momentum) in zip(shapes, parameters, gradients, momenta, new, strict=True):
        expected, its = exact(*(x.astype(np.float64) for x in (p, g, m)), parts)
        assert after.dtype == momentum.dtype == mx.float32
        np.testing.assert_allclose(np.array(momentum), its, atol=1e-6)
        np.testing.assert_allclose(np.array(after), expected, atol=2e-5, err_msg=str(shape))


def test_it_is_one_launch_whose_result_is_the_same_each_time():
    if compiled.load("muon_multi") is None:
        pytest.skip("no C++ here")
    groups = [[mx.array(a) for a in group] for group in drawn(SHAPES)]
    first, second = (
        [a for pair in muon_multi.muon(*groups, mx.array(RATE), MOMENTUM, DECAY) for a in pair] for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert mx.array_equal(one, other)


def test_what_is_no_matrix_or_no_gradient_of_it_is_refused():
    square, row = mx.zeros((4, 4)), mx.zeros((4,))
    for p, g, parts in ((row, row, 1), (square, mx.zeros((4, 3)), 1), (square, square, 3)):
        with pytest.raises(ValueError, match="muon: a matrix of"):
            muon_multi.muon([p], [g], [g], mx.array(RATE), MOMENTUM, DECAY, parts)


def test_no_gradient_moves_nothing_but_what_decays():
    p = mx.ones((4, 3))
    ((after, momentum),) = muon_multi.muon([p], [mx.zeros_like(p)], [mx.zeros_like(p)], mx.array(RATE), MOMENTUM, DECAY)
    np.testing.assert_allclose(np.array(after), 1 - RATE * DECAY, rtol=1e-6)
    assert not np.array(momentum).any()


def test_halves_take_mlxs_graph():
    p = mx.ones((4, 3), mx.float16)
    ((after, _),) = muon_multi.muon([p], [p], [p], mx.array(RATE, mx.float16), MOMENTUM, DECAY)
    assert after.dtype in (mx.float16, mx.float32)
