// A layer of a decoder of Mistral's shape (arXiv 2310.06825) over a few tokens of one sequence, in float32:
//   x += o(attention(rope(q(norm(x))), cache)), then x += down(silu(gate(norm(x))) · up(norm(x)))
// What a decoding step waits for is its weights: each matrix is read once, in pieces by whoever is free, and all between
// two of them is small and done by the caller. As nodes of MLX's graph, of some 10 µs each, it would cost more than the
// products of a small model; and an array of MLX's that a waiting node still holds is copied when it is written to.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <utility>

#include "cpu/attend.h"
#include "cpu/halves.h"
#include "cpu/norm.h"
#include "cpu/quantized.h"
#include "cpu/rotary.h"

namespace nb = nanobind;
using namespace mlxgpt;

struct Weights {
  const mx::array *w, *scales, *biases;
  int bits, group;  // 32: float32, 16: bfloat16, else MLX's affine, quantized in groups

  int rows() const { return w->shape(0); }
};

// Some rows of float32, as the weights that they meet take them.
struct Left {
  virtual ~Left() = default;
  // Columns first to last - 1 of y [M, N], the product with N rows of w.
  virtual void columns(const Weights& w, int first, int last, float* y) const = 0;
};

struct FloatLeft : Left {
  const float* x;
  int M, K;

  FloatLeft(const float* x, int M, int K) : x(x), M(M), K(K) {}

  // In the order of memory: rows side by side would each begin a stream that ends before it is foreseen.
  void columns(const Weights& w, int first, int last, float* y) const override {
    for (int n = first; n < last; n++) {
      const float* row = w.w->data<float>() + int64_t(n) * K;
      for (int m = 0; m < M; m++) y[int64_t(m) * w.rows() + n] = dot(row, x + int64_t(m) * K);
    }
  }

  float dot(const float* a, const float* b) const {
    Floats sums[4] = {};
    int i = 0;
    for (; i + 4 * LANES <= K; i += 4 * LANES)
      for (int j = 0; j < 4; j++) sums[j] += load<Floats>(a + i + j * LANES) * load<Floats>(b + i + j * LANES);
    vectors(K - i, [&](int64_t j, int count) { sums[0] += read(a + i + j, count) * read(b + i + j, count); });
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
};

struct HalfLeft : Left {
  HalfProduct<2> product;

  HalfLeft(const float* x, int M, int K) : product(M, K / 2) {
    for (int m = 0; m < M; m++) product.round(m, [row = x + int64_t(m) * K](int k) { return row[k]; });
  }

  void columns(const Weights& w, int first, int last, float* y) const override {
    product.columns(first, last, w.w->data<uint32_t>(), w.rows(), y);
  }
};

template <int BITS, int GROUP>
struct QuantizedLeft : Left {
  quantized::Product<BITS, GROUP> product;

  QuantizedLeft(const float* x, int M, int K) : product({M, K / GROUP, K * BITS / 32}) {
    for (int m = 0; m < (M + 3) / 4 * 4; m++) product.round(m, {x + int64_t(m) * K, false}, 1);
  }

  void columns(const Weights& w, int first, int last, float* y) const override {
    bool half = w.scales->dtype() == mx::bfloat16;
    product.columns(first, last, {w.w->data<uint32_t>(), {w.scales->data<void>(), half}, {w.biases->data<void>(), half},
                                  w.rows()}, y);
  }
};

template <class Made>
static std::unique_ptr<Left> make(const float* x, int M, int K) {
  return std::make_unique<Made>(x, M, K);
}

static std::unique_ptr<Left> left(const Weights& w, const float* x, int M, int K) {
  if (w.bits == 32) return make<FloatLeft>(x, M, K);
  if (w.bits == 16) return make<HalfLeft>(x, M, K);
  if (w.bits == 4)
    return w.group == 32 ? make<QuantizedLeft<4, 32>>(x, M, K)
         : w.group == 64 ? make<QuantizedLeft<4, 64>>(x, M, K) : make<QuantizedLeft<4, 128>>(x, M, K);
  return w.group == 32 ? make<QuantizedLeft<8, 32>>(x, M, K)
       : w.group == 64 ? make<QuantizedLeft<8, 64>>(x, M, K) : make<QuantizedLeft<8, 128>>(x, M, K);
}

using Parts = std::vector<std::pair<const Weights*, float*>>;

// Each y [M, N] = x [M, K] · wᵀ, all in one go; then finish(part, first, last) of the columns that are there.
template <class Finish>
static void multiply(const float* x, int M, int K, const Parts& parts, const Finish& finish) {
  std::vector<std::unique_ptr<Left>> made;
  std::vector<const Left*> lefts;
  std::vector<int> ends, rows;
  for (size_t i = 0; i < parts.size(); i++) {
    auto& w = *parts[i].first;
    const Left* same = nullptr;
    for (size_t j = 0; j < i; j++)
      if (parts[j].first->bits == w.bits && parts[j].first->group == w.group) same = lefts[j];
    if (!same) same = (made.push_back(left(w, x, M, K)), made.back().get());
    lefts.push_back(same);
    rows.push_back(rows_a_piece(w.rows(), K * w.bits / 8));
    ends.push_back((ends.empty() ? 0 : ends.back()) + (w.rows() + rows[i] - 1) / rows[i]);
  }
  Pool::shared().each(ends.back(), [&](int piece) {
    size_t i = 0;
    while (piece >= ends[i]) i++;
    int first = (piece - (i ? ends[i - 1] : 0)) * rows[i], last = std::min(first + rows[i], parts[i].first->rows());
    lefts[i]->columns(*parts[i].first, first, last, parts[i].second);
    finish(int(i), first, last);
  });
}

static void multiply(const float* x, int M, int K, const Parts& parts) { multiply(x, M, K, parts, [](int, int, int) {}); }

// RMSNorm of rows of n numbers.
static void normalize(const float* x, int rows, int n, const float* weight, float eps, float* to) {
  for (int64_t at = 0; at < int64_t(rows) * n; at += n) normalize(x + at, n, false, eps, weight, nullptr, to + at);
}

static void add(float* x, const float* change, int64_t n) {
  vectors(n, [&](int64_t i, int count) { write(x + i, read(x + i, count) + read(change + i, count), count); });
}

enum { KEYS, VALUES, POSITION, X, FIRST_NORM, SECOND_NORM, QUERY_NORM, KEY_NORM };

// in: keys and values [1, Hkv, S, D], the first token's position, x [1, T, C], the norms' weights, and those of q, k, v,
// o, gate, up and down; out: x after the layer. The new keys and values are written into the memory of the old.
static void compute(const Numbers& numbers, const Arrays& in, Arrays& out) {
  int D = int(numbers[0]), window = int(numbers[3]);
  float scale = float(numbers[2]), eps = float(numbers[4]);
  bool normed_heads = numbers[5] != 0;
  Weights w[7];
  size_t next = normed_heads ? KEY_NORM + 1 : SECOND_NORM + 1;
  for (int i = 0; i < 7; i++) {
    int bits = int(numbers[6 + 2 * i]);
    w[i] = {&in[next], bits < 16 ? &in[next + 1] : nullptr, bits < 16 ? &in[next + 2] : nullptr, bits,
            int(numbers[7 + 2 * i])};
    next += bits < 16 ? 3 : 1;
  }
  int T = in[X].shape(1), C = in[X].shape(2), kv = in[KEYS].shape(1), S = in[KEYS].shape(2);
  int H = w[0].rows() / D, wide = w[4].rows(), position = in[POSITION].data<int32_t>()[0];
  float* x = out[0].data<float>();
  float *keys = const_cast<float*>(in[KEYS].data<float>()), *values = const_cast<float*>(in[VALUES].data<float>());
  std::copy_n(in[X].data<float>(), out[0].size(), x);

  std::vector<float> normed(size_t(T) * C), change(size_t(T) * C), q(size_t(T) * H * D), k(size_t(T) * kv * D), v(k.size());
  std::vector<float> mixed(q.size()), gate(size_t(T) * wide), up(gate.size()), table(size_t(T) * D);
  normalize(x, T, C, in[FIRST_NORM].data<float>(), eps, normed.data());
  multiply(normed.data(), T, C, {{&w[0], q.data()}, {&w[1], k.data()}, {&w[2], v.data()}});
  if (normed_heads) {
    normalize(q.data(), T * H, D, in[QUERY_NORM].data<float>(), eps, q.data());
    normalize(k.data(), T * kv, D, in[KEY_NORM].data<float>(), eps, k.data());
  }
  for (int t = 0; t < T; t++) {
    float* table_row = &table[size_t(t) * D];
    angles(float(position + t), numbers[1], D / 2, 1, table_row);
    for (int h = 0; h < H; h++) turn(&q[(size_t(t) * H + h) * D], table_row, D / 2, &q[(size_t(t) * H + h) * D]);
    for (int h = 0; h < kv; h++) {
      int64_t at = (int64_t(h) * S + (position + t) % S) * D;
      turn(&k[(size_t(t) * kv + h) * D], table_row, D / 2, keys + at);
      std::copy_n(&v[(size_t(t) * kv + h) * D], D, values + at);
    }
  }
  auto seen_from = [&](int t) { return window ? std::max(0, position + t - window + 1) : 0; };
  int most = position + T - seen_from(0);
  std::vector<float> scores(size_t(H) * most);
  auto head = [&](int h) {
    const float *its_keys = keys + int64_t(h / (H / kv)) * S * D, *its_values = values + int64_t(h / (H / kv)) * S * D;
    for (int t = 0; t < T; t++) {
      size_t at = (size_t(t) * H + h) * D;
      int low = seen_from(t), count = position + t - low + 1;
      auto slot = [&](int i) { return (low + i) % S; };
      attend(&q[at], its_keys, its_values, D, count, slot, scale, &scores[size_t(h) * most], &mixed[at]);
    }
  };
  bool small = int64_t(H) * T * most * D < 1 << 15;  // less than waking another thread costs
  if (small) for (int h = 0; h < H; h++) head(h);
  else Pool::shared().each(H, head);
  multiply(mixed.data(), T, H * D, {{&w[3], change.data()}});
  add(x, change.data(), int64_t(T) * C);

  normalize(x, T, C, in[SECOND_NORM].data<float>(), eps, normed.data());
  multiply(normed.data(), T, C, {{&w[4], gate.data()}, {&w[5], up.data()}});
  vectors(int64_t(T) * wide, [&](int64_t i, int count) {
    Floats g = read(&gate[i], count);
    write(&gate[i], g / (1.f + exp(-g)) * read(&up[i], count), count);
  });
  multiply(gate.data(), T, wide, {{&w[6], change.data()}});
  add(x, change.data(), int64_t(T) * C);
}

class Layer : public Operation {
 public:
  Layer(mx::Stream stream, Numbers numbers) : Operation(stream, compute, std::move(numbers), 0) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    for (int i : {KEYS, VALUES})
      if (!inputs[i].flags().row_contiguous) throw std::runtime_error("decoder_layer: the cache must be rows in memory");
    Operation::eval_cpu(inputs, outputs);
  }
};

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  // Inputs and numbers as `compute` has them; x after the layer, and the same keys and values for who comes later.
  module.def("layer", [](const std::vector<mx::array>& inputs, const std::vector<double>& numbers) {
    auto stream = mx::default_stream(mx::Device::cpu);
    Arrays in(inputs.begin(), inputs.end());
    for (size_t i = POSITION; i < in.size(); i++) in[i] = in_rows(in[i], stream);
    mx::array x(in[X].shape(), mx::float32, std::make_shared<Layer>(stream, numbers), in);
    auto kept = mx::depends({in[KEYS], in[VALUES]}, {x});
    return std::vector<mx::array>{x, kept[0], kept[1]};
  });
}
