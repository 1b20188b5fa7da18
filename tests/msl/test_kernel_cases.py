"""Every kernel on the CPU model: type-checked, executed under the shadow memory, its values and gradients compared."""

import importlib

import pytest
from metal_model.simulated import simulated_metal
from mlxgpt.kernels import verify

OPS = [op for op in verify.op_names() if verify.cases(op)]
CASES = [
    pytest.param(case, dtype, id=f"{op}-{case.name}-{str(dtype).rpartition('.')[2]}")
    for op in OPS
    for case in verify.cases(op)
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_case(case, dtype):
    with simulated_metal() as simulation:
        outcome = verify.check(case, dtype)
    assert outcome.passed, outcome
    assert simulation.launches, "the case insists on the kernel"
    assert all(launch.kernel.name.startswith(f"{case.op}_") for launch in simulation.launches)


@pytest.mark.parametrize("op", verify.op_names())
def test_every_op_says_what_it_runs_as(op):
    """And has cases where that is a kernel."""
    forms = importlib.import_module(f"mlxgpt.kernels.{op}.op").FORMS
    assert forms.keys() == {"metal", "cuda", "cpu"}
    assert ("kernel" in forms.values()) == (op in OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_body_is_launched_by_a_case(op):
    from mlxgpt.kernels import dispatch

    module = importlib.import_module(f"mlxgpt.kernels.{op}.op")
    kernels = {k.name for k in vars(module).values() if isinstance(k, dispatch.Kernel)}
    files = {f"{op}_{path.stem}" for path in (dispatch.INCLUDE.parent / op).glob("*.metal")}
    with simulated_metal() as simulation:
        for case in verify.cases(op):
            verify.check(case, case.dtypes[0])
    assert {launch.kernel.name for launch in simulation.launches} == kernels == files


@pytest.mark.parametrize("op", OPS)
def test_names_of_cases_are_their_own(op):
    names = [case.name for case in verify.cases(op)]
    assert sorted(names) == sorted(set(names))
    assert {case.op for case in verify.cases(op)} == {op}
