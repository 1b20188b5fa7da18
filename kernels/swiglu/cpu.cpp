// SwiGLU, GELU and their gradients on a CPU, in float32: one pass over the numbers, on the pool of threads.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace nb = nanobind;

namespace mlxgpt {

namespace mx = mlx::core;

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
class Pointwise : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (auto& a : outputs) a.set_data(mx::allocator::malloc(a.nbytes()));
    std::vector<mx::array> from, to;
    for (auto& a : inputs) from.push_back(mx::array::unsafe_weak_copy(a));
    for (auto& a : outputs) to.push_back(mx::array::unsafe_weak_copy(a));
    encoder.dispatch([from, to]() mutable { run(from, to); });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("for CPUs only");
  }

  bool is_equivalent(const mx::Primitive&) const override { return true; }

  const char* name() const override { return "mlxgpt::Pointwise"; }

  static std::vector<mx::array> apply(std::vector<mx::array> inputs) {
    auto stream = mx::default_stream(mx::Device::cpu);
    for (auto& a : inputs) a = mx::contiguous(a, false, stream);
    std::vector<mx::Shape> shapes(F::OUTPUTS, inputs[0].shape());
    std::vector<mx::Dtype> types(F::OUTPUTS, mx::float32);
    return mx::array::make_arrays(std::move(shapes), types, std::make_shared<Pointwise<F>>(stream), inputs);
  }

 private:
  static void run(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
    size_t size = inputs[0].size();
    Pool::shared().each((size + PIECE - 1) / PIECE, [&](int task) {
      size_t i = size_t(task) * PIECE, end = std::min(size, i + PIECE);
      for (; i < end; i += LANES) {
        Floats in[F::INPUTS], out[F::OUTPUTS];
        bool whole = i + LANES <= end;
        int count = whole ? LANES : int(end - i);
        for (int n = 0; n < F::INPUTS; n++) {
          const float* p = inputs[n].template data<float>() + i;
          in[n] = whole ? load<Floats>(p) : load_first(p, count, 0);
        }
        F::at(in, out);
        for (int n = 0; n < F::OUTPUTS; n++) {
          float* p = outputs[n].template data<float>() + i;
          if (whole) store(p, out[n]);
          else std::memcpy(p, &out[n], count * sizeof(float));
        }
      }
    });
  }
};

}  // namespace mlxgpt

namespace mx = mlx::core;
using namespace mlxgpt;

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("swiglu", [](const mx::array& gate, const mx::array& up) {
    return Pointwise<Swiglu>::apply({gate, up})[0];
  });
  module.def("swiglu_backward", [](const mx::array& gate, const mx::array& up, const mx::array& d_out) {
    auto made = Pointwise<SwigluBackward>::apply({gate, up, d_out});
    return std::pair(made[0], made[1]);
  });
  module.def("gelu", [](const mx::array& x) { return Pointwise<Gelu>::apply({x})[0]; });
  module.def("gelu_backward", [](const mx::array& x, const mx::array& d_out) {
    return Pointwise<GeluBackward>::apply({x, d_out})[0];
  });
}
