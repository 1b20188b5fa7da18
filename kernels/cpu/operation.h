// A function over arrays as a node of MLX's graph on the CPU.
#pragma once

#include <stdexcept>
#include <vector>

#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace mlxgpt {

namespace mx = mlx::core;

using Arrays = std::vector<mx::array>;
using Numbers = std::vector<double>;

// What computes the outputs; the inputs are rows in memory.
using Run = void (*)(const Numbers& numbers, const Arrays& in, Arrays& out);

class Operation : public mx::Primitive {
 public:
  // `reused` inputs from the first on give their memory to the outputs, one each, where nobody else needs it.
  Operation(mx::Stream stream, Run run, Numbers numbers, int reused)
      : Primitive(stream), run_(run), numbers_(std::move(numbers)), reused_(reused) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    Arrays in, out;
    for (auto& a : inputs) in.push_back(mx::array::unsafe_weak_copy(a));
    for (int i = 0; i < int(outputs.size()); i++) {
      auto& a = outputs[i];
      if (i < reused_ && inputs[i].is_donatable() && inputs[i].nbytes() == a.nbytes()) a.copy_shared_buffer(inputs[i]);
      else a.set_data(mx::allocator::malloc(a.nbytes()));
      out.push_back(mx::array::unsafe_weak_copy(a));
    }
    mx::cpu::get_command_encoder(stream()).dispatch(
        [run = run_, numbers = numbers_, in, out]() mutable { run(numbers, in, out); });
  }

  void eval_gpu(const Arrays&, Arrays&) override { throw std::runtime_error("for CPUs only"); }

  bool is_equivalent(const mx::Primitive& other) const override {
    auto& its = static_cast<const Operation&>(other);
    return its.run_ == run_ && its.numbers_ == numbers_;
  }

  const char* name() const override { return "mlxgpt::Operation"; }

 private:
  Run run_;
  Numbers numbers_;
  int reused_;
};

// The array as rows in memory: itself, where it is known to be that already, as all that we make is. It saves a node.
inline mx::array in_rows(const mx::array& a, mx::Stream stream) {
  bool there = a.status() == mx::array::Status::available && !a.has_primitive() && a.flags().row_contiguous;
  bool ours = a.has_primitive() && std::strncmp(a.primitive().name(), "mlxgpt::", 8) == 0;
  return there || ours ? a : mx::contiguous(a, false, stream);
}

// Its float32 outputs, of the shapes.
inline Arrays launch(Run run, Numbers numbers, Arrays inputs, std::vector<mx::Shape> shapes, int reused = 0) {
  auto stream = mx::default_stream(mx::Device::cpu);
  for (auto& a : inputs) a = in_rows(a, stream);
  std::vector<mx::Dtype> types(shapes.size(), mx::float32);
  return mx::array::make_arrays(std::move(shapes), types,
                                std::make_shared<Operation>(stream, run, std::move(numbers), reused), inputs);
}

// f(i, whole) for every vector of n numbers, from the i-th on; the last may not be whole.
template <class F>
inline void vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) f(i, LANES);
  if (i < n) f(i, int(n - i));
}

inline Floats read(const float* p, int count) { return count == LANES ? load<Floats>(p) : load_first(p, count, 0); }

inline void write(float* p, Floats v, int count) {
  if (count == LANES) store(p, v);
  else std::memcpy(p, &v, count * sizeof(float));
}

}  // namespace mlxgpt
