// x · dequantize(w)ᵀ on a CPU, for MLX's affine weights of 4 and 8 bits.
//
// Each group of x is rounded to 16-bit integers of one scale, so that a group's products with the weights' integers
// are exact in 32 bits, and two scales and a bias a group make them real:
//   y[m, n] = Σ_g scale[n, g] · d[m, g] · (Σ_k q[n, k] · i[m, k]) + bias[n, g] · d[m, g] · Σ_k i[m, k]
// That is 2⁻¹⁶ of the group's largest x at most, and twice as fast as float32. A word of 32 bits is taken apart with
// shifts into pairs of weights P = 16 / bits apart; x lies in the same order.
//
// Its gradient dx = dy · dequantize(w) is BLAS's product in float32, with one block of w's columns after the other.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/operation.h"
#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;
namespace nb = nanobind;

// MLX is linked to it, so that it is there.
extern "C" void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                            const float* b, int ldb, float beta, float* c, int ldc);

namespace mlxgpt {

constexpr int ROWS = 8, PANEL = 2;  // a product of many rows: 8 of x by 2 vectors of w's at a time
constexpr int CHUNK = 256;          // of which this many share what was unpacked of w
constexpr int UNPACKED = 1 << 23;   // weights that the gradient holds in float32 at a time: 32 MiB

// A matrix of float32 or bfloat16, by rows.
struct Matrix {
  const void* data;
  bool bf16;

  float at(size_t i) const {
    if (!bf16) return static_cast<const float*>(data)[i];
    uint32_t word = uint32_t(static_cast<const uint16_t*>(data)[i]) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
  Floats vector(size_t i) const {
    return bf16 ? load_bf16(static_cast<const uint16_t*>(data) + i) : load<Floats>(static_cast<const float*>(data) + i);
  }
  Matrix from(size_t i) const { return {static_cast<const char*>(data) + i * (bf16 ? 2 : 4), bf16}; }
};

struct Sizes {
  int M, N, K, groups, row_words;  // row_words: 32-bit words of a row of w
};

template <int BITS, int GROUP>
struct Product {
  static constexpr int P = 16 / BITS;                            // vectors of pairs in a vector of words
  static constexpr int WORDS = GROUP * BITS / 32;                // words of a group
  static constexpr int BLOCK = LANES * WORDS;                    // words of LANES groups
  static constexpr int RUN = WORDS > LANES ? WORDS / LANES : 1;  // vectors of words within one group
  static constexpr int32_t MASK = BITS == 4 ? 0x000f000f : 0x00ff00ff;

  Sizes size;
  int stride, group_stride;  // of a row of x: pairs, and groups, both of whole blocks
  std::unique_ptr<int32_t[]> pairs;
  std::unique_ptr<float[]> scales, sums;  // d, and d · Σ i

  explicit Product(const Sizes& s) : size(s) {
    int blocks = (s.groups + LANES - 1) / LANES, rows = (s.M + ROWS - 1) / ROWS * ROWS;
    group_stride = blocks * LANES;
    stride = blocks * BLOCK * P + 16;  // not a power of two: the rows of a tile shall not meet in one cache set
    pairs.reset(new int32_t[size_t(rows) * stride]);
    scales.reset(new float[size_t(rows) * group_stride]);
    sums.reset(new float[size_t(rows) * group_stride]);
  }

  // Where the pairs of a group begin, and those of its word w and shift i from there.
  static size_t offset(int group) { return size_t(group) * WORDS / LANES * P * LANES + size_t(group) * WORDS % LANES; }
  static constexpr int offset(int w, int i) { return (w / LANES * P + i) * LANES + w % LANES; }

  // Row m of x, `step` apart in memory from `x` on; zeros where x has no such row or group.
  void round(int m, const Matrix& x, int64_t step) {
    int32_t* to = &pairs[size_t(m) * stride];
    float* scale = &scales[size_t(m) * group_stride];
    float* sum = &sums[size_t(m) * group_stride];
    int groups = m < size.M ? size.groups : 0;
    std::fill(to + size_t(groups / LANES) * BLOCK * P, to + stride, 0);
    std::fill(scale + groups, scale + group_stride, 0.0f);
    std::fill(sum + groups, sum + group_stride, 0.0f);
    for (int g = 0; g < groups; g++) {
      float values[GROUP];
      int32_t integers[GROUP], top = 0, total = 0;
      if (step == 1 && !x.bf16) std::memcpy(values, static_cast<const float*>(x.data) + g * GROUP, sizeof values);
      else for (int k = 0; k < GROUP; k++) values[k] = x.at((int64_t(g) * GROUP + k) * step);
      std::memcpy(integers, values, sizeof values);
      for (int k = 0; k < GROUP; k++) top = std::max(top, integers[k] & 0x7fffffff);  // |x| orders as its bits do
      float largest;
      std::memcpy(&largest, &top, 4);
      if (top >= 0x7f800000) {  // inf or nan: the whole row becomes nan
        scale[g] = sum[g] = std::numeric_limits<float>::quiet_NaN();
        std::fill(values, values + GROUP, 0.0f);
        largest = 0;
      } else {
        scale[g] = largest / 32767;
      }
      float inverse = largest > 1e-30f ? 32767 / largest : 0;
      for (int k = 0; k < GROUP; k++) {
        float shifted = values[k] * inverse + 12582912.0f;  // 1.5 · 2²³: the sum's last bits are the nearest integer
        std::memcpy(&integers[k], &shifted, 4);
        integers[k] -= 0x4b400000;
        total += integers[k];
      }
      if (top < 0x7f800000) sum[g] = scale[g] * total;
      int32_t* here = to + offset(g);
      for (int w = 0; w < WORDS; w++)
        for (int i = 0; i < P; i++) {
          const int32_t* from = integers + w * 2 * P + i;
          here[offset(w, i)] = (from[0] & 0xffff) | (from[P] << 16);
        }
    }
  }

  // y[m, n] for COUNT rows of x from m on, and one row of w. May read, not use, up to a block past the end of w's row.
  template <int COUNT>
  void dot(int m, const uint32_t* w, const Matrix& s, const Matrix& b, float* out) const {
    Floats total[COUNT] = {};
    const int32_t* x = &pairs[size_t(m) * stride];
    for (int g = 0; g < size.groups; g += LANES) {
      Floats s_w = s.vector(g), b_w = b.vector(g), factor[COUNT];
      int left = size.groups - g;
      if (left < LANES) {  // what follows is the next row's
        Ints mine = lane_numbers() < left;
        s_w = (Floats)((Ints)s_w & mine);
        b_w = (Floats)((Ints)b_w & mine);
      }
      for (int r = 0; r < COUNT; r++) {
        size_t at = size_t(m + r) * group_stride + g;
        factor[r] = s_w * load<Floats>(&scales[at]);
        total[r] += b_w * load<Floats>(&sums[at]);
      }
      int vectors = left < LANES ? (left * WORDS + LANES - 1) / LANES : WORDS;
#pragma GCC unroll 8
      for (int j = 0; j < WORDS; j += RUN) {
        if (j >= vectors) break;
        Ints products[COUNT] = {};
#pragma GCC unroll 8
        for (int v = j; v < j + RUN; v++) {
          Words word = load<Words>(w + v * LANES);
#pragma GCC unroll 4
          for (int i = 0; i < P; i++) {
            Ints q = (Ints)(word >> (i * BITS)) & MASK;
#pragma GCC unroll 4
            for (int r = 0; r < COUNT; r++)
              products[r] = multiply_add(products[r], q, load<Ints>(x + size_t(r) * stride + (v * P + i) * LANES));
          }
        }
        Ints group = (lane_numbers() + j * LANES) / WORDS;
        for (int r = 0; r < COUNT; r++) total[r] += to_floats(products[r]) * __builtin_shuffle(factor[r], group);
      }
      w += BLOCK;
      x += BLOCK * P;
    }
    for (int r = 0; r < COUNT; r++) out[r] = sum(total[r]);
  }

  // A column of y for every row of x, given row n of w.
  void column(int n, const uint32_t* w, const Matrix& s, const Matrix& b, float* y) const {
    float out[4];
    for (int m = 0; m < size.M; m += 4) {
      int count = std::min(4, size.M - m);
      if (count == 1) dot<1>(m, w, s, b, out);
      else if (count == 2) dot<2>(m, w, s, b, out);
      else dot<4>(m, w, s, b, out);
      for (int r = 0; r < count; r++) y[size_t(m + r) * size.N + n] = out[r];
    }
  }

  // Few rows of x: every row of w is read once, in the order of memory.
  void narrow(const uint32_t* w, const Matrix& s, const Matrix& b, float* y) const {
    const auto& [M, N, K, groups, row_words] = size;
    // The last rows' blocks would reach past the end of the arrays: those are copied first.
    int words = (groups + LANES - 1) / LANES * BLOCK;
    int safe = N - std::max((group_stride - 1) / groups, (words - 1) / row_words);
    int rows = std::max(1, std::min(N, (32 << 10) / (row_words * 4)));
    Pool::shared().each((N + rows - 1) / rows, [&](int chunk) {
      for (int n = chunk * rows; n < std::min(N, (chunk + 1) * rows); n++) {
        const uint32_t* row = w + size_t(n) * row_words;
        size_t at = size_t(n) * groups;
        if (n < safe) {
          column(n, row, s.from(at), b.from(at), y);
          continue;
        }
        std::vector<uint32_t> copy(words);
        std::vector<float> s_copy(group_stride), b_copy(group_stride);
        std::copy(row, row + row_words, copy.begin());
        for (int g = 0; g < groups; g++) s_copy[g] = s.at(at + g), b_copy[g] = b.at(at + g);
        column(n, copy.data(), {s_copy.data(), false}, {b_copy.data(), false}, y);
      }
    });
  }

  // Many rows of x: PANEL · LANES rows of w are unpacked a group at a time, a lane each, and meet CHUNK rows of x.
  void wide(const uint32_t* w, const Matrix& s, const Matrix& b, float* y) const {
    constexpr int COLUMNS = PANEL * LANES;
    int panels = (size.N + COLUMNS - 1) / COLUMNS, chunks = (size.M + CHUNK - 1) / CHUNK;
    Pool::shared().each(panels * chunks, [&](int task) {
      int n0 = task / chunks * COLUMNS, m0 = task % chunks * CHUNK;
      int columns = std::min(COLUMNS, size.N - n0), rows = std::min(CHUNK, size.M - m0);
      std::unique_ptr<Floats[]> totals(new Floats[CHUNK * PANEL]());
      alignas(64) uint32_t words[WORDS][COLUMNS] = {};
      alignas(64) float s_w[COLUMNS] = {}, b_w[COLUMNS] = {};
      Ints unpacked[WORDS * P][PANEL];
      for (int g = 0; g < size.groups; g++) {
        for (int c = 0; c < columns; c++) {
          const uint32_t* row = w + size_t(n0 + c) * size.row_words + g * WORDS;
          for (int i = 0; i < WORDS; i++) words[i][c] = row[i];
          size_t at = size_t(n0 + c) * size.groups + g;
          s_w[c] = s.at(at);
          b_w[c] = b.at(at);
        }
        for (int i = 0; i < WORDS * P; i++)
          for (int v = 0; v < PANEL; v++)
            unpacked[i][v] = (Ints)(load<Words>(words[i / P] + v * LANES) >> (i % P * BITS)) & MASK;
        for (int m = m0; m < m0 + rows; m += ROWS) {
          const int32_t* x = &pairs[size_t(m) * stride + offset(g)];
          Ints products[ROWS][PANEL] = {};
          for (int i = 0; i < WORDS * P; i++) {
            const int32_t* pair = x + offset(i / P, i % P);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
              for (int v = 0; v < PANEL; v++)
                products[r][v] = multiply_add(products[r][v], unpacked[i][v], Ints{} + pair[size_t(r) * stride]);
          }
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++) {
            size_t at = size_t(m + r) * group_stride + g;
#pragma GCC unroll 2
            for (int v = 0; v < PANEL; v++)
              totals[(m - m0 + r) * PANEL + v] +=
                  to_floats(products[r][v]) * (load<Floats>(s_w + v * LANES) * scales[at]) +
                  load<Floats>(b_w + v * LANES) * sums[at];
          }
        }
      }
      for (int r = 0; r < rows; r++)
        std::memcpy(y + size_t(m0 + r) * size.N + n0, &totals[r * PANEL], columns * sizeof(float));
    });
  }
};

template <int BITS, int GROUP>
void multiply(const mx::array& x, const mx::array& w, const mx::array& s, const mx::array& b, mx::array& y) {
  int K = x.shape(-1), N = w.shape(-2), M = x.size() / K;
  std::vector<char> copies[3];
  auto words = static_cast<const uint32_t*>(by_rows(w, copies[0]));
  Matrix scales{by_rows(s, copies[1]), s.dtype() == mx::bfloat16};
  Matrix biases{by_rows(b, copies[2]), b.dtype() == mx::bfloat16};
  Product<BITS, GROUP> product({M, N, K, K / GROUP, K * BITS / 32});
  Matrix from{x.data<char>(), x.dtype() == mx::bfloat16};
  int rows = (M + ROWS - 1) / ROWS * ROWS, each = std::max(1, 16384 / K);
  Pool::shared().each((rows + each - 1) / each, [&](int task) {
    for (int m = task * each; m < std::min(rows, (task + 1) * each); m++) {
      int64_t at = m < M ? mx::elem_to_loc(size_t(m) * K, x.shape(), x.strides()) : 0;
      product.round(m, from.from(at), x.strides(-1));
    }
  });
  std::unique_ptr<float[]> wider;
  float* out = y.dtype() == mx::float32 ? y.data<float>() : (wider.reset(new float[y.size()]), wider.get());
  M > 8 ? product.wide(words, scales, biases, out) : product.narrow(words, scales, biases, out);
  if (wider) std::copy(out, out + y.size(), y.data<mx::bfloat16_t>());
}

// Columns of w from `first` on, `columns` of them, whole groups both, as float32 [N, columns].
template <int BITS>
void unpack(const Sizes& size, const uint32_t* w, const Matrix& s, const Matrix& b, int first, int columns, float* to) {
  constexpr int EACH = 32 / BITS;
  int group = size.K / size.groups, rows = std::max(1, 65536 / columns);
  Pool::shared().each((size.N + rows - 1) / rows, [&](int task) {
    for (int n = task * rows; n < std::min(size.N, (task + 1) * rows); n++) {
      const uint32_t* from = w + size_t(n) * size.row_words + first / EACH;
      float* out = to + size_t(n) * columns;
      for (int k = 0; k < columns; k += group) {
        size_t at = size_t(n) * size.groups + (first + k) / group;
        float scale = s.at(at), bias = b.at(at);
        for (int i = 0; i < group / EACH; i++, from++, out += EACH)
          for (int j = 0; j < EACH; j++) out[j] = float(int(*from >> (j * BITS) & ((1 << BITS) - 1))) * scale + bias;
      }
    }
  });
}

// in: dy float32 [..., N], w's words, scales and biases; out: dy · dequantize(w)
template <int BITS>
void multiply_back(const Numbers&, const Arrays& in, Arrays& out) {
  const auto &w = in[1], &s = in[2], &b = in[3];
  auto& d_x = out[0];
  if (d_x.size() == 0) return;
  int N = w.shape(0), K = d_x.shape(-1), M = d_x.size() / K, groups = s.shape(1);
  auto from = in[0].data<float>();
  auto words = w.data<uint32_t>();
  Matrix scales{s.data<void>(), s.dtype() == mx::bfloat16}, biases{b.data<void>(), b.dtype() == mx::bfloat16};
  int group = K / groups, most = std::min(K, std::max(group, UNPACKED / std::max(N, 1) / group * group));
  std::unique_ptr<float[]> block(new float[size_t(N) * most]);
  for (int first = 0; first < K; first += most) {
    int columns = std::min(most, K - first);
    unpack<BITS>({M, N, K, groups, K * BITS / 32}, words, scales, biases, first, columns, block.get());
    cblas_sgemm(101, 111, 111, M, columns, N, 1, from, N, block.get(), columns, 0, d_x.data<float>() + first, K);
  }
}

class QuantizedMatmul : public mx::UnaryPrimitive {
 public:
  QuantizedMatmul(mx::Stream stream, int group_size, int bits)
      : UnaryPrimitive(stream), group_size_(group_size), bits_(bits) {}

  void eval_cpu(const std::vector<mx::array>& inputs, mx::array& out) override {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.size() == 0) return;
    auto four = group_size_ == 32 ? multiply<4, 32> : group_size_ == 64 ? multiply<4, 64> : multiply<4, 128>;
    auto eight = group_size_ == 32 ? multiply<8, 32> : group_size_ == 64 ? multiply<8, 64> : multiply<8, 128>;
    auto weak = mx::array::unsafe_weak_copy;
    mx::cpu::get_command_encoder(stream()).dispatch(
        [run = bits_ == 4 ? four : eight, x = weak(inputs[0]), w = weak(inputs[1]), s = weak(inputs[2]),
         b = weak(inputs[3]), y = weak(out)]() mutable { run(x, w, s, b, y); });
  }

  void eval_gpu(const std::vector<mx::array>&, mx::array&) override { throw std::runtime_error("for CPUs only"); }

  // In x alone, as what trains beside frozen quantized weights needs it.
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals, const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums, const std::vector<mx::array>&) override {
    std::vector<mx::array> gradients;
    for (int i : argnums) {
      if (i != 0) throw std::invalid_argument("no gradient in quantized weights");
      auto d_y = mx::astype(cotangents[0], mx::float32, stream());
      auto d_x = launch(bits_ == 4 ? multiply_back<4> : multiply_back<8>, {}, {d_y, primals[1], primals[2], primals[3]},
                        {primals[0].shape()});
      gradients.push_back(mx::astype(d_x[0], primals[0].dtype(), stream()));
    }
    return gradients;
  }

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals, const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override {
    if (argnums.size() != 1 || argnums[0] != 0) throw std::invalid_argument("no gradient in quantized weights");
    return {apply(tangents[0], primals[1], primals[2], primals[3], group_size_, bits_, stream())};
  }

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override {
    if (axes[1] != -1 || axes[2] != -1 || axes[3] != -1) throw std::invalid_argument("vmap over x alone");
    auto x = mx::moveaxis(inputs[0], axes[0], 0, stream());
    return {{apply(x, inputs[1], inputs[2], inputs[3], group_size_, bits_, stream())}, {0}};
  }

  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    auto shape = inputs[0].shape();
    shape.back() = inputs[1].shape(0);
    return {shape};
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    auto& o = static_cast<const QuantizedMatmul&>(other);
    return group_size_ == o.group_size_ && bits_ == o.bits_;
  }

  const char* name() const override { return "mlxgpt::QuantizedMatmul"; }

  static mx::array apply(const mx::array& x, const mx::array& w, const mx::array& s, const mx::array& b,
                         int group_size, int bits, mx::Stream stream) {
    auto shape = x.shape();
    shape.back() = w.shape(0);
    auto dtype = mx::promote_types(x.dtype(), s.dtype());
    return mx::array(shape, dtype, std::make_shared<QuantizedMatmul>(stream, group_size, bits), {x, w, s, b});
  }

 private:
  int group_size_, bits_;
};

}  // namespace mlxgpt

// Whether QuantizedMatmul has this product; of another MLX says what is wrong.
bool served(const mx::array& x, const mx::array& w, const mx::array& s, const std::optional<mx::array>& b,
            int group_size, int bits) {
  auto real = [](const mx::array& a) { return a.dtype() == mx::float32 || a.dtype() == mx::bfloat16; };
  if (!b || !real(x) || !real(s) || b->dtype() != s.dtype() || w.dtype() != mx::uint32 || (bits != 4 && bits != 8) ||
      (group_size != 32 && group_size != 64 && group_size != 128) || x.ndim() < 1 || w.ndim() != 2)
    return false;
  int K = x.shape(-1), N = w.shape(0);
  mx::Shape groups = {N, K / group_size};
  return K > 0 && K % group_size == 0 && w.shape(1) == K / 32 * bits && s.shape() == groups && b->shape() == groups;
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("quantized_matmul", [](const mx::array& x, const mx::array& w, const mx::array& s,
                                    const std::optional<mx::array>& b, int group_size, int bits) {
    if (!served(x, w, s, b, group_size, bits)) return mx::quantized_matmul(x, w, s, b, true, group_size, bits);
    return mlxgpt::QuantizedMatmul::apply(x, w, s, *b, group_size, bits, mx::default_stream(mx::Device::cpu));
  }, nb::arg("x"), nb::arg("w"), nb::arg("scales"), nb::arg("biases").none(), nb::arg("group_size"), nb::arg("bits"));
}
