// Rotary positions on a CPU, in float32 (cpu/rotary.h). Turned back, they are their own gradient.
#include <nanobind/nanobind.h>

#include "cpu/rotary.h"

namespace nb = nanobind;
using namespace mlxgpt;

// in: x [B, T, H, D], the first position of each of B or of all, int32; out: x turned.
static void rotate(const Numbers& numbers, const Arrays& in, Arrays& out) {
  const auto &x = in[0], &offset = in[1];
  int B = x.shape(0), T = x.shape(1), H = x.shape(2), D = x.shape(3), tables = offset.size() == 1 ? 1 : B;
  std::vector<float> table(size_t(tables) * T * D);
  Pool::shared().each((tables * T + 31) / 32, [&](int task) {
    for (int row = task * 32; row < std::min(tables * T, task * 32 + 32); row++)
      angles(float(offset.data<int32_t>()[row / T] + row % T), numbers[0], D / 2, float(numbers[1]),
             &table[size_t(row) * D]);
  });
  Pool::shared().each((B * T + 15) / 16, [&](int task) {
    for (int row = task * 16; row < std::min(B * T, task * 16 + 16); row++)
      for (int h = 0; h < H; h++) {
        int64_t at = (int64_t(row) * H + h) * D;
        turn(x.data<float>() + at, &table[size_t(tables == 1 ? row % T : row) * D], D / 2, out[0].data<float>() + at);
      }
  });
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("rotate", [](const mx::array& x, const mx::array& offset, double base, bool back) {
    auto from = mx::astype(offset, mx::int32, mx::default_stream(mx::Device::cpu));
    return launch(rotate, {base, back ? -1.0 : 1.0}, {x, from}, {x.shape()}, 1)[0];
  }, nb::arg("x"), nb::arg("offset"), nb::arg("base"), nb::arg("back"));
}
