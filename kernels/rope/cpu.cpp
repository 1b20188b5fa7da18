// Rotary positions (arXiv 2104.09864) on a CPU, in float32: number i of a head is paired with i + D / 2. Turned back,
// they are their own gradient.
#include <nanobind/nanobind.h>

#include <cmath>

#include "cpu/operation.h"

namespace nb = nanobind;
using namespace mlxgpt;

// in: x [B, T, H, D], the first position of each of B or of all, int32; out: x turned.
static void rotate(const Numbers& numbers, const Arrays& in, Arrays& out) {
  const auto &x = in[0], &offset = in[1];
  int B = x.shape(0), T = x.shape(1), H = x.shape(2), half = x.shape(3) / 2, tables = offset.size() == 1 ? 1 : B;
  float step = float(std::log(numbers[0]) / half), direction = float(numbers[1]);
  std::vector<float> angles(size_t(tables) * T * half * 2);
  auto angle = [&](int row) { return &angles[size_t(row) * half * 2]; };
  Pool::shared().each((tables * T + 31) / 32, [&](int task) {
    for (int row = task * 32; row < std::min(tables * T, task * 32 + 32); row++)
      for (int i = 0; i < half; i++) {
        float theta = float(offset.data<int32_t>()[row / T] + row % T) * std::exp(-float(i) * step);
        angle(row)[i] = std::cos(theta);
        angle(row)[half + i] = std::sin(theta) * direction;
      }
  });
  Pool::shared().each((B * T + 15) / 16, [&](int task) {
    for (int row = task * 16; row < std::min(B * T, task * 16 + 16); row++) {
      const float *cosine = angle(tables == 1 ? row % T : row), *sine = cosine + half;
      for (int h = 0; h < H; h++) {
        int64_t at = (int64_t(row) * H + h) * half * 2;
        const float* from = x.data<float>() + at;
        float* to = out[0].data<float>() + at;
        vectors(half, [&](int64_t i, int count) {
          Floats a = read(from + i, count), b = read(from + half + i, count);
          Floats c = read(cosine + i, count), s = read(sine + i, count);
          write(to + i, a * c - b * s, count);
          write(to + half + i, b * c + a * s, count);
        });
      }
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
