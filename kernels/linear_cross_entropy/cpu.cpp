// Cross-entropy of rows of logits and its gradient in them on a CPU, in float32: some rows a task, each passed over
// while it is in the cache.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <limits>

#include "cpu/operation.h"

namespace nb = nanobind;
using namespace mlxgpt;

// in: logits [N, V], targets int32 [N]; out: gradient [N, V], losses [N]
static void rows(const Numbers& numbers, const Arrays& in, Arrays& out) {
  int N = in[0].shape(0), V = in[0].shape(1), ignored = int(numbers[0]), each = std::max(1, (1 << 14) / V);
  float z_loss = float(numbers[1]);
  const int32_t* targets = in[1].data<int32_t>();
  float* losses = out[1].data<float>();
  Pool::shared().each((N + each - 1) / each, [&](int task) {
    for (int row = task * each; row < std::min(N, (task + 1) * each); row++) {
      const float* x = in[0].data<float>() + int64_t(row) * V;
      float* gradient = out[0].data<float>() + int64_t(row) * V;
      int target = targets[row];
      bool counted = target != ignored, exists = target >= 0 && target < V;
      float chosen = exists ? x[target] : std::numeric_limits<float>::quiet_NaN();  // x may be the gradient's memory
      float top = largest(x, V);
      Floats totals = {};
      vectors(V, [&](int64_t i, int count) {
        Floats e = exp(count == LANES ? load<Floats>(x + i) - top
                                      : load_first(x + i, count, -std::numeric_limits<float>::infinity()) - top);
        totals += e;
        write(gradient + i, e, count);
      });
      float total = sum(totals), lse = top + std::log(total), share = counted ? (1 + 2 * z_loss * lse) / total : 0;
      vectors(V, [&](int64_t i, int count) { write(gradient + i, read(gradient + i, count) * share, count); });
      if (counted && exists) gradient[target] -= 1;
      losses[row] = counted ? std::log(total) + (top - chosen) + z_loss * lse * lse : 0;
    }
  });
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("rows", [](const mx::array& logits, const mx::array& targets, int ignored, double z_loss) {
    return launch(rows, {double(ignored), z_loss}, {logits, targets}, {logits.shape(), targets.shape()}, 1);
  }, nb::arg("logits"), nb::arg("targets"), nb::arg("ignored"), nb::arg("z_loss"));
}
