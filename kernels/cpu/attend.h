// Attention of one query over keys and values as they lie in a cache.
#pragma once

#include <algorithm>

#include "cpu/operation.h"

namespace mlxgpt {

// y [D] of q [D] over `count` positions, number i of which lies in row slot(i) of keys and values; `scores` has room for
// as many.
template <class Slot>
inline void attend(const float* q, const float* keys, const float* values, int D, int count, const Slot& slot, float scale,
                   float* scores, float* y) {
  for (int i = 0; i < count; i++) {
    const float* key = keys + int64_t(slot(i)) * D;
    Floats product = {};
    vectors(D, [&](int64_t d, int n) { product += read(q + d, n) * read(key + d, n); });
    scores[i] = sum(product) * scale;
  }
  float top = largest(scores, count);
  map(scores, count, [&](Floats s) { return exp(s - top); });
  float total = sum(scores, count);
  constexpr int WIDE = 4 * LANES;
  for (int d = 0; d < D; d += WIDE) {
    Floats sums[4] = {};
    int here = std::min(WIDE, D - d);
    for (int i = 0; i < count; i++) {
      const float* value = values + int64_t(slot(i)) * D + d;
      vectors(here, [&](int64_t at, int n) { sums[at / LANES] += scores[i] * read(value + at, n); });
    }
    vectors(here, [&](int64_t at, int n) { write(y + d + at, sums[at / LANES] / total, n); });
  }
}

}  // namespace mlxgpt
