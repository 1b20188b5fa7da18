"""Bugs planted in every kernel, one at a time: some case notices each, or the op's `EQUIVALENT` says why none can."""

import mlx.core as mx
import numpy as np
import pytest
from metal_model.capture import Kernel
from metal_model.mutants import instrument, survivors
from metal_model.simulated import simulated_metal
from mlxgpt.kernels import verify
from mlxgpt.kernels.verify import Case

SUM = """
threadgroup float parts[32];
float v = simd_sum(x[thread_position_in_grid.x]);
threadgroup_barrier(mem_flags::mem_device);
if (thread_index_in_simdgroup == 0) { parts[simdgroup_index_in_threadgroup] = v; }
metal::threadgroup_barrier(mem_flags::mem_threadgroup);
const threadgroup float* p = parts;
if (thread_index_in_threadgroup == 0) { y[threadgroup_position_in_grid.x] = p[0] + p[1]; }
"""


def total(x: mx.array) -> mx.array:
    kernel = mx.fast.metal_kernel(name="sum_forward", input_names=["x"], output_names=["y"], source=SUM)
    return kernel(
        inputs=[x], grid=(x.size, 1, 1), threadgroup=(64, 1, 1), output_shapes=[(x.size // 64,)],
        output_dtypes=[mx.float32],
    )[0]  # fmt: skip


@pytest.mark.parametrize("op", [op for op in verify.op_names() if verify.cases(op)])
def test_no_mutant_of_an_op_lives_without_a_reason(op):
    mutants, alive = survivors([case for case in verify.cases(op) if case.mutants])
    assert mutants
    reasons = verify.equivalent_mutants(op)
    unexplained = sorted({str(m) for m in alive} - reasons.keys())
    assert not unexplained, "\n".join(unexplained)
    noticed = sorted(reasons.keys() - {str(m) for m in alive})
    assert not noticed, "listed as equivalent, and yet noticed:\n" + "\n".join(noticed)


def test_each_barrier_flag_index_and_pointer_has_its_mutant():
    case = Case("sum", "two groups", lambda rng: (rng.normal(size=128),), total, lambda x: x.reshape(2, 64).sum(1))
    mutants, alive = survivors([case])
    assert [f"{m.what}: {m.source}" for m in mutants if m.source.startswith(("thr", "metal", "const"))] == [
        "threadgroup_barrier deleted: threadgroup_barrier(mem_flags::mem_device);",
        "threadgroup_barrier with mem_threadgroup alone: threadgroup_barrier(mem_flags::mem_device);",
        "threadgroup_barrier deleted: metal::threadgroup_barrier(mem_flags::mem_threadgroup);",
        "threadgroup_barrier with mem_device alone: metal::threadgroup_barrier(mem_flags::mem_threadgroup);",
        "pointer + 1: const threadgroup float* p = parts;",
    ]
    indices = [m.what for m in mutants if m.what.startswith("index")]
    assert indices == [
        "index thread_position_in_grid.x + 1", "index simdgroup_index_in_threadgroup + 1",
        "index threadgroup_position_in_grid.x + 1", "index 0 + 1", "index 1 + 1",
    ]  # fmt: skip
    # The first barrier orders nothing: it may go, and its flag may be any.
    assert [m.what for m in alive] == ["threadgroup_barrier deleted", "threadgroup_barrier with mem_threadgroup alone"]


def test_a_kernel_with_its_mutants_asleep_is_the_kernel():
    kernel = Kernel("sum_forward", ("x",), ("y",), SUM)
    changed, mutants = instrument(kernel, first=7)
    assert [m.number for m in mutants] == list(range(7, 7 + len(mutants)))
    x = mx.random.normal((128,))
    with simulated_metal(lambda _: changed):
        np.testing.assert_allclose(np.array(total(x)), np.array(x).reshape(2, 64).sum(1), rtol=1e-5, atol=1e-5)
