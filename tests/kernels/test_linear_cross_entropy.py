"""linear_cross_entropy without a GPU: its plain form against float64, its chunks, their memory, and bad input."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import dispatch, verify
from mlxgpt.kernels.linear_cross_entropy import cases, linear_cross_entropy, op, reference


@pytest.fixture
def plain(monkeypatch):
    """Has the op compute what it does without a kernel, even where the kernel is asked for."""
    monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: False)


@pytest.mark.parametrize("dtype", verify.DTYPES, ids=str)
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_the_plain_form_passes_the_kernel_s_cases(case, dtype, plain):
    outcome = verify.check(case, dtype)
    assert outcome.passed, outcome


def draw(N: int, C: int, V: int, dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array, mx.array]:
    x, weight = (
        mx.random.normal(shape, key=mx.random.key(i)).astype(dtype) for i, shape in enumerate([(N, C), (V, C)])
    )
    return x, weight, mx.random.randint(0, V, (N,), key=mx.random.key(2))


def value_and_gradients(function, x, weight, targets, **options) -> list[mx.array]:
    loss, gradients = mx.value_and_grad(lambda x, w: 3 * function(x, w, targets, **options), argnums=(0, 1))(x, weight)
    return [loss, *gradients]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("rows", [1, 3, 12, 13, 100])
def test_chunks_make_no_difference(rows, compiled, monkeypatch):
    x, weight, targets = draw(13, 6, 20)
    targets = mx.where(mx.arange(13) % 4 == 1, 7, targets)
    options = dict(ignore_index=7, softcap=8.0, z_loss=0.01)
    expected = value_and_gradients(reference, x, weight, targets, **options)
    monkeypatch.setattr(op, "CHUNK", rows * 20)

    def run(x, weight, targets):
        return value_and_gradients(linear_cross_entropy, x, weight, targets, **options)

    for mine, its in zip((mx.compile(run) if compiled else run)(x, weight, targets), expected, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)


def test_a_vocabulary_longer_than_a_chunk_goes_row_by_row(monkeypatch):
    x, weight, targets = draw(3, 4, 50)
    monkeypatch.setattr(op, "CHUNK", 7)
    expected = reference(x, weight, targets).item()
    assert linear_cross_entropy(x, weight, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_logits_are_never_all_there(compiled, monkeypatch):
    x, weight, targets = draw(2048, 8, 2048)
    monkeypatch.setattr(op, "CHUNK", 1 << 17)
    run = mx.value_and_grad(linear_cross_entropy, argnums=(0, 1))
    run = mx.compile(run) if compiled else run
    mx.eval(x, weight, targets)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run(x, weight, targets))
    assert mx.get_peak_memory() - before < x.shape[0] * weight.shape[0] * 4 / 2


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_the_weight_s_gradient_is_summed_in_float32(dtype, monkeypatch):
    """400 chunks of one token: summed in half precision, what a late one adds would be rounded away."""
    x, weight, targets = draw(400, 4, 6, dtype)
    wide = value_and_gradients(reference, x.astype(mx.float32), weight.astype(mx.float32), targets)
    monkeypatch.setattr(op, "CHUNK", 6)
    loss, *gradients = value_and_gradients(linear_cross_entropy, x, weight, targets)
    assert [a.dtype for a in (loss, *gradients)] == [mx.float32, dtype, dtype]
    bound = 2.0**-8 if dtype == mx.bfloat16 else 2.0**-11
    for mine, true in zip(gradients, wide[1:], strict=True):
        assert mx.linalg.norm(mine.astype(mx.float32) - true).item() < bound * mx.linalg.norm(true).item()


def test_many_tokens_in_float16_do_not_overflow():
    """Each of 30,000 adds -3 to the sum of one row's gradient, of which the mean is taken."""
    x, weight = mx.full((30_000, 2), 4, mx.float16), mx.zeros((4, 2), mx.float16)
    _, _, dw = value_and_gradients(linear_cross_entropy, x, weight, mx.full(30_000, 1, mx.int32))
    np.testing.assert_allclose(np.array(dw), [[3, 3], [-9, -9], [3, 3], [3, 3]], rtol=1e-3)  # the mean's, three times


def test_extreme_logits_stay_finite():
    weight = mx.array([[1e4], [-1e4], [0.0]])
    x, targets = mx.array([[1.0], [-1.0], [1.0]]), mx.array([0, 1, 1])
    loss, dx, dw = value_and_gradients(linear_cross_entropy, x, weight, targets)
    assert loss.item() == pytest.approx(2e4)  # 3 · (0 + 0 + 2e4) / 3
    np.testing.assert_allclose(np.array(dx), [[0], [0], [2e4]])
    np.testing.assert_allclose(np.array(dw), [[1], [-1], [0]])


def test_an_impossible_target_shows():
    x, weight, _ = draw(3, 4, 5)
    for target in (5, -1, 1 << 20):
        assert np.isnan(linear_cross_entropy(x, weight, mx.array([0, target, 1])).item())
    assert np.isfinite(linear_cross_entropy(x, weight, mx.array([0, -1, 1]), ignore_index=-1).item())


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint16, mx.int64])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (0, 4)], ids=str)
def test_any_shape_and_type_of_id(shape, dtype):
    x, weight, _ = draw(max(1, int(np.prod(shape))), 4, 5)
    x, targets = x[: int(np.prod(shape))].reshape(*shape, 4), mx.full(shape, 4, dtype)
    loss, dx, dw = value_and_gradients(linear_cross_entropy, x, weight, targets)
    expected = value_and_gradients(reference, x, weight, targets) if targets.size else [mx.array(0.0), x, 0 * weight]
    for mine, its in zip((loss, dx, dw), expected, strict=True):
        assert mine.shape == its.shape
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-5, atol=1e-6)


def test_inputs_need_not_be_contiguous():
    x, weight, targets = draw(6, 4, 5)
    views = [mx.array(np.array(x.T)).T, mx.array(np.array(weight.T)).T, mx.broadcast_to(targets[:1], (6,))]
    packed = [mx.array(np.array(a)) for a in views]
    for a, b in zip(
        value_and_gradients(linear_cross_entropy, *views),
        value_and_gradients(linear_cross_entropy, *packed),
        strict=True,
    ):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-6, atol=1e-7)


X, W, Y = mx.zeros((3, 4)), mx.zeros((5, 4)), mx.zeros((3,), mx.int32)
BAD = {
    "x must be float32, float16 or bfloat16, not mlx.core.int32": dict(x=X.astype(mx.int32)),
    "weight must be float32, float16 or bfloat16, not mlx.core.uint32": dict(weight=W.astype(mx.uint32)),
    "weight is mlx.core.bfloat16 and x mlx.core.float32": dict(weight=W.astype(mx.bfloat16)),
    "weight must be [vocabulary, size], not (5,)": dict(weight=W[:, 0]),
    "weight must be [vocabulary, size], not (0, 4)": dict(weight=W[:0]),
    "x (3, 3) must end in weight's 4 columns": dict(x=X[:, :3]),
    "targets (2,) must be x's (3,)": dict(targets=Y[:2]),
    "targets must be of an integer type, not mlx.core.float32": dict(targets=Y.astype(mx.float32)),
    "softcap must be above 0, not 0": dict(softcap=0),
    "softcap must be above 0, not -2.0": dict(softcap=-2.0),
    "z_loss must be at least 0, not -1": dict(z_loss=-1),
    "form='fast' is none of auto, kernel, reference": dict(form="fast"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_error_that_names_it(message):
    with pytest.raises((TypeError, ValueError)) as caught:
        linear_cross_entropy(**(dict(x=X, weight=W, targets=Y) | BAD[message]))
    assert str(caught.value).startswith(f"linear_cross_entropy: {message}")


def test_a_kernel_that_cannot_be_had_is_an_error():
    with mx.stream(mx.cpu), pytest.raises(dispatch.Unsupported, match="the kernel needs a GPU"):
        linear_cross_entropy(X, W, Y, form="kernel")


@pytest.mark.parametrize(("N", "V"), [(1, 1), (3, 5), (40, 16), (7, 33), (2, 20000)])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_rows_in_cpp_are_the_plain_ones(N, V, z_loss):
    logits = 5 * mx.random.normal((N, V), key=mx.random.key(0))
    targets = mx.where(mx.arange(N) % 3 == 2, -100, mx.random.randint(0, V, (N,), key=mx.random.key(1)))
    for mine, its in zip(
        *(f(logits, targets, -100, None, z_loss) for f in (op.rows_cpp, op.rows_reference)), strict=True
    ):
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=5e-5, atol=2e-6)


def test_in_cpp_a_target_that_is_no_token_is_nan_and_what_is_not_finite_shows():
    losses, _ = op.rows_cpp(mx.zeros((3, 4)), mx.array([4, 0, -1]), -100, None, 0.0)
    assert np.isnan(np.array(losses)).tolist() == [True, False, True]
    bad = mx.array([[0.0, float("nan")], [0.0, float("inf")], [0.0, -float("inf")]])
    losses, gradient = op.rows_cpp(bad, mx.zeros(3, mx.int32), -100, None, 0.0)
    assert np.isfinite(np.array(losses)).tolist() == [False, False, True]
    assert np.isfinite(np.array(gradient)).all(1).tolist() == [False, False, True]


def test_rounded_products_are_in_bfloat16_and_sums_in_float32():
    x, weight, targets = draw(40, 64, 30)
    got = value_and_gradients(linear_cross_entropy, x, weight, targets, rounded=True)
    exact = value_and_gradients(reference, x, weight, targets)
    assert [a.dtype for a in got] == [mx.float32] * 3
    for mine, its in zip(got, exact, strict=True):
        scale = np.abs(np.array(its)).max()
        np.testing.assert_allclose(np.array(mine) / scale, np.array(its) / scale, rtol=0, atol=2e-2)
    assert not mx.array_equal(got[1], exact[1])
