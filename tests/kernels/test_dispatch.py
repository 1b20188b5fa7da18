"""Which form of an op runs: by platform, by MLXGPT_KERNELS, by what the caller asks and what the kernel can take."""

import mlx.core as mx
import pytest
from metal_model.simulated import simulated_metal
from mlxgpt.kernels import dispatch
from mlxgpt.kernels.exp import exp


@pytest.fixture(autouse=True)
def nothing_said():
    dispatch._say_once.cache_clear()


@pytest.fixture
def on(monkeypatch):
    return lambda platform: monkeypatch.setattr(dispatch, "platform", lambda: platform)


@pytest.mark.parametrize(("platform", "kernel"), [("metal", True), ("cuda", True), ("cpu", False)])
def test_a_gpu_runs_the_kernel_unless_told_otherwise(on, monkeypatch, platform, kernel, capsys):
    on(platform)
    monkeypatch.delenv("MLXGPT_KERNELS", raising=False)
    assert dispatch.use_kernel("op") is kernel
    assert dispatch.use_kernel("op", form="reference") is False
    monkeypatch.setenv("MLXGPT_KERNELS", "auto")
    assert dispatch.use_kernel("op") is kernel
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    assert dispatch.use_kernel("op") is False
    assert dispatch.use_kernel("op", problem="x is odd") is False
    assert capsys.readouterr().err == ""


def test_what_the_kernel_cannot_take_is_said_once(on, capsys):
    on("metal")
    for _ in range(3):
        assert dispatch.use_kernel("op", problem="x is odd") is False
    assert capsys.readouterr().err == "mlxgpt: op: x is odd; computed in plain MLX instead\n"


def test_who_asks_for_the_kernel_gets_it_or_an_error(on, monkeypatch):
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    on("metal")
    assert dispatch.use_kernel("op", form="kernel") is True
    with pytest.raises(dispatch.Unsupported, match=r"^op: x is odd$"):
        dispatch.use_kernel("op", problem="x is odd", form="kernel")
    on("cpu")
    with pytest.raises(dispatch.Unsupported, match=r"^op: the kernel needs a GPU, and MLX computes on the CPU here$"):
        dispatch.use_kernel("op", form="kernel")


def test_another_form_or_setting_is_an_error(on, monkeypatch):
    with pytest.raises(ValueError, match="op: form='fast' is none of auto, kernel, reference"):
        dispatch.use_kernel("op", form="fast")
    monkeypatch.setenv("MLXGPT_KERNELS", "always")
    on("metal")
    with pytest.raises(ValueError, match="MLXGPT_KERNELS=always is neither auto nor reference"):
        dispatch.use_kernel("op")


def test_the_platform_is_the_default_device_s(monkeypatch):
    """Of a GPU, what MLX has been built for."""
    with monkeypatch.context() as patch:
        patch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
        assert dispatch.platform() == "cpu"
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    for metal, cuda, platform in [(True, False, "metal"), (False, True, "cuda"), (False, False, "cpu")]:
        monkeypatch.setattr(mx.metal, "is_available", lambda metal=metal: metal)
        monkeypatch.setattr(mx.cuda, "is_available", lambda cuda=cuda: cuda)
        assert dispatch.platform() == platform


def test_the_setting_reaches_an_op(monkeypatch):
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    with simulated_metal() as simulation:
        exp(mx.zeros((3,)))
        assert simulation.launches == []
        monkeypatch.setenv("MLXGPT_KERNELS", "auto")
        exp(mx.zeros((3,)))
    assert [launch.kernel.name for launch in simulation.launches] == ["exp_forward"]


def test_included_files_come_before_the_body(monkeypatch, tmp_path):
    monkeypatch.setattr(dispatch, "INCLUDE", tmp_path)
    (tmp_path / "one.metal").write_text("inline float one() {\n    return 1.0f;\n}\n")
    (tmp_path / "two.metal").write_text("inline float two() {\n    return 2.0f * one();\n}\n")
    (tmp_path / "body.metal").write_text("y[thread_position_in_grid.x] = two();\n")
    kernel = dispatch.Kernel(str(tmp_path / "op.py"), "body", ("x",), ("y",), include=("one", "two"))
    with simulated_metal():
        (y,) = kernel(
            mx.zeros((1,)), grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(32,)], output_dtypes=[mx.float32]
        )
    assert y.tolist() == [2.0] * 32
