"""What the tests of operations in C++ share."""

import pytest
from mlxgpt.kernels import compiled


@pytest.fixture(params=["compiled", "reference"])
def form(request, monkeypatch) -> str:
    """Which form of the operation `OP` of the test's module runs: that in C++, or the reference."""
    op = request.module.OP
    if request.param == "reference":
        monkeypatch.setenv("MLXGPT_KERNELS", "reference")
        assert compiled.load(op) is None
    elif compiled.load(op) is None:
        pytest.skip("nothing is compiled on this machine: a GPU, macOS, or no compiler")
    return request.param
