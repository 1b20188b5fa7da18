// x · wᵀ on a CPU for w of bfloat16, added up in float32, and the products of its gradients.
//
// A word of 32 bits holds two of w's row. With AVX512-BF16 it meets two of x, also of bfloat16, in one instruction: a
// float32 x is taken apart into the nearest bfloat16 and the rest, to 2⁻¹⁷ of itself, or `rounded` alone. Else a few
// rows of x meet it widened to two vectors, and more are a product of MLX's.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "cpu/gemm.h"
#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace nb = nanobind;

namespace mlxgpt {

namespace mx = mlx::core;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
constexpr bool PAIRED = true;
#else
constexpr bool PAIRED = false;
#endif
constexpr int FEW = 8;  // rows of x, for each of which w is read as it lies

inline float as_float(uint32_t word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline uint32_t as_word(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  return word;
}

// The nearest bfloat16, ties to even, as the upper half of a float32.
inline uint32_t nearest(float value) {
  uint32_t word = as_word(value);
  if ((word & 0x7fffffff) > 0x7f800000) return 0x7fc00000;
  return (word + 0x7fff + (word >> 16 & 1)) & 0xffff0000;
}

// TERMS words of x for each pair: bfloat16 pairs, the second of what the first leaves; or the two float32.
template <int TERMS>
inline void pack(float low, float high, int32_t* to, int step) {
  if constexpr (PAIRED) {
    uint32_t a = nearest(low), b = nearest(high);
    to[0] = a >> 16 | b;
    if constexpr (TERMS == 2) {
      bool finite = (a & 0x7f800000) != 0x7f800000 && (b & 0x7f800000) != 0x7f800000;
      to[step] = finite ? nearest(low - as_float(a)) >> 16 | nearest(high - as_float(b)) : 0;
    }
  } else {
    to[0] = as_word(low);
    to[step] = as_word(high);
  }
}

template <int TERMS, class Load>
inline Floats multiply_add(Floats sum, Words w, const Load& x) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
  for (int i = 0; i < TERMS; i++) sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x(i));
  return sum;
#else
  return sum + (Floats)(w << 16) * (Floats)x(0) + (Floats)(w & 0xffff0000) * (Floats)x(1);
#endif
}

// M rows of K = 2 · words numbers each, M few, by N rows of w.
template <int TERMS>
struct Product {
  int M, N, words, stride;
  std::unique_ptr<int32_t[]> terms;

  Product(int M, int N, int words) : M(M), N(N), words(words) {
    stride = (words + LANES - 1) / LANES * LANES * TERMS + 16;  // not a power of two: see quantized_matmul
    terms.reset(new int32_t[size_t(M + 3) / 4 * 4 * stride]());
  }

  // Row m of x; read(k) is its k-th number.
  template <class Read>
  void round(int m, const Read& read) {
    int32_t* to = &terms[size_t(m) * stride];
    for (int i = 0; i < words; i++)
      pack<TERMS>(read(2 * i), read(2 * i + 1), to + i / LANES * TERMS * LANES + i % LANES, LANES);
  }

  template <int COUNT>
  void dot(int m, const uint32_t* w, float* out) const {
    Floats sums[COUNT][2] = {};
    const int32_t* x = &terms[size_t(m) * stride];
    auto add = [&](Words word, int v) {
#pragma GCC unroll 4
      for (int r = 0; r < COUNT; r++)
        sums[r][v & 1] = multiply_add<TERMS>(sums[r][v & 1], word, [&](int i) {
          return load<Ints>(x + size_t(r) * stride + (v * TERMS + i) * LANES);
        });
    };
    int whole = words / LANES, v = 0;
    for (; v + 1 < whole; v += 2) {
      add(load<Words>(w + v * LANES), v);
      add(load<Words>(w + (v + 1) * LANES), v + 1);
    }
    if (v < whole) add(load<Words>(w + v * LANES), v), v++;
    if (v * LANES < words) {
      Words last = {};
      std::memcpy(&last, w + v * LANES, (words - v * LANES) * 4);
      add(last, v);
    }
    for (int r = 0; r < COUNT; r++) out[r] = sum(sums[r][0] + sums[r][1]);
  }

  // Every row of w is read once, in the order of memory.
  void run(const uint32_t* w, float* y) const {
    int rows = std::max(1, std::min(N, (32 << 10) / (words * 4)));
    Pool::shared().each((N + rows - 1) / rows, [&](int chunk) {
      for (int n = chunk * rows; n < std::min(N, (chunk + 1) * rows); n++)
        for (int m = 0; m < M; m += 4) {
          float out[4];
          const uint32_t* row = w + size_t(n) * words;
          int count = std::min(4, M - m);
          if (count == 1) dot<1>(m, row, out);
          else if (count == 2) dot<2>(m, row, out);
          else dot<4>(m, row, out);
          for (int r = 0; r < count; r++) y[size_t(m + r) * N + n] = out[r];
        }
    });
  }
};

template <int TERMS>
void few_rows(const mx::array& x, const mx::array& w, float* y) {
  int K = x.shape(-1), M = x.size() / K;
  Product<TERMS> product(M, w.shape(0), K / 2);
  Pool::shared().each(M, [&](int m) {
    if (x.dtype() == mx::float32)
      product.round(m, [p = x.data<float>() + size_t(m) * K](int k) { return p[k]; });
    else
      product.round(m, [p = x.data<uint16_t>() + size_t(m) * K](int k) { return as_float(uint32_t(p[k]) << 16); });
  });
  product.run(w.data<uint32_t>(), y);
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
