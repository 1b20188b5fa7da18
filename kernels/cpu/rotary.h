// Rotary positions (arXiv 2104.09864): number i of a head is paired with i + D / 2.
#pragma once

#include <cmath>

#include "cpu/operation.h"

namespace mlxgpt {

// Cosines and then sines of a position's angles, `half` each; the sines times `direction`.
inline void angles(float position, double base, int half, float direction, float* to) {
  float step = float(std::log(base) / half);
  for (int i = 0; i < half; i++) {
    float theta = position * std::exp(-float(i) * step);
    to[i] = std::cos(theta);
    to[half + i] = std::sin(theta) * direction;
  }
}

// A head turned by a position's angles; where it is, if the two are the same.
inline void turn(const float* from, const float* angles, int half, float* to) {
  vectors(half, [&](int64_t i, int count) {
    Floats a = read(from + i, count), b = read(from + half + i, count);
    Floats c = read(angles + i, count), s = read(angles + half + i, count);
    write(to + i, a * c - b * s, count);
    write(to + half + i, b * c + a * s, count);
  });
}

}  // namespace mlxgpt
