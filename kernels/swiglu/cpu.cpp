// SwiGLU, GELU and their gradients on a CPU, in float32: one pass over the numbers, on the pool of threads.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <algorithm>

#include "cpu/operation.h"

namespace nb = nanobind;

namespace mlxgpt {

constexpr int PIECE = 1 << 14;                     // numbers a task
constexpr float A = 1.5957691216f, B = 0.044715f;  // 2 √(2/π), and the cube's factor: as in gelu/op.py

inline Floats sigmoid(Floats x) { return 1.f / (1.f + exp(-x)); }

inline Floats gelu_sigmoid(Floats x) { return 1.f / (1.f + exp(x * (-A - A * B * (x * x)))); }

struct Swiglu {
  static constexpr int INPUTS = 2, OUTPUTS = 1;
  static void at(const Floats* in, Floats* out) { out[0] = in[0] * sigmoid(in[0]) * in[1]; }
};

struct SwigluBackward {  // of gate, up and the output's gradient
  static constexpr int INPUTS = 3, OUTPUTS = 2;
  static void at(const Floats* in, Floats* out) {
    Floats s = sigmoid(in[0]), silu = in[0] * s;
    out[0] = in[2] * in[1] * (s + silu * (1.f - s));
    out[1] = in[2] * silu;
  }
};

struct Gelu {
  static constexpr int INPUTS = 1, OUTPUTS = 1;
  static void at(const Floats* in, Floats* out) { out[0] = in[0] * gelu_sigmoid(in[0]); }
};

struct GeluBackward {
  static constexpr int INPUTS = 2, OUTPUTS = 1;
  static void at(const Floats* in, Floats* out) {
    Floats x = in[0], s = gelu_sigmoid(x);
    out[0] = in[1] * (s + x * s * (1.f - s) * (A + 3 * A * B * (x * x)));
  }
};

template <class F>
void run(const Numbers&, const Arrays& inputs, Arrays& outputs) {
  int64_t size = inputs[0].size();
  Pool::shared().each((size + PIECE - 1) / PIECE, [&](int task) {
    int64_t start = int64_t(task) * PIECE;
    vectors(std::min<int64_t>(PIECE, size - start), [&](int64_t i, int count) {
      Floats in[F::INPUTS], out[F::OUTPUTS];
      for (int n = 0; n < F::INPUTS; n++) in[n] = read(inputs[n].template data<float>() + start + i, count);
      F::at(in, out);
      for (int n = 0; n < F::OUTPUTS; n++) write(outputs[n].template data<float>() + start + i, out[n], count);
    });
  });
}

template <class F>
Arrays pointwise(const Arrays& inputs) {
  return launch(run<F>, {}, inputs, std::vector<mx::Shape>(F::OUTPUTS, inputs[0].shape()));
}

}  // namespace mlxgpt

using namespace mlxgpt;

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("swiglu", [](const mx::array& gate, const mx::array& up) {
    return pointwise<Swiglu>({gate, up})[0];
  });
  module.def("swiglu_backward", [](const mx::array& gate, const mx::array& up, const mx::array& d_out) {
    auto made = pointwise<SwigluBackward>({gate, up, d_out});
    return std::pair(made[0], made[1]);
  });
  module.def("gelu", [](const mx::array& x) { return pointwise<Gelu>({x})[0]; });
  module.def("gelu_backward", [](const mx::array& x, const mx::array& d_out) {
    return pointwise<GeluBackward>({x, d_out})[0];
  });
}
