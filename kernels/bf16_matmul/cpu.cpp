// x · wᵀ on a CPU for w of bfloat16, added up in float32, and the products of its gradients.
// What one instruction does and what is rounded is in cpu/halves.h, for a few rows of x; without AVX512-BF16 more are a
// product of MLX's.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "cpu/gemm.h"
#include "cpu/halves.h"
#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace nb = nanobind;

namespace mlxgpt {

namespace mx = mlx::core;

constexpr int FEW = 8;  // rows of x, for each of which w is read as it lies

template <int TERMS>
void few_rows(const mx::array& x, const mx::array& w, float* y) {
  int K = x.shape(-1), M = x.size() / K, N = w.shape(0);
  HalfProduct<TERMS> product(M, K / 2);
  Pool::shared().each(M, [&](int m) {
    if (x.dtype() == mx::float32)
      product.round(m, [p = x.data<float>() + size_t(m) * K](int k) { return p[k]; });
    else
      product.round(m, [p = x.data<uint16_t>() + size_t(m) * K](int k) { return as_float(uint32_t(p[k]) << 16); });
  });
  in_pieces(N, K * 2, [&](int first, int last) { product.columns(first, last, w.data<uint32_t>(), N, y); });
}

enum class Role { forward, of_x, of_w };  // x · wᵀ; and of its gradient dy: dy · w, and dyᵀ · x

// Whether w is read as it lies: a row of it is words.
inline bool few(Role role, const mx::array& x, const mx::array& w) {
  int K = x.shape(-1);
  return role == Role::forward && w.dtype() == mx::bfloat16 && x.size() <= size_t(FEW) * K && K % 2 == 0;
}

#if defined(__AVX512BF16__)
template <int TERMS>
void many_rows(Role role, const mx::array& a, const mx::array& b, float* c) {
  auto matrix = [](const mx::array& m) {
    int columns = m.shape(-1);
    return gemm::Matrix{m.data<void>(), int(m.size() / columns), columns, m.dtype() == mx::bfloat16};
  };
  gemm::Left<TERMS> left(matrix(a), role == Role::of_w);
  bool across = role == Role::forward;
  int N = across ? b.shape(0) : b.shape(-1);
  if (left.in_rows) gemm::multiply<TERMS, true>(left, matrix(b), across, N, c);
  else if constexpr (TERMS == 1) gemm::multiply<1, false>(left, matrix(b), across, N, c);
}
#endif

// Its inputs are rows in memory.
class Bf16Matmul : public mx::UnaryPrimitive {
 public:
  Bf16Matmul(mx::Stream stream, Role role, bool rounded) : UnaryPrimitive(stream), role_(role), rounded_(rounded) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.size() == 0) return;
    auto weak = mx::array::unsafe_weak_copy;
    mx::cpu::get_command_encoder(stream()).dispatch(
        [role = role_, rounded = rounded_, a = weak(inputs[0]), b = weak(inputs[1]), y = weak(out)]() mutable {
          run(role, rounded, a, b, y);
        });
  }

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override { throw std::runtime_error("for CPUs only"); }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    auto &a = primals[0], &b = primals[1], &d = cotangents[0];
    auto s = stream();
    // The gradient in an input, by role: what is multiplied. In a product of w's gradient g stands where w does, in
    // float32, which only rounding takes.
    auto gradient = [&](int input) {
      if (role_ == Role::forward) return apply(input ? Role::of_w : Role::of_x, d, input ? a : b, rounded_, s);
      if (role_ == Role::of_x) return input ? apply(Role::of_w, a, d, rounded_, s) : apply(Role::forward, d, b, rounded_, s);
      return input ? apply(Role::of_x, a, d, rounded_, s) : apply(Role::forward, b, d, true, s);
    };
    std::vector<mx::array> gradients;
    for (int i : argnums) {
      auto made = gradient(i);
      bool kept = role_ == Role::forward && i == 1 && rounded_;  // dw stays float32
      gradients.push_back(kept ? made : mx::astype(made, primals[i].dtype(), s));
    }
    return gradients;
  }

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals, const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override {
    std::optional<mx::array> total;
    for (size_t i = 0; i < argnums.size(); i++) {
      auto& t = tangents[i];
      auto part = apply(role_, argnums[i] == 0 ? t : primals[0], argnums[i] == 0 ? primals[1] : t, rounded_, stream());
      total = total ? mx::add(*total, part, stream()) : part;
    }
    return {*total};
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override {
    if (axes[1] != -1 || role_ == Role::of_w) throw std::invalid_argument("bf16_matmul: vmap over x alone");
    return {{apply(role_, mx::moveaxis(inputs[0], axes[0], 0, stream()), inputs[1], rounded_, stream())}, {0}};
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {shape_of(role_, inputs[0], inputs[1])};
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    auto& as = static_cast<const Bf16Matmul&>(other);
    return role_ == as.role_ && rounded_ == as.rounded_;
  }

  const char* name() const override { return "mlxgpt::Bf16Matmul"; }

  // Of x's type, or float32 for w's gradient.
  static mx::array apply(Role role, const mx::array& a, const mx::array& b, bool rounded, mx::Stream s) {
    auto type = role == Role::of_w ? mx::float32 : a.dtype();
    if (a.size() == 0 || b.size() == 0 || !(PAIRED || few(role, a, b)))
      return mx::astype(widened(role, a, b, rounded, s), type, s);
    auto x = mx::contiguous(a, false, s), y = mx::contiguous(b, false, s);
    return mx::array(shape_of(role, a, b), type, std::make_shared<Bf16Matmul>(s, role, rounded), {x, y});
  }

 private:
  static mx::Shape shape_of(Role role, const mx::array& a, const mx::array& b) {
    if (role == Role::of_w) return {a.shape(-1), b.shape(-1)};
    auto shape = a.shape();
    shape.back() = role == Role::forward ? b.shape(0) : b.shape(-1);
    return shape;
  }

  // MLX's product of float32.
  static mx::array widened(Role role, const mx::array& a, const mx::array& b, bool rounded, mx::Stream s) {
    auto wide = [&](const mx::array& m) {
      return mx::astype(rounded ? mx::astype(m, mx::bfloat16, s) : m, mx::float32, s);
    };
    if (role == Role::forward) return mx::matmul(wide(a), mx::transpose(wide(b), s), s);
    if (role == Role::of_x) return mx::matmul(wide(a), wide(b), s);
    auto rows = [&](const mx::array& m) { return mx::flatten(wide(m), 0, -2, s); };
    return mx::matmul(mx::transpose(rows(a), s), rows(b), s);
  }

  static void run(Role role, bool rounded, const mx::array& a, const mx::array& b, mx::array& y) {
    std::unique_ptr<float[]> wider;
    float* out = y.dtype() == mx::float32 ? y.data<float>() : (wider.reset(new float[y.size()]), wider.get());
    constexpr int SPLIT = PAIRED ? 1 : 2;
    bool one = PAIRED && (rounded || a.dtype() == mx::bfloat16);
    if (few(role, a, b))
      one ? few_rows<SPLIT>(a, b, out) : few_rows<2>(a, b, out);
#if defined(__AVX512BF16__)
    else one || role == Role::of_w ? many_rows<1>(role, a, b, out) : many_rows<2>(role, a, b, out);
#endif
    if (wider) {
      uint16_t* to = y.data<uint16_t>();
      for (size_t i = 0; i < y.size(); i++) to[i] = nearest(out[i]) >> 16;
    }
  }

  Role role_;
  bool rounded_;
};

bool served(const mx::array& x, const mx::array& w, bool rounded) {
  auto real = [](const mx::array& a) { return a.dtype() == mx::float32 || a.dtype() == mx::bfloat16; };
  return real(x) && (rounded ? real(w) : w.dtype() == mx::bfloat16) && x.ndim() > 0 && w.ndim() == 2 &&
         x.shape(-1) == w.shape(1);
}

}  // namespace mlxgpt

namespace mx = mlx::core;
using namespace mlxgpt;

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("bf16_matmul", [](const mx::array& x, const mx::array& w, bool rounded) {
    if (!served(x, w, rounded)) return mx::matmul(x, mx::transpose(w));
    return Bf16Matmul::apply(Role::forward, x, w, rounded, mx::default_stream(mx::Device::cpu));
  }, nb::arg("x"), nb::arg("w"), nb::arg("rounded") = false);
  module.attr("fast") = PAIRED;  // whether rounding to bfloat16 is worth it
}
