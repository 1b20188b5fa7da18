"""kernels/cpu/vectors.h: the same on every instruction set that this machine can run, another machine's included."""

import shutil
import subprocess
from pathlib import Path

import pytest
from mlxgpt.kernels import compiled

from mlxgpt import backend, native

GXX = shutil.which("g++", path=backend.path_without_wrapper())
ARM = shutil.which("aarch64-linux-gnu-g++") or shutil.which("aarch64-linux-gnu-g++-12")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
PROGRAM = """
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include "cpu/vectors.h"
using namespace mlxgpt;

int main() {
  long wrong = 0;
  double worst = 0;
  for (int n = 0; n < 20000; n++) {
    int16_t x[2 * LANES], y[2 * LANES];
    Ints s, a, b;
    Floats f;
    for (int i = 0; i < 2 * LANES; i++) x[i] = rand() % 4001 - 2000, y[i] = rand() % 4001 - 2000;
    for (int i = 0; i < LANES; i++) s[i] = rand() % 100000, f[i] = (rand() / (double)RAND_MAX - .5) * 170;
    std::memcpy(&a, x, sizeof a);
    std::memcpy(&b, y, sizeof b);
    Ints product = multiply_add(s, a, b);
    Floats e = exp(f);
    for (int i = 0; i < LANES; i++) {
      wrong += product[i] != s[i] + x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
      worst = std::fmax(worst, std::fabs(e[i] / std::exp((double)f[i]) - 1));
    }
    float rows[3 * LANES + 1], top = -INFINITY;
    double total = 0;
    int count = 1 + n % (3 * LANES);
    for (int i = 0; i < count; i++) rows[i] = rand() % 1000 - 500, total += rows[i], top = std::fmax(top, rows[i]);
    wrong += largest(rows, count) != top || sum(rows, count) != (float)total;
    uint16_t half[LANES];
    for (int i = 0; i < LANES; i++) half[i] = 0x3f80 + i;
    for (int i = 0; i < LANES; i++) wrong += load_bf16(half)[i] != 1 + i / 128.f;
  }
  std::printf("%ld %g", wrong, worst);
}
"""


def run(tmp_path: Path, compiler: list[str], runner: list[str]) -> None:
    source, program = tmp_path / "vectors.cpp", tmp_path / "vectors"
    source.write_text(PROGRAM)
    include = f"-I{Path(str(compiled.__file__)).parent}"
    subprocess.run([*compiler, "-std=c++20", "-O2", include, str(source), "-o", str(program)], check=True)
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=True)
    wrong, worst = done.stdout.split()
    assert int(wrong) == 0
    assert float(worst) < 2.5e-7


@pytest.mark.skipif(GXX is None, reason="no g++")
@pytest.mark.parametrize("cpu", native.CPUS)
def test_on_this_cpu_and_lesser_ones(cpu, tmp_path):
    march, needed = native.CPUS[cpu]
    if not needed <= backend.cpu_flags():
        pytest.skip("this CPU is lesser yet")
    run(tmp_path, [str(GXX), f"-march={march}"], [])


@pytest.mark.skipif(
    not (ARM and QEMU), reason="no cross-compiler and emulator for aarch64 (g++-12-aarch64-linux-gnu, qemu-user-static)"
)
def test_on_an_arm(tmp_path):
    run(tmp_path, [str(ARM), "-static"], [str(QEMU)])
