// x · wᵀ on a CPU for w of bfloat16, added up in float32.
//
// A word of 32 bits holds two of w's row. With AVX512-BF16 it meets two of x, also of bfloat16, in one instruction: a
// float32 x is taken apart into the nearest bfloat16 and the rest, to 2⁻¹⁷ of itself. Else it is widened to two
// vectors.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "cpu/arrays.h"
#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace nb = nanobind;

namespace mlxgpt {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
constexpr bool PAIRED = true;
#else
constexpr bool PAIRED = false;
#endif
constexpr int ROWS = 8, PANEL = 2;  // a product of many rows: 8 of x by 2 vectors of w's at a time
constexpr int DEPTH = 128, CHUNK = 256;  // words of w's rows at a time, and rows of x that share them

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

// M rows of K = 2 · words numbers each, by N rows of w.
template <int TERMS>
struct Product {
  int M, N, words, stride;
  std::unique_ptr<int32_t[]> terms;

  Product(int M, int N, int words) : M(M), N(N), words(words) {
    stride = (words + LANES - 1) / LANES * LANES * TERMS + 16;  // not a power of two: see quantized_matmul
    terms.reset(new int32_t[size_t(M + ROWS - 1) / ROWS * ROWS * stride]);
  }

  static constexpr int offset(int word) { return word / LANES * TERMS * LANES + word % LANES; }

  // Row m of x, zeros past its end and where there is none; read(k) is its k-th number.
  template <class Read>
  void round(int m, const Read& read) {
    int32_t* to = &terms[size_t(m) * stride];
    std::fill(to, to + stride, 0);
    if (m < M)
      for (int i = 0; i < words; i++) pack<TERMS>(read(2 * i), read(2 * i + 1), to + offset(i), LANES);
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

  // Few rows of x: every row of w is read once, in the order of memory.
  void narrow(const uint32_t* w, float* y) const {
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

  // Many rows of x: PANEL · LANES rows of w, a lane each, DEPTH words at a time, meet CHUNK rows of x.
  void wide(const uint32_t* w, float* y) const {
    constexpr int COLUMNS = PANEL * LANES;
    int panels = (N + COLUMNS - 1) / COLUMNS, chunks = (M + CHUNK - 1) / CHUNK;
    Pool::shared().each(panels * chunks, [&](int task) {
      int n0 = task / chunks * COLUMNS, m0 = task % chunks * CHUNK;
      int columns = std::min(COLUMNS, N - n0), rows = std::min(CHUNK, M - m0);
      std::unique_ptr<Floats[]> totals(new Floats[CHUNK * PANEL]());
      alignas(64) uint32_t across[DEPTH][COLUMNS] = {};
      for (int k = 0; k < words; k += DEPTH) {
        int depth = std::min(DEPTH, words - k);
        for (int c = 0; c < columns; c++)
          for (int i = 0; i < depth; i++) across[i][c] = w[size_t(n0 + c) * words + k + i];
        for (int m = m0; m < m0 + rows; m += ROWS) {
          const int32_t* x = &terms[size_t(m) * stride + offset(k)];
          Floats* total = &totals[(m - m0) * PANEL];
          Floats sums[ROWS][PANEL];
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < PANEL; v++) sums[r][v] = total[r * PANEL + v];
          for (int i = 0; i < depth; i++) {
            const int32_t* pair = x + offset(i);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
              for (int v = 0; v < PANEL; v++)
                sums[r][v] = multiply_add<TERMS>(sums[r][v], load<Words>(&across[i][v * LANES]), [&](int t) {
                  return Ints{} + pair[size_t(r) * stride + t * LANES];
                });
          }
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < PANEL; v++) total[r * PANEL + v] = sums[r][v];
        }
      }
      for (int r = 0; r < rows; r++)
        std::memcpy(y + size_t(m0 + r) * N + n0, &totals[r * PANEL], columns * sizeof(float));
    });
  }
};

template <int TERMS>
void multiply(const mx::array& x, const mx::array& w, mx::array& y) {
  int K = x.shape(-1), N = w.shape(0), M = x.size() / K;
  std::vector<char> copy;
  auto words = static_cast<const uint32_t*>(by_rows(w, copy));
  Product<TERMS> product(M, N, K / 2);
  int rows = (M + ROWS - 1) / ROWS * ROWS, each = std::max(1, 16384 / K);
  int64_t step = x.strides(-1);
  Pool::shared().each((rows + each - 1) / each, [&](int task) {
    for (int m = task * each; m < std::min(rows, (task + 1) * each); m++) {
      int64_t at = m < M ? mx::elem_to_loc(size_t(m) * K, x.shape(), x.strides()) : 0;
      if (x.dtype() == mx::float32)
        product.round(m, [p = x.data<float>() + at, step](int k) { return p[k * step]; });
      else
        product.round(m, [p = x.data<uint16_t>() + at, step](int k) { return as_float(uint32_t(p[k * step]) << 16); });
    }
  });
  std::unique_ptr<float[]> wider;
  float* out = y.dtype() == mx::float32 ? y.data<float>() : (wider.reset(new float[y.size()]), wider.get());
  M > 8 ? product.wide(words, out) : product.narrow(words, out);
  if (wider) {
    uint16_t* to = y.data<uint16_t>();
    for (size_t i = 0; i < y.size(); i++) to[i] = nearest(out[i]) >> 16;
  }
}

class Bf16Matmul : public mx::UnaryPrimitive {
 public:
  using UnaryPrimitive::UnaryPrimitive;

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.size() == 0) return;
    auto run = PAIRED && inputs[0].dtype() == mx::bfloat16 ? multiply<PAIRED ? 1 : 2> : multiply<2>;
    auto weak = mx::array::unsafe_weak_copy;
    mx::cpu::get_command_encoder(stream()).dispatch(
        [run, x = weak(inputs[0]), w = weak(inputs[1]), y = weak(out)]() mutable { run(x, w, y); });
  }

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override { throw std::runtime_error("for CPUs only"); }

  // dx = dy · w, dw = dyᵀ · x, each as this product again.
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    auto s = stream();
    auto transposed = [&](const mx::array& a) { return mx::contiguous(mx::transpose(a, s), false, s); };
    std::vector<mx::array> gradients;
    for (int i : argnums) {
      if (i == 0) {
        gradients.push_back(mx::astype(apply(cotangents[0], transposed(primals[1]), s), primals[0].dtype(), s));
      } else {
        auto x = mx::astype(mx::reshape(primals[0], {-1, primals[0].shape(-1)}, s), mx::bfloat16, s);
        auto d_y = mx::reshape(cotangents[0], {-1, cotangents[0].shape(-1)}, s);
        gradients.push_back(mx::astype(apply(mx::transpose(d_y, s), transposed(x), s), mx::bfloat16, s));
      }
    }
    return gradients;
  }

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals, const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override {
    std::optional<mx::array> total;
    for (size_t i = 0; i < argnums.size(); i++) {
      auto part = argnums[i] == 0 ? apply(tangents[i], primals[1], stream()) : apply(primals[0], tangents[i], stream());
      total = total ? mx::add(*total, part, stream()) : part;
    }
    return {*total};
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override {
    if (axes[1] != -1) throw std::invalid_argument("bf16_matmul: vmap over x alone");
    return {{apply(mx::moveaxis(inputs[0], axes[0], 0, stream()), inputs[1], stream())}, {0}};
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    auto shape = inputs[0].shape();
    shape.back() = inputs[1].shape(0);
    return {shape};
  }

  bool is_equivalent(const mx::Primitive&) const override { return true; }

  const char* name() const override { return "mlxgpt::Bf16Matmul"; }

  // Of odd rows, or none, a word is not made of one row's numbers: MLX widens those.
  static mx::array apply(const mx::array& x, const mx::array& w, mx::Stream stream) {
    if (x.shape(-1) % 2 || x.shape(-1) == 0) {
      auto wide = mx::transpose(mx::astype(w, mx::float32, stream), stream);
      return mx::astype(mx::matmul(mx::astype(x, mx::float32, stream), wide, stream), x.dtype(), stream);
    }
    auto shape = x.shape();
    shape.back() = w.shape(0);
    return mx::array(shape, x.dtype(), std::make_shared<Bf16Matmul>(stream), {x, w});
  }
};

bool served(const mx::array& x, const mx::array& w) {
  return (x.dtype() == mx::float32 || x.dtype() == mx::bfloat16) && w.dtype() == mx::bfloat16 && x.ndim() > 0 &&
         w.ndim() == 2 && x.shape(-1) == w.shape(1);
}

}  // namespace mlxgpt

namespace mx = mlx::core;

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("bf16_matmul", [](const mx::array& x, const mx::array& w) {
    if (!mlxgpt::served(x, w)) return mx::matmul(x, mx::transpose(w));
    return mlxgpt::Bf16Matmul::apply(x, w, mx::default_stream(mx::Device::cpu));
  }, nb::arg("x"), nb::arg("w"));
}
