// x + change and its norm, RMSNorm or LayerNorm (cpu/norm.h), and their gradients, in float32: a task is some rows, each
// read once.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "cpu/norm.h"

namespace nb = nanobind;
using namespace mlxgpt;

constexpr int ROWS = 32;  // a task's; fixed, so that the weight's gradient is added up in one order by any threads

// in: x, weight, change?, bias?; out: the norm, x + change?
static void forward(const Numbers& numbers, const Arrays& in, Arrays& out) {
  bool centered = numbers[1] != 0, changed = numbers[2] != 0, biased = numbers[3] != 0;
  int C = in[0].shape(-1), rows = in[0].size() / C;
  const float *x = in[0].data<float>(), *weight = in[1].data<float>();
  const float* change = changed ? in[2].data<float>() : nullptr;
  const float* bias = biased ? in[2 + changed].data<float>() : nullptr;
  float *normed = out[0].data<float>(), *added = changed ? out[1].data<float>() : nullptr;
  Pool::shared().each((rows + ROWS - 1) / ROWS, [&](int task) {
    for (int row = task * ROWS; row < std::min(rows, (task + 1) * ROWS); row++) {
      int64_t at = int64_t(row) * C;
      const float* from = x + at;
      if (changed) {
        vectors(C, [&](int64_t i, int count) {
          write(added + at + i, read(x + at + i, count) + read(change + at + i, count), count);
        });
        from = added + at;
      }
      normalize(from, C, centered, float(numbers[0]), weight, bias, normed + at);
    }
  });
}

// in: x (with its change), weight, the norm's gradient, the sum's?; out: gradients of x and weight, of bias?
static void backward(const Numbers& numbers, const Arrays& in, Arrays& out) {
  bool centered = numbers[1] != 0, changed = numbers[2] != 0, biased = numbers[3] != 0;
  int C = in[0].shape(-1), rows = in[0].size() / C, tasks = (rows + ROWS - 1) / ROWS;
  const float *x = in[0].data<float>(), *weight = in[1].data<float>(), *d_normed = in[2].data<float>();
  const float* d_added = changed ? in[3].data<float>() : nullptr;
  float* d_x = out[0].data<float>();
  std::vector<float> parts(size_t(tasks) * C * 2);
  Pool::shared().each(tasks, [&](int task) {
    float *d_weight = &parts[size_t(task) * C * 2], *d_bias = d_weight + C;
    for (int row = task * ROWS; row < std::min(rows, (task + 1) * ROWS); row++) {
      int64_t at = int64_t(row) * C;
      const float *from = x + at, *d_y = d_normed + at;
      float mean, scale;
      moments(from, C, centered, float(numbers[0]), &mean, &scale);
      Floats along = {}, level = {};
      vectors(C, [&](int64_t i, int count) {
        Floats d = read(d_y + i, count), unit = (read(from + i, count) - mean) * scale, g = d * read(weight + i, count);
        along += g * unit;
        level += g;
        write(d_weight + i, read(d_weight + i, count) + d * unit, count);
        if (biased) write(d_bias + i, read(d_bias + i, count) + d, count);
      });
      float a = sum(along) / C, l = centered ? sum(level) / C : 0;
      vectors(C, [&](int64_t i, int count) {
        Floats unit = (read(from + i, count) - mean) * scale;
        Floats d = scale * (read(d_y + i, count) * read(weight + i, count) - l - unit * a);
        write(d_x + at + i, changed ? d + read(d_added + at + i, count) : d, count);
      });
    }
  });
  for (int i = 0; i < 1 + biased; i++) {
    float* total = out[1 + i].data<float>();
    std::fill(total, total + C, 0.f);
    for (int task = 0; task < tasks; task++)
      for (int c = 0; c < C; c++) total[c] += parts[(size_t(task) * 2 + i) * C + c];
  }
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("forward", [](const mx::array& x, const mx::array& weight, const std::optional<mx::array>& change,
                           const std::optional<mx::array>& bias, double eps, bool centered) {
    Arrays in{x, weight};
    if (change) in.push_back(*change);
    if (bias) in.push_back(*bias);
    std::vector<mx::Shape> shapes(change ? 2 : 1, x.shape());
    return launch(forward, {eps, double(centered), double(bool(change)), double(bool(bias))}, in, shapes);
  }, nb::arg("x"), nb::arg("weight"), nb::arg("change").none(), nb::arg("bias").none(), nb::arg("eps"),
     nb::arg("centered"));
  module.def("backward", [](const mx::array& x, const mx::array& weight, const mx::array& d_normed,
                            const std::optional<mx::array>& d_added, bool biased, double eps, bool centered) {
    Arrays in{x, weight, d_normed};
    if (d_added) in.push_back(*d_added);
    std::vector<mx::Shape> shapes{x.shape(), weight.shape()};
    if (biased) shapes.push_back(weight.shape());
    return launch(backward, {eps, double(centered), double(bool(d_added)), double(biased)}, in, shapes);
  }, nb::arg("x"), nb::arg("weight"), nb::arg("d_normed"), nb::arg("d_added").none(), nb::arg("biased"),
     nb::arg("eps"), nb::arg("centered"));
}
