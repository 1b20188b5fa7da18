// Muon over many matrices on a CPU, in float32: a matrix is one thread's work from its momentum to its update.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "cpu/operation.h"

namespace nb = nanobind;
using namespace mlxgpt;

// As mlxgpt/blas.c or, without it, MLX's own BLAS defines it: all by the thread that asks, where a pool is at work.
extern "C" void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                            const float* b, int ldb, float beta, float* c, int ldc);

// C = alpha op(A) op(B) + beta C, by rows
static void product(bool ta, bool tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
                    float beta, float* c, int ldc) {
  cblas_sgemm(101, ta ? 112 : 111, tb ? 112 : 111, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

struct Settings {
  float momentum, decay;
  int parts;
  float a, b, c;
  int steps;
};

static Settings settings(const Numbers& n) {
  return {float(n[0]), float(n[1]), int(n[2]), float(n[3]), float(n[4]), float(n[5]), int(n[6])};
}

// x [M, N] by Newton and Schulz's iteration, whose squares are of the smaller side; returns where the result is: x or y.
static float* orthogonalized(const Settings& s, int M, int N, float* x, float* y) {
  bool tall = M > N;
  int side = std::min(M, N);
  size_t size = size_t(M) * N, area = size_t(side) * side;
  double total = 0;
  vectors(size, [&](int64_t i, int some) {
    Floats v = read(x + i, some);
    total += sum(v * v);
  });
  float shrink = 1 / (float(std::sqrt(total)) + 1e-7f);
  vectors(size, [&](int64_t i, int some) { write(x + i, read(x + i, some) * shrink, some); });
  std::unique_ptr<float[]> square(new float[2 * area]);
  float* both = square.get() + area;
  for (int step = 0; step < s.steps; step++) {
    product(tall, !tall, side, side, tall ? M : N, 1, x, N, x, N, 0, square.get(), side);
    std::copy_n(square.get(), area, both);
    product(false, false, side, side, side, s.c, square.get(), side, square.get(), side, s.b, both, side);
    std::copy_n(x, size, y);
    if (tall) product(false, false, M, N, N, 1, x, N, both, N, s.a, y, N);
    else product(false, false, M, N, M, 1, both, M, x, N, s.a, y, N);
    std::swap(x, y);
  }
  return x;
}

// in: parameters, momenta, gradients, and the rate; out: the first two after.
static void muon(const Numbers& numbers, const Arrays& in, Arrays& out) {
  Settings s = settings(numbers);
  int n = int(in.size() - 1) / 3;
  float rate = *in.back().data<float>(), rest = 1 - s.momentum;
  std::vector<int> order(n * s.parts);
  for (int i = 0; i < int(order.size()); i++) order[i] = i;
  std::stable_sort(order.begin(), order.end(),  // the largest first: the last to end is then a small one
                   [&](int i, int j) { return in[i / s.parts].size() > in[j / s.parts].size(); });
  Pool::shared().each(int(order.size()), [&](int task) {
    int tensor = order[task] / s.parts, M = in[tensor].shape(0) / s.parts, N = in[tensor].shape(1);
    int64_t size = int64_t(M) * N, first = order[task] % s.parts * size;
    auto from = [&](int group) { return in[group * n + tensor].data<float>() + first; };
    auto to = [&](int group) { return out[group * n + tensor].data<float>() + first; };
    const float *p = from(0), *m = from(1), *g = from(2);
    float *new_p = to(0), *new_m = to(1);
    std::unique_ptr<float[]> spaces(new float[2 * size]);
    vectors(size, [&](int64_t i, int some) {
      Floats gradient = read(g + i, some), after = s.momentum * read(m + i, some) + rest * gradient;
      write(new_m + i, after, some);
      write(spaces.get() + i, s.momentum * after + rest * gradient, some);
    });
    const float* x = orthogonalized(s, M, N, spaces.get(), spaces.get() + size);
    float keep = 1 - rate * s.decay, scale = rate * std::sqrt(std::max(1.0f, float(M) / N));
    vectors(size, [&](int64_t i, int some) { write(new_p + i, read(p + i, some) * keep - scale * read(x + i, some), some); });
  });
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("muon", [](const Arrays& state, const Arrays& gradients, const mx::array& rate, const Numbers& numbers) {
    Arrays in(state);  // parameters, then momenta
    in.insert(in.end(), gradients.begin(), gradients.end());
    in.push_back(rate);
    std::vector<mx::Shape> shapes;
    for (auto& a : state) shapes.push_back(a.shape());
    return launch(muon, numbers, in, shapes, int(state.size()));
  }, nb::arg("state"), nb::arg("gradients"), nb::arg("rate"), nb::arg("numbers"));
}
