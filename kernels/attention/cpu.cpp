// Attention of a few queries under a mask on a CPU, in float32, over a cache as it lies: a task is the heads that share
// keys and values, and a key that is not seen costs a look at the mask.
#include <nanobind/nanobind.h>

#include <cmath>
#include <limits>

#include "cpu/operation.h"

namespace nb = nanobind;
using namespace mlxgpt;

// in: q [B, H, T, D], k and v [B, Hkv, S, D], the mask [B, T, S]; out: [B, H, T, D]
static void attend(const Numbers& numbers, const Arrays& in, Arrays& out) {
  int B = in[0].shape(0), H = in[0].shape(1), T = in[0].shape(2), D = in[0].shape(3);
  int heads = in[1].shape(1), S = in[1].shape(2), groups = H / heads;
  float scale = float(numbers[0]);
  Pool::shared().each(B * heads, [&](int task) {
    const float *k = in[1].data<float>() + int64_t(task) * S * D, *v = in[2].data<float>() + int64_t(task) * S * D;
    std::vector<float> scores(S);
    for (int row = 0; row < groups * T; row++) {
      int b = task / heads, h = task % heads * groups + row / T, t = row % T;
      const float* q = in[0].data<float>() + ((int64_t(b) * H + h) * T + t) * D;
      float* y = out[0].data<float>() + ((int64_t(b) * H + h) * T + t) * D;
      const bool* seen = in[3].data<bool>() + (int64_t(b) * T + t) * S;
      float top = -std::numeric_limits<float>::infinity(), total = 0;
      for (int s = 0; s < S; s++) {
        if (!seen[s]) continue;
        Floats product = {};
        vectors(D, [&](int64_t i, int count) { product += read(q + i, count) * read(k + int64_t(s) * D + i, count); });
        scores[s] = sum(product) * scale;
        top = scores[s] > top ? scores[s] : top;
      }
      for (int s = 0; s < S; s++) scores[s] = seen[s] ? scores[s] - top : -std::numeric_limits<float>::infinity();
      map(scores.data(), S, [](Floats x) { return exp(x); });
      std::fill(y, y + D, 0.f);
      for (int s = 0; s < S; s++) {
        if (!seen[s]) continue;
        float weight = scores[s];
        total += weight;
        vectors(D, [&](int64_t i, int count) {
          write(y + i, read(y + i, count) + weight * read(v + int64_t(s) * D + i, count), count);
        });
      }
      for (int i = 0; i < D; i++) y[i] /= total;
    }
  });
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("attend", [](const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& mask,
                          double scale) {
    auto seen = mx::broadcast_to(mask, {q.shape(0), 1, q.shape(2), k.shape(2)}, mx::default_stream(mx::Device::cpu));
    return launch(attend, {scale}, {q, k, v, seen}, {q.shape()})[0];
  }, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("mask"), nb::arg("scale"));
}
