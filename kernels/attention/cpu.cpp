// Attention of a few queries under a mask on a CPU, in float32, over a cache as it lies: a task is the heads that share
// keys and values, and a key that is not seen costs a look at the mask.
#include <nanobind/nanobind.h>

#include "cpu/attend.h"

namespace nb = nanobind;
using namespace mlxgpt;

// in: q [B, H, T, D], k and v [B, Hkv, S, D], the mask [B, T, S]; out: [B, H, T, D]
static void masked(const Numbers& numbers, const Arrays& in, Arrays& out) {
  int B = in[0].shape(0), H = in[0].shape(1), T = in[0].shape(2), D = in[0].shape(3);
  int heads = in[1].shape(1), S = in[1].shape(2), groups = H / heads;
  float scale = float(numbers[0]);
  Pool::shared().each(B * heads, [&](int task) {
    const float *k = in[1].data<float>() + int64_t(task) * S * D, *v = in[2].data<float>() + int64_t(task) * S * D;
    std::vector<float> scores(S);
    std::vector<int> slots(S);
    int b = task / heads;
    for (int t = 0; t < T; t++) {
      const bool* mask = in[3].data<bool>() + (int64_t(b) * T + t) * S;
      int count = 0;
      for (int s = 0; s < S; s++)
        if (mask[s]) slots[count++] = s;
      for (int h = task % heads * groups; h < (task % heads + 1) * groups; h++) {
        int64_t at = ((int64_t(b) * H + h) * T + t) * D;
        attend(in[0].data<float>() + at, k, v, D, count, [&](int i) { return slots[i]; }, scale, scores.data(),
                       out[0].data<float>() + at);
      }
    }
  });
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("attend", [](const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& mask,
                          double scale) {
    auto seen = mx::broadcast_to(mask, {q.shape(0), 1, q.shape(2), k.shape(2)}, mx::default_stream(mx::Device::cpu));
    return launch(masked, {scale}, {q, k, v, seen}, {q.shape()})[0];
  }, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("mask"), nb::arg("scale"));
}
