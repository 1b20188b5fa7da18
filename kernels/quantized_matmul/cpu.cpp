// x · dequantize(w)ᵀ on a CPU, for MLX's affine weights of 4 and 8 bits (cpu/quantized.h).
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
#include "cpu/quantized.h"
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

using namespace quantized;

constexpr int UNPACKED = 1 << 23;  // weights that the gradient holds in float32 at a time: 32 MiB

template <int BITS, int GROUP>
void multiply(const mx::array& x, const mx::array& w, const mx::array& s, const mx::array& b, mx::array& y) {
  int K = x.shape(-1), N = w.shape(-2), M = x.size() / K;
  std::vector<char> copies[3];
  auto words = static_cast<const uint32_t*>(by_rows(w, copies[0]));
  Packed packed{words, {by_rows(s, copies[1]), s.dtype() == mx::bfloat16},
                {by_rows(b, copies[2]), b.dtype() == mx::bfloat16}, N};
  Product<BITS, GROUP> product({M, K / GROUP, K * BITS / 32});
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
  if (M > 8) product.wide(packed, out);
  else in_pieces(N, K * BITS / 8, [&](int first, int last) { product.columns(first, last, packed, out); });
  if (wider) std::copy(out, out + y.size(), y.data<mx::bfloat16_t>());
}

// Columns of w from `first` on, `columns` of them, whole groups both, as float32 [N, columns].
template <int BITS>
void unpack(const Sizes& size, int N, const uint32_t* w, const Matrix& s, const Matrix& b, int first, int columns, float* to) {
  constexpr int EACH = 32 / BITS;
  int group = size.row_words * EACH / size.groups, rows = std::max(1, 65536 / columns);
  Pool::shared().each((N + rows - 1) / rows, [&](int task) {
    for (int n = task * rows; n < std::min(N, (task + 1) * rows); n++) {
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
    unpack<BITS>({M, groups, K * BITS / 32}, N, words, scales, biases, first, columns, block.get());
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
