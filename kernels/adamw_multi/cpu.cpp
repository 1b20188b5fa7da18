// The global norm of gradients and AdamW over many tensors on a CPU, in float32: a piece of a tensor a task.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cmath>

#include "cpu/operation.h"

namespace nb = nanobind;
using namespace mlxgpt;

constexpr int64_t PIECE = 1 << 14;  // numbers

// work(tensor, first, count) for every piece of the tensors of these sizes; pieces are numbered by `piece`.
template <class Work>
static void pieces(const std::vector<int64_t>& sizes, const Work& work) {
  std::vector<int64_t> starts{0};
  for (auto size : sizes) starts.push_back(starts.back() + (size + PIECE - 1) / PIECE);
  Pool::shared().each(int(starts.back()), [&](int piece) {
    int tensor = int(std::upper_bound(starts.begin(), starts.end(), piece) - starts.begin()) - 1;
    int64_t first = (piece - starts[tensor]) * PIECE;
    work(piece, tensor, first, std::min(PIECE, sizes[tensor] - first));
  });
}

static void norm(const Numbers&, const Arrays& in, Arrays& out) {
  std::vector<int64_t> sizes;
  int64_t count = 0;
  for (auto& a : in) sizes.push_back(a.size()), count += (sizes.back() + PIECE - 1) / PIECE;
  std::vector<double> sums(count);
  pieces(sizes, [&](int piece, int tensor, int64_t first, int64_t n) {
    const float* g = in[tensor].data<float>() + first;
    Floats total = {};
    vectors(n, [&](int64_t i, int some) {
      Floats x = read(g + i, some);
      total += x * x;
    });
    sums[piece] = sum(total);
  });
  double total = 0;
  for (double s : sums) total += s;
  *out[0].data<float>() = float(std::sqrt(total));
}

// in: parameters, first moments, second moments, gradients, and the settings of op.py; out: the first three after.
static void adamw(const Numbers&, const Arrays& in, Arrays& out) {
  int n = int(in.size() - 1) / 4;
  const float* s = in.back().data<float>();
  float factor = s[0], beta1 = s[1], rest1 = s[2], beta2 = s[3], rest2 = s[4], c1 = s[5], c2 = s[6], eps = s[7];
  float shrink = s[8];
  std::vector<int64_t> sizes;
  for (int i = 0; i < n; i++) sizes.push_back(in[i].size());
  pieces(sizes, [&](int, int tensor, int64_t first, int64_t count) {
    auto from = [&](int group) { return in[group * n + tensor].data<float>() + first; };
    auto to = [&](int group) { return out[group * n + tensor].data<float>() + first; };
    const float *p = from(0), *m = from(1), *v = from(2), *g = from(3);
    float *new_p = to(0), *new_m = to(1), *new_v = to(2);
    vectors(count, [&](int64_t i, int some) {
      Floats gradient = read(g + i, some) * factor;
      Floats first_moment = beta1 * read(m + i, some) + rest1 * gradient;
      Floats second_moment = beta2 * read(v + i, some) + rest2 * gradient * gradient;
      Floats root;
      for (int lane = 0; lane < LANES; lane++) root[lane] = std::sqrt(second_moment[lane]);
      write(new_m + i, first_moment, some);
      write(new_v + i, second_moment, some);
      write(new_p + i, read(p + i, some) * shrink - c1 * first_moment / (root * c2 + eps), some);
    });
  });
}

NB_MODULE(cpu, module) {
  module.def("check", [](const mx::array&) {});  // raises TypeError where mlx's arrays are another nanobind's
  module.def("norm", [](const Arrays& gradients) { return launch(norm, {}, gradients, {mx::Shape{}})[0]; });
  module.def("adamw", [](const Arrays& state, const Arrays& gradients, const mx::array& settings) {
    Arrays in(state);  // parameters, then first moments, then second moments
    in.insert(in.end(), gradients.begin(), gradients.end());
    in.push_back(settings);
    std::vector<mx::Shape> shapes;
    for (auto& a : state) shapes.push_back(a.shape());
    return launch(adamw, {}, in, shapes, int(state.size()));
  }, nb::arg("state"), nb::arg("gradients"), nb::arg("settings"));
}
