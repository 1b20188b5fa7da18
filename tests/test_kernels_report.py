"""`mlxgpt kernels`: the list, the cases on this GPU or on the CPU model, and what is measured."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlxgpt.kernels import dispatch, verify
from mlxgpt.kernels.exp import cases, op
from mlxgpt.kernels.verify import Benchmark, Case

from mlxgpt import kernels_report

NO_GPU = pytest.mark.skipif(mx.default_device().type != mx.cpu, reason="there is a GPU here")


@pytest.fixture
def only_two_cases(monkeypatch):
    monkeypatch.setattr(cases, "CASES", cases.CASES[:2])
    monkeypatch.setattr(verify, "op_names", lambda: ["exp", "gelu"])


def test_every_op_is_listed_with_what_it_is_here(cli, monkeypatch):
    rows = json.loads(cli("kernels", "--json").out.splitlines()[-1])["operations"]
    assert [row["op"] for row in rows] == verify.op_names()
    assert all(row.keys() == {"op", "form", "reason"} and all(row.values()) for row in rows)
    lines = cli("kernels").out.splitlines()
    assert [line.split()[0] for line in lines] == ["op", *verify.op_names()]
    monkeypatch.setattr(dispatch, "platform", lambda: "metal")
    (row,) = [row for row in kernels_report.forms() if row["op"] == "exp"]
    assert row == {"op": "exp", "form": "kernel", "reason": "MLX computes on metal"}
    monkeypatch.setenv("MLXGPT_KERNELS", "reference")
    (row,) = [row for row in kernels_report.forms() if row["op"] == "exp"]
    assert row == {"op": "exp", "form": "reference", "reason": "MLXGPT_KERNELS=reference"}


@pytest.mark.parametrize("command", [["kernels"], ["doctor"]], ids=" ".join)
def test_a_wrong_setting_ends_a_command(cli, monkeypatch, command):
    monkeypatch.setenv("MLXGPT_KERNELS", "fast")
    done = cli(*command)
    assert (done.status, done.error) == (2, "MLXGPT_KERNELS=fast is neither auto nor reference")


@NO_GPU
def test_without_a_gpu_nothing_is_claimed(cli):
    done = cli("kernels", "--verify")
    assert (done.status, done.out) == (1, "")
    assert done.error.startswith("MLX has no GPU here, so no kernel was verified; --simulate")
    done = cli("kernels", "--benchmark", "--json")
    assert (done.status, done.out) == (1, "")
    assert done.error == "MLX has no GPU here, so no kernel was measured"


@pytest.mark.parametrize(
    "flags", [["--simulate"], ["--simulate", "--benchmark"], ["--verify", "--simulate", "--benchmark"]]
)
def test_the_model_verifies_and_nothing_else(cli, flags):
    done = cli("kernels", *flags)
    assert done.status == 2
    assert done.error.startswith("--simulate goes with --verify alone")


def test_cases_on_the_model(cli, only_two_cases):
    done = cli("kernels", "--verify", "--simulate", "--json")
    assert done.status == 0, done.err
    rows = json.loads(done.out.splitlines()[-1])["verified"]
    assert [(r["case"], r["dtype"]) for r in rows] == [(c, d) for c in "17" for d in ("float32", "float16", "bfloat16")]
    assert all(r["passed"] and r["problem"] == "" and r["op"] == "exp" for r in rows)
    assert all(0 <= r["forward"] < 0.01 and 0 <= r["backward"] < 0.01 and 0 <= r["slope"] < 0.01 for r in rows)
    lines = cli("kernels", "--verify", "--simulate").out.splitlines()
    assert lines[0].split() == ["op", "case", "dtype", "forward", "backward", "slope", "passed"]
    assert len(lines) == 7


def test_what_fails_is_shown_and_ends_the_command(cli, only_two_cases, monkeypatch):
    wrong = Case("exp", "wrong", cases.CASES[0].make, cases._run, np.sinh, dtypes=(mx.float32,))
    faulty = Case(
        "exp", "faulty", cases.CASES[0].make, lambda x: cases._run(x) + missing(), np.exp, dtypes=(mx.float32,)
    )
    monkeypatch.setattr(cases, "CASES", [cases.CASES[0], wrong, faulty])
    done = cli("kernels", "--verify", "--simulate")
    assert (done.status, done.error) == (1, "2 of 5 checks failed")
    lines = done.out.splitlines()
    assert [line.split()[-1] for line in lines[1:6]] == ["yes", "yes", "yes", "NO", "NO"]
    assert lines[6] == "exp faulty float32: exp: missing"


def test_a_fault_on_the_model_is_shown_with_its_line(monkeypatch, only_two_cases):
    monkeypatch.setitem(vars(op.FORWARD), "source", "y[0] = x[0];\ny[1] = T(1.0f);\n")
    monkeypatch.setattr(op.FORWARD, "_launchers", {})
    row = kernels_report.verified(simulate=True)[0]
    assert (row["passed"], row["forward"]) == (False, None)
    assert row["problem"].startswith("exp_forward:\n")
    assert "body:2: out of bounds: thread 0 of group 0, y[1]" in row["problem"]


def missing():
    raise dispatch.Unsupported("exp: missing")


def test_without_the_test_extra_there_is_no_model(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels_report, "MODEL", tmp_path / "none")
    done = cli("kernels", "--verify", "--simulate")
    assert done.status == 1
    assert 'needs its test extra: pip install -e ".[test]"' in done.error


def test_what_is_measured(monkeypatch):
    """Here on the default device, both sides plain MLX."""
    monkeypatch.setattr(kernels_report, "REPEATS", 3)
    size = 1 << 16
    benchmark = Benchmark(
        "exp", "small", lambda rng: (rng.normal(size=size),), lambda x: mx.exp(x), lambda x: mx.exp(mx.exp(x)),
        bytes_moved=lambda x: 5 * x.nbytes, dtype=mx.float32, gradients=(0,),
    )  # fmt: skip
    bandwidth = kernels_report.measure_bandwidth(1 << 20)
    assert bandwidth > 0
    row = kernels_report.measure(benchmark, bandwidth)
    assert (row["op"], row["case"], row["dtype"], row["bytes_moved"]) == ("exp", "small", "float32", 5 * 4 * size)
    assert row["kernel_ms"] > 0
    assert row["kernel_peak_bytes"] > 4 * size
    assert row["speedup"] == pytest.approx(row["plain_ms"] / row["kernel_ms"])
    assert row["bandwidth_share"] == pytest.approx(row["bytes_moved"] / (row["kernel_ms"] / 1e3) / bandwidth)
    assert "speedup" in kernels_report.table([row])


def test_every_kernel_has_a_benchmark():
    for name in verify.op_names():
        if verify.cases(name):
            assert {b.op for b in verify.benchmarks(name)} == {name}


def test_errors_are_relative_above_one_and_see_shapes_and_nans():
    def error(actual, expected):
        return verify.error(mx.array(actual), np.array(expected))

    assert error([1.0, 200.0], [1.5, 100.0]) == 1.0
    assert error([0.25], [0.0]) == 0.25
    assert error([np.nan, np.inf], [np.nan, np.inf]) == 0
    assert error([np.nan], [0.0]) == error([0.0], [np.nan]) == error([np.inf], [-np.inf]) == np.inf
    assert error([0.0, 0.0], [0.0]) == np.inf


def test_a_wrong_gradient_is_seen_twice():
    """By the reference's gradient, and by finite differences, which do not know the reference."""
    make = cases.CASES[2].make
    options = {"gradients": (0,), "dtypes": (mx.float32,)}
    right = Case("exp", "right", make, mx.exp, np.exp, mx.exp, **options)
    wrong = Case(
        "exp", "wrong", make, mx.exp, np.exp, lambda x: mx.exp(x) * 1.5 - 0.5 * mx.stop_gradient(mx.exp(x)), **options
    )
    bent = Case("exp", "bent", make, lambda x: mx.exp(x) * 0 + mx.stop_gradient(mx.exp(x)), np.exp, mx.exp, **options)
    assert verify.check(right, mx.float32).passed
    outcome = verify.check(wrong, mx.float32)
    assert not outcome.passed
    assert outcome.backward > 0.01
    assert outcome.slope < 1e-5
    outcome = verify.check(bent, mx.float32)
    assert not outcome.passed
    assert outcome.slope > 0.01
