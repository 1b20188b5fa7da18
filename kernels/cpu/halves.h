// A few rows of x by the rows of a matrix of bfloat16, added up in float32.
//
// A word of 32 bits holds two of w's row. With AVX512-BF16 it meets two of x, also of bfloat16, in one instruction: a
// float32 x is taken apart into the nearest bfloat16 and the rest, to 2⁻¹⁷ of itself, or rounded alone (TERMS = 1). Else
// x meets it widened to two vectors.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/vectors.h"

namespace mlxgpt {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
constexpr bool PAIRED = true;
#else
constexpr bool PAIRED = false;
#endif

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

// M rows of K = 2 · words numbers each, M few.
template <int TERMS>
struct HalfProduct {
  int M, words, stride;
  std::unique_ptr<int32_t[]> terms;

  HalfProduct(int M, int words) : M(M), words(words) {
    stride = (words + LANES - 1) / LANES * LANES * TERMS + 16;  // not a power of two: see quantized_matmul
    terms.reset(new int32_t[size_t(M + 3) / 4 * 4 * stride]());
  }

  // Row m of x; read(k) is its k-th number.
  template <class Read>
  void round(int m, const Read& read) {
    int32_t* to = &terms[size_t(m) * stride];
    for (int i = 0; i < words; i++)
      pack<TERMS>(read(2 * i), read(2 * i + 1), to + i / LANES * TERMS * LANES + i % LANES, LANES);
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

  // y[:, first to last - 1], y [M, N]: every row of w is read once, in the order of memory.
  void columns(int first, int last, const uint32_t* w, int N, float* y) const {
    for (int n = first; n < last; n++)
      for (int m = 0; m < M; m += 4) {
        float out[4];
        const uint32_t* row = w + size_t(n) * words;
        int count = std::min(4, M - m);
        if (count == 1) dot<1>(m, row, out);
        else if (count == 2) dot<2>(m, row, out);
        else dot<4>(m, row, out);
        for (int r = 0; r < count; r++) y[size_t(m + r) * N + n] = out[r];
      }
  }
};

}  // namespace mlxgpt
