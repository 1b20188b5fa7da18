"""windowed_attention without a GPU: its plain forms against float64, the rule that chooses a form, and bad input."""

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import dispatch, verify
from mlxgpt.kernels.windowed_attention import cases, op, reference, visible, windowed_attention


@pytest.fixture(params=["cpu", "cpu in plain MLX", "gpu"])
def plain(request, monkeypatch):
    """Has the op compute what it does without a kernel, on a CPU or on a GPU, even where the kernel is asked for."""
    if request.param == "cpu in plain MLX":
        monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(getattr(mx, request.param[:3])))
    monkeypatch.setattr(dispatch, "use_kernel", lambda *_, **__: False)


@pytest.mark.parametrize("case", [c for c in cases.CASES if mx.float32 in c.dtypes], ids=lambda case: case.name)
def test_plain_forms_pass_the_kernel_s_cases(case, plain):
    """In half precision they round scores and weights as well; test_ops.py bounds that."""
    outcome = verify.check(case, mx.float32)
    assert outcome.passed, outcome


def draw(B, H, Hkv, T, S, D) -> list[mx.array]:
    shapes = (B, H, T, D), (B, Hkv, S, D), (B, Hkv, S, D)
    return [mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes)]


# From 128 queries on a CPU works in four blocks: documents end within, at and across their borders.
LENGTHS = {
    "ragged": (40, 8, 1, 1, 70, 80), "single tokens": (1,) * 200, "one": (200,), "at": (50, 50, 50, 50),
    "across": (49, 52, 99),
}  # fmt: skip


@pytest.mark.parametrize("window", [None, 1, 30, 200])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("T", [200, 131])
def test_documents_are_attended_to_one_by_one(lengths, window, T, plain):
    """As if each were a sequence of its own."""
    q, k, v = draw(2, 4, 2, T, 200, 8)
    numbers = [np.repeat(np.arange(len(lengths)), lengths), np.repeat(np.arange(len(lengths)) % 2, lengths)]
    weights = mx.random.normal(q.shape, key=mx.random.key(3))
    documents = mx.array(np.stack(numbers).astype(np.int32))
    (out,), gradients = mx.vjp(lambda *x: windowed_attention(*x, 0.3, window, documents), [q, k, v], [weights])

    def apart(q, k, v):
        pieces, end = [], 0
        for length in lengths:
            start, end = end, end + length
            first = max(start, 200 - T)  # of the queries there are
            if first < end:
                mask = visible(end - first, end - start, window)
                rows = q[:, :, first - 200 + T : end - 200 + T]
                pieces.append(reference(rows, k[:, :, start:end], v[:, :, start:end], 0.3, mask))
        return mx.concatenate(pieces, axis=2)

    (expected,), alike = mx.vjp(apart, [q, k, v], [weights])
    for mine, its in zip([out, *gradients], [expected, *alike], strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(its), rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(("T", "S", "window"), [(1, 1, None), (6, 6, None), (6, 6, 2), (4, 6, 3), (2, 6, 9)])
def test_first_key_and_visible(T, S, window):
    documents = np.array([[0, 0, 1, 1, 1, 0], [5, 4, 4, 4, 4, 4]], np.int32)[:, :S]
    for row, numbers in enumerate(documents):
        seen = [
            [
                key <= at and (window is None or at - key < window) and len(set(numbers[key : at + 1])) == 1
                for key in range(S)
            ]
            for at in range(S - T, S)
        ]
        assert visible(T, S, window, mx.array(documents))[row, 0].tolist() == seen
        assert op.first_key(T, S, window, mx.array(documents))[row].tolist() == [r.index(True) for r in seen]


def test_inputs_need_not_be_contiguous():
    q, k, v = (x.swapaxes(1, 2) for x in draw(2, 33, 33, 4, 4, 16))  # [B, H, T, D] as a view of [B, T, H, D]
    documents = mx.broadcast_to(mx.arange(33) // 10, (2, 33))
    out = windowed_attention(q, k, v, 0.25, 5, documents)
    again = windowed_attention(*(mx.array(np.array(x)) for x in (q, k, v)), 0.25, 5, mx.array(np.array(documents)))
    assert mx.array_equal(out, again)


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 2, 0, 8)], ids=str)
def test_nothing_comes_of_nothing(shape):
    x = mx.zeros(shape)
    (out,), gradients = mx.vjp(lambda *a: windowed_attention(*a, 1.0, 3), [x, x, x], [x])
    assert [a.shape for a in (out, *gradients)] == [shape] * 4


@pytest.fixture
def launched(monkeypatch) -> list[str]:
    """MLX as on a Mac, and the bodies launched, which return zeros."""
    names: list[str] = []

    def call(self, *inputs, output_shapes, output_dtypes, **_):
        names.append(self.body)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

    monkeypatch.setattr(dispatch, "platform", lambda: "metal")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(dispatch.Kernel, "__call__", call)
    dispatch._say_once.cache_clear()
    return names


def test_training_takes_the_three_kernels(launched):
    q, k, v = draw(1, 4, 2, 64, 64, 16)
    gradients = mx.vjp(lambda *a: windowed_attention(*a, 1.0, 20), [q, k, v], [q])[1]
    assert launched == ["forward", "backward_dq", "backward_dkv"]
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]


def test_mlx_s_own_kernels_keep_what_they_do_better(launched, monkeypatch, capsys):
    q, k, v = draw(1, 2, 2, 64, 64, 16)
    windowed_attention(q, k, v, 1.0)
    windowed_attention(q, k, v, 1.0, 64)  # a window of all there is
    windowed_attention(q[:, :, :8], k, v, 1.0, 20)
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    windowed_attention(q, k, v, 1.0, 20)
    assert launched == []
    assert capsys.readouterr().err == ""


def test_a_head_the_kernels_do_not_take_is_said_once(launched, capsys):
    for _ in range(2):
        out = windowed_attention(*(q := draw(1, 2, 2, 20, 20, 12)), 1.0, 5)
    np.testing.assert_allclose(np.array(out), np.array(reference(*q, 1.0, visible(20, 20, 5))), rtol=1e-4, atol=1e-6)
    assert launched == []
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(dispatch.Unsupported, match="windowed_attention: q's heads of 12 numbers"):
        windowed_attention(*q, 1.0, 5, form="kernel")


def test_a_kernel_that_cannot_be_had_is_an_error():
    with mx.stream(mx.cpu), pytest.raises(dispatch.Unsupported, match="the kernel needs a GPU"):
        windowed_attention(*draw(1, 1, 1, 9, 9, 8), 1.0, 3, form="kernel")


X = mx.zeros((2, 4, 6, 8))
IDS = mx.zeros((2, 6), mx.int32)
BAD = {
    "q must be float32, float16 or bfloat16, not mlx.core.int32": dict(q=X.astype(mx.int32)),
    "k is mlx.core.float16 and q mlx.core.float32": dict(k=X.astype(mx.float16)),
    "v must be [batch, heads, positions, size], not (4, 6, 8)": dict(v=X[0]),
    "k (3, 4, 6, 8) does not fit q (2, 4, 6, 8)": dict(k=mx.zeros((3, 4, 6, 8)), v=mx.zeros((3, 4, 6, 8))),
    "k (2, 4, 6, 9) does not fit q (2, 4, 6, 8)": dict(k=mx.zeros((2, 4, 6, 9))),
    "k (2, 4, 5, 8) does not fit q (2, 4, 6, 8)": dict(k=X[:, :, :5], v=X[:, :, :5]),
    "v (2, 2, 6, 8) must have k's shape (2, 4, 6, 8)": dict(v=X[:, :2]),
    "q's 4 heads are not a multiple of k's 3": dict(k=X[:, :3], v=X[:, :3]),
    "window must be a whole number of at least 1, not 0": dict(window=0),
    "window must be a whole number of at least 1, not -3": dict(window=-3),
    "window must be a whole number of at least 1, not 2.5": dict(window=2.5),
    "documents must be (2, 6), not (2, 5)": dict(documents=IDS[:, :5]),
    "documents must be of an integer type, not mlx.core.float32": dict(documents=IDS.astype(mx.float32)),
    "form='fast' is none of auto, kernel, reference": dict(form="fast", window=2, q=mx.zeros((2, 4, 6, 8))),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_error_that_names_it(message):
    arguments = dict(q=X, k=X, v=X, scale=1.0) | BAD[message]
    if "form" in arguments:
        arguments |= {name: mx.zeros((2, 4, 9, 8)) for name in "qkv"}
    with pytest.raises((TypeError, ValueError)) as caught:
        windowed_attention(**arguments)
    assert str(caught.value).startswith(f"windowed_attention: {message}")
