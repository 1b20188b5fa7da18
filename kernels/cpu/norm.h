// RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) of a row.
#pragma once

#include <cmath>

#include "cpu/operation.h"

namespace mlxgpt {

// A row's mean (0 for RMSNorm) and one over its deviation from that.
inline void moments(const float* x, int n, bool centered, float eps, float* mean, float* scale) {
  Floats total = {}, squares = {};
  *mean = 0;
  if (centered) {
    vectors(n, [&](int64_t i, int count) { total += read(x + i, count); });
    *mean = sum(total) / n;
  }
  vectors(n, [&](int64_t i, int count) {
    Floats d = count == LANES ? load<Floats>(x + i) - *mean : load_first(x + i, count, *mean) - *mean;
    squares += d * d;
  });
  *scale = 1 / std::sqrt(sum(squares) / n + eps);
}

// A row's norm, LayerNorm if `centered`; where it is, if the two are the same. `bias` may be null.
inline void normalize(const float* x, int n, bool centered, float eps, const float* weight, const float* bias, float* to) {
  float mean, scale;
  moments(x, n, centered, eps, &mean, &scale);
  vectors(n, [&](int64_t i, int count) {
    Floats y = (read(x + i, count) - mean) * scale * read(weight + i, count);
    write(to + i, bias ? y + read(bias + i, count) : y, count);
  });
}

}  // namespace mlxgpt
