// Causal attention within a window on a CPU, in float32: forward, and FlashAttention's backward (arXiv 2205.14135,
// appendix B) from a log-sum-exp a query. A task is one head's block of queries over the keys that it sees; its scores
// stay in the cache. The products are MLX's BLAS's.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "cpu/arrays.h"
#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

extern "C" void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                            const float* b, int ldb, float beta, float* c, int ldc);

namespace nb = nanobind;

namespace mlxgpt {

constexpr int BLOCK = 64;  // queries

// An array [B, T, H, D]; a position's numbers lie side by side.
template <class Float>
struct Heads {
  Float* data;
  int64_t batch, position, head;
  std::shared_ptr<std::vector<char>> copy;

  Float* at(int b, int t, int h) const { return data + b * batch + t * position + h * head; }
  int stride() const { return int(position); }
};

inline Heads<const float> heads(const mx::array& a) {
  int64_t T = a.shape(1), H = a.shape(2), D = a.shape(3);
  bool fits = (a.strides(3) == 1 || D == 1) && (T == 1 || (a.strides(1) >= D && a.strides(1) < 1 << 30));
  if (fits) return {a.data<float>(), a.strides(0), T == 1 ? D : a.strides(1), a.strides(2), nullptr};
  auto copy = std::make_shared<std::vector<char>>();
  auto data = static_cast<const float*>(by_rows(a, *copy));
  return {data, T * H * D, H * D, D, copy};
}

inline Heads<float> rows_of(mx::array& a) {
  int64_t T = a.shape(1), H = a.shape(2), D = a.shape(3);
  return {a.data<float>(), T * H * D, H * D, D, nullptr};
}

enum { AS_IS = 111, TRANSPOSED = 112 };

// c [m, n] = alpha · op(a) op(b) + beta · c, by rows
inline void multiply(int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
                     float beta, float* c, int ldc) {
  cblas_sgemm(101, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

struct Shape {
  int B, T, H, D, S, Hkv, window;  // window at least 1
  float scale;

  int blocks() const { return (T + BLOCK - 1) / BLOCK; }
  int first(int query) const { return std::max(0, S - T + query - window + 1); }  // key that a query sees
  int end(int query) const { return S - T + query + 1; }                          // behind the last
};

// A block of queries, the keys from `low` on that any of them sees, and the scores between them.
struct Block {
  int start, rows, low, keys;
  float* scores;  // [rows, keys]

  Block(const Shape& s, int block) {
    start = block * BLOCK;
    rows = std::min(BLOCK, s.T - start);
    low = s.first(start);
    keys = s.end(start + rows - 1) - low;
  }

  // Each row's scores become exp(score - shift(row, scores, count)) where it sees the key, else 0.
  template <class Shift>
  void weigh(const Shape& s, const Shift& shift) const {
    for (int r = 0; r < rows; r++) {
      float* row = scores + size_t(r) * keys;
      int from = s.first(start + r) - low, to = s.end(start + r) - low;
      std::fill(row, row + from, 0.f);
      std::fill(row + to, row + keys, 0.f);
      float by = shift(r, row + from, to - from);
      map(row + from, to - from, [by](Floats x) { return exp(x - by); });
    }
  }
};

inline float* scratch(size_t size) {
  static thread_local std::unique_ptr<float[]> buffer;
  static thread_local size_t capacity = 0;
  if (capacity < size) buffer.reset(new float[size]), capacity = size;
  return buffer.get();
}

void forward(const Shape& s, const mx::array& q_, const mx::array& k_, const mx::array& v_, mx::array& out_,
             mx::array& lse_) {
  auto q = heads(q_), k = heads(k_), v = heads(v_);
  auto out = rows_of(out_);
  float* lse = lse_.data<float>();
  // The longest blocks first: the last to be taken is then a short one.
  Pool::shared().each(s.B * s.H * s.blocks(), [&](int task) {
    Block block(s, s.blocks() - 1 - task / (s.B * s.H));
    int b = task % (s.B * s.H) / s.H, h = task % s.H, g = h / (s.H / s.Hkv);
    block.scores = scratch(size_t(block.rows) * block.keys);
    multiply(AS_IS, TRANSPOSED, block.rows, block.keys, s.D, s.scale, q.at(b, block.start, h), q.stride(),
             k.at(b, block.low, g), k.stride(), 0, block.scores, block.keys);
    float top[BLOCK];
    block.weigh(s, [&](int r, const float* row, int count) { return top[r] = largest(row, count); });
    multiply(AS_IS, AS_IS, block.rows, s.D, block.keys, 1, block.scores, block.keys, v.at(b, block.low, g), v.stride(),
             0, out.at(b, block.start, h), out.stride());
    for (int r = 0; r < block.rows; r++) {
      float total = sum(block.scores + size_t(r) * block.keys, block.keys), share = 1 / total;
      float* row = out.at(b, block.start + r, h);
      for (int d = 0; d < s.D; d++) row[d] *= share;
      lse[(int64_t(b) * s.H + h) * s.T + block.start + r] = top[r] + std::log(total);
    }
  });
}

void backward(const Shape& s, const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto q = heads(inputs[0]), k = heads(inputs[1]), v = heads(inputs[2]), out = heads(inputs[3]);
  auto d_out = heads(inputs[5]);
  const float* lse = inputs[4].data<float>();
  auto d_q = rows_of(outputs[0]), d_k = rows_of(outputs[1]), d_v = rows_of(outputs[2]);
  std::fill_n(outputs[1].data<float>(), outputs[1].size(), 0.f);
  std::fill_n(outputs[2].data<float>(), outputs[2].size(), 0.f);
  int groups = s.H / s.Hkv;
  Pool::shared().each(s.B * s.Hkv, [&](int task) {  // all that adds to the same keys
    int b = task / s.Hkv, g = task % s.Hkv;
    for (int h = g * groups; h < (g + 1) * groups; h++)
      for (int i = 0; i < s.blocks(); i++) {
        Block block(s, i);
        size_t size = size_t(block.rows) * block.keys;
        float *p = scratch(2 * size), *d_s = p + size;
        block.scores = p;
        int start = block.start, low = block.low, rows = block.rows, keys = block.keys;
        multiply(AS_IS, TRANSPOSED, rows, keys, s.D, s.scale, q.at(b, start, h), q.stride(), k.at(b, low, g),
                 k.stride(), 0, p, keys);
        const float* shifts = lse + (int64_t(b) * s.H + h) * s.T + start;
        block.weigh(s, [&](int r, const float*, int) { return shifts[r]; });
        multiply(AS_IS, TRANSPOSED, rows, keys, s.D, 1, d_out.at(b, start, h), d_out.stride(), v.at(b, low, g),
                 v.stride(), 0, d_s, keys);
        for (int r = 0; r < rows; r++) {  // dS = P (dP - rowsum(dO O)) · scale
          const float *o = out.at(b, start + r, h), *d_o = d_out.at(b, start + r, h);
          float delta = 0;
          for (int d = 0; d < s.D; d++) delta += o[d] * d_o[d];
          const float* weights = p + size_t(r) * keys;
          float* row = d_s + size_t(r) * keys;
          for (int j = 0; j < keys; j++) row[j] = weights[j] == 0 ? 0 : weights[j] * (row[j] - delta) * s.scale;
        }
        multiply(TRANSPOSED, AS_IS, keys, s.D, rows, 1, p, keys, d_out.at(b, start, h), d_out.stride(), 1,
                 d_v.at(b, low, g), d_v.stride());
        multiply(TRANSPOSED, AS_IS, keys, s.D, rows, 1, d_s, keys, q.at(b, start, h), q.stride(), 1, d_k.at(b, low, g),
                 d_k.stride());
        multiply(AS_IS, AS_IS, rows, s.D, keys, 1, d_s, keys, k.at(b, low, g), k.stride(), 0, d_q.at(b, start, h),
                 d_q.stride());
      }
  });
}

class Attention : public mx::Primitive {
 public:
  Attention(mx::Stream stream, float scale, int window, bool forwards)
      : Primitive(stream), scale_(scale), window_(window), forwards_(forwards) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    const auto &q = inputs[0], &k = inputs[1];
    Shape s{q.shape(0), q.shape(1), q.shape(2), q.shape(3), k.shape(1), k.shape(2), window_, scale_};
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> in, out;
    for (auto& a : inputs) in.push_back(mx::array::unsafe_weak_copy(a));
    for (auto& a : outputs) out.push_back(mx::array::unsafe_weak_copy(a));
    if (forwards_)
      encoder.dispatch([s, in, out]() mutable { forward(s, in[0], in[1], in[2], out[0], out[1]); });
    else
      encoder.dispatch([s, in, out]() mutable { backward(s, in, out); });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("for CPUs only");
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    auto& its = static_cast<const Attention&>(other);
    return its.scale_ == scale_ && its.window_ == window_ && its.forwards_ == forwards_;
  }

  const char* name() const override { return "mlxgpt::Attention"; }

 private:
  float scale_;
  int window_;
  bool forwards_;
};

std::vector<mx::array> launch(std::vector<mx::array> inputs, std::vector<mx::Shape> shapes, float scale, int window) {
  auto stream = mx::default_stream(mx::Device::cpu);
  if (inputs.size() > 3) inputs[4] = mx::contiguous(inputs[4], false, stream);
  std::vector<mx::Dtype> types(shapes.size(), mx::float32);
  auto primitive = std::make_shared<Attention>(stream, scale, window, inputs.size() == 3);
  return mx::array::make_arrays(std::move(shapes), types, primitive, inputs);
}

}  // namespace mlxgpt

namespace mx = mlx::core;

NB_MODULE(cpu, module) {
  using mlxgpt::launch;
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("forward", [](const mx::array& q, const mx::array& k, const mx::array& v, float scale, int window) {
    auto made = launch({q, k, v}, {q.shape(), {q.shape(0), q.shape(2), q.shape(1)}}, scale, window);
    return std::pair(made[0], made[1]);
  });
  module.def("backward", [](const mx::array& q, const mx::array& k, const mx::array& v, const mx::array& out,
                            const mx::array& lse, const mx::array& d_out, float scale, int window) {
    auto made = launch({q, k, v, out, lse, d_out}, {q.shape(), k.shape(), v.shape()}, scale, window);
    return std::tuple(made[0], made[1], made[2]);
  });
}
