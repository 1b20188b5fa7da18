"""adamw_multi: a training step with it equals one without, in fewer launches; and what is wrong is named."""

import mlx.core as mx
import numpy as np
import pytest
from metal_model.simulated import simulated_metal
from mlx.utils import tree_flatten
from mlxgpt.kernels.adamw_multi import adamw, global_norm, reference_adamw, reference_norm
from mlxgpt.kernels.dispatch import Unsupported

from mlxgpt.config import OptimizerConfig
from mlxgpt.models import mistral
from mlxgpt.models.layers import named_parameters
from mlxgpt.training import optimizers
from mlxgpt.training.step import make_step

SCALARS = (mx.array(1.0), mx.array(1e-2), mx.array(1))


def trained(kind: str, clip: float, simulate: bool) -> tuple[list[float], dict[str, mx.array], list[str]]:
    """Gradient norms of three steps, the weights and the optimizer's state after them, and the kernels launched."""
    mx.random.seed(3)
    config = mistral.Config(32, 16, 24, 2, 2, 1, max_position_embeddings=16, tie_word_embeddings=True)
    model = mistral.Model(config)
    model.init_weights()
    optimizer = optimizers.make(OptimizerConfig(kind=kind, lr=1e-2, weight_decay=0.2))
    batches = [
        (mx.array([[1, 2, 3, 4]]), mx.array([[2, 3, 4, 5]])),
        (mx.array([[7, 6, 5, 4]]), mx.array([[6, 5, 4, 3]])),
    ]
    norms, launched = [], []

    def run() -> None:
        step = make_step(model, optimizer, clip, mx.float32)
        norms.extend(step(batches)[1].item() for _ in range(3))

    if simulate:
        with simulated_metal() as simulation:
            run()
        launched = [launch.kernel.name for launch in simulation.launches]
    else:
        run()
    return norms, named_parameters(model) | dict(tree_flatten(optimizer.state)), launched


@pytest.mark.parametrize(("kind", "clip"), [("adamw", 0.1), ("adamw", 0.0), ("muon", 0.1)])
def test_a_training_step_is_the_same(kind, clip, monkeypatch):
    norms, arrays, launched = trained(kind, clip, simulate=True)
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")  # what is C++ on a CPU is plain MLX on a GPU
    wanted_norms, wanted, _ = trained(kind, clip, simulate=False)
    np.testing.assert_allclose(norms, wanted_norms, rtol=1e-5)
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        assert array.dtype == wanted[name].dtype
        np.testing.assert_allclose(np.array(array), np.array(wanted[name]), rtol=1e-4, atol=1e-6, err_msg=name)
    updates = {"adamw": 3 + 1, "muon": 1}[kind]  # of 15 matrices and 5 norms, in fours; with Muon of the 5 norms
    launched = [name for name in launched if name.startswith("adamw_multi")]
    assert launched == (["adamw_multi_norm"] + ["adamw_multi_update"] * updates) * 3


def test_nothing_to_update_and_empty_tensors():
    with simulated_metal():
        assert global_norm([], form="kernel").item() == 0
        assert adamw([], [], [], [], *SCALARS, form="kernel") == []
        some = [mx.ones((2, 3)), mx.zeros((0, 4)), mx.ones((1,))] * 3
        assert global_norm(some, form="kernel").item() == pytest.approx(21**0.5)
        new = adamw(some, some, some, some, *SCALARS, form="kernel")
        for one, other in zip(new, reference_adamw(some, some, some, some, *SCALARS), strict=True):
            for x, y in zip(one, other, strict=True):
                np.testing.assert_allclose(np.array(x), np.array(y), rtol=1e-6)


def test_tensors_that_are_not_contiguous():
    x = mx.arange(60, dtype=mx.float32).reshape(6, 10) / 10
    some = [x.T, x[:, ::2], x[1:], mx.broadcast_to(x[:1], (4, 10))]
    with simulated_metal():
        assert global_norm(some, form="kernel").item() == pytest.approx(reference_norm(some).item(), rel=1e-6)
        for one, other in zip(
            adamw(some, some, some, some, *SCALARS, form="kernel"),
            adamw(some, some, some, some, *SCALARS, form="reference"),
            strict=True,
        ):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-5)


ONE, TWO = mx.ones((2,)), mx.ones((3,))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([ONE], [TWO], [ONE], [ONE]), ValueError, r"gradients\[0\] has the shape \[3\], its parameter \[2\]"),
        (([ONE], [ONE, ONE], [ONE], [ONE]), ValueError, "gradients has 2 tensors and parameters 1"),
        (([ONE], [ONE], [ONE], [mx.array([1, 2])]), TypeError, r"seconds\[0\] must be float32, .*, not .*int32"),
        (([ONE], [ONE], [ONE.astype(mx.float16)], [ONE]), TypeError, r"firsts\[0\] is .*16, its parameter .*32"),
    ],
)  # fmt: skip
def test_bad_tensors_are_named(arguments, kind, message):
    with pytest.raises(kind, match=f"^adamw: {message}$"):
        adamw(*arguments, *SCALARS)


def test_bad_scalars_and_gradients_are_named():
    with pytest.raises(ValueError, match=r"^adamw: rate must be 0-d, not \[1\]$"):
        adamw([ONE], [ONE], [ONE], [ONE], SCALARS[0], mx.array([1.0]), SCALARS[2])
    with pytest.raises(
        TypeError, match=r"^global_norm: gradients\[1\] must be float32, float16 or bfloat16, not .*int32$"
    ):
        global_norm([ONE, mx.array([1])])
    with pytest.raises(Unsupported, match="needs a GPU"):
        global_norm([ONE], form="kernel")
