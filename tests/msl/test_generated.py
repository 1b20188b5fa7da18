"""What MLX makes around each kernel's body, its signature on a Mac, against goldens read before they were kept.

`python tests/msl/test_generated.py` writes them anew, from the tests' folders on PYTHONPATH.
"""

import importlib
from pathlib import Path

import pytest
from metal_model.capture import Kernel, generated_source
from metal_model.simulated import simulated_metal
from mlxgpt.kernels import dispatch, verify

GOLDEN = Path(__file__).parents[1] / "golden" / "msl"
OPS = [op for op in verify.op_names() if verify.cases(op)]


def around(op: str) -> dict[str, str]:
    """By kernel: the Metal source of its first launch by a case, in the case's first type, less its body and header."""
    found: dict[str, str] = {}
    module = importlib.import_module(f"mlxgpt.kernels.{op}.op")
    names = {k.name for k in vars(module).values() if isinstance(k, dispatch.Kernel)}
    with simulated_metal() as simulation:
        for case in verify.cases(op):
            verify.check(case, case.dtypes[0])
            for launch in simulation.launches:
                if launch.kernel.name not in found:
                    found[launch.kernel.name] = _less_its_body(launch.kernel, launch)
            if found.keys() == names:
                break
    return found


def _less_its_body(kernel: Kernel, launch) -> str:
    text = generated_source(kernel, launch.inputs, launch.template, launch.output_dtypes)
    assert kernel.source in text
    assert kernel.header in text
    text = text.replace(kernel.source, "    // the body\n")
    return (text.replace(kernel.header, "// the header\n") if kernel.header else text) + "\n"


@pytest.mark.parametrize("op", OPS)
def test_the_generated_source_is_the_golden_one(op):
    for name, text in around(op).items():
        assert text == (GOLDEN / f"{name}.metal").read_text()


def test_every_kernel_has_a_golden():
    bodies = {f"{op}_{path.stem}" for op in OPS for path in (dispatch.INCLUDE.parent / op).glob("*.metal")}
    assert {path.stem for path in GOLDEN.glob("*.metal")} == bodies


if __name__ == "__main__":
    for op in OPS:
        for name, text in around(op).items():
            (GOLDEN / f"{name}.metal").write_text(text)
