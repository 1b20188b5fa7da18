// C = A · B on AVX512-BF16: A and B of float32 or bfloat16, taken as bfloat16, added up in float32.
//
// A word of 32 bits holds two neighbours in depth. Eight rows of A meet three vectors of B's columns in registers (the
// scheme of Goto and van de Geijn, ACM TOMS 34, 2008): A is made words once, in rows or in panels of eight; a panel of
// B's columns is made words by whoever multiplies with it, DEPTH words at a time, and stays in the first cache.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/pool.h"
#include "cpu/vectors.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)

namespace mlxgpt::gemm {

constexpr int ROWS = 8, VECTORS = 3, COLUMNS = VECTORS * LANES, DEPTH = 256;  // DEPTH words of 48 columns: 48 KiB

// Rows one after the other in memory, of `columns` numbers each.
struct Matrix {
  const void* data;
  int rows, columns;
  bool half;

  const uint16_t* halves(int row, int column) const {
    return static_cast<const uint16_t*>(data) + size_t(row) * columns + column;
  }
  const float* floats(int row, int column) const {
    return static_cast<const float*>(data) + size_t(row) * columns + column;
  }
};

inline __mmask16 first(int count) { return count >= 16 ? 0xffff : count > 0 ? (1u << count) - 1 : 0; }

inline __mmask32 first_halves(int count) { return count >= 32 ? ~0u : count > 0 ? (1u << count) - 1 : 0; }

inline Words rounded(__m512 low, __m512 high) { return (Words)_mm512_cvtne2ps_pbh(high, low); }

// What rounding `value` to bfloat16 leaves; 0 where that is not finite.
inline __m512 left(__m512 value, Words as_half) {
  __m512i whole = (__m512i)(as_half << 16), exponent = _mm512_set1_epi32(0x7f800000);
  __mmask16 finite = _mm512_cmpneq_epi32_mask(_mm512_and_si512(whole, exponent), exponent);
  return _mm512_maskz_sub_ps(finite, value, (__m512)whole);
}

// 16 words of a row's neighbours from `column` on, zeros past its end; and in `rest` what the rounding left.
template <bool REST = false>
inline Words neighbours(const Matrix& m, int row, int column, Words* rest = nullptr) {
  int count = m.columns - column;
  if (m.half) {
    if (REST) *rest = Words{};
    return (Words)_mm512_maskz_loadu_epi16(first_halves(count), m.halves(row, column));
  }
  const float* p = m.floats(row, column);
  __m512 low = _mm512_maskz_loadu_ps(first(count), p), high = _mm512_maskz_loadu_ps(first(count - 16), p + 16);
  Words words = rounded(low, high);
  if (REST) {
    auto half = [&](int i) {
      return (Words)_mm512_cvtepu16_epi32(i ? _mm512_extracti64x4_epi64((__m512i)words, 1)
                                            : _mm512_castsi512_si256((__m512i)words));
    };
    *rest = rounded(left(low, half(0)), left(high, half(1)));
  }
  return words;
}

// Words of rows `row` and the next, 16 columns from `column` on; zeros past the ends.
inline Words stacked(const Matrix& m, int row, int column) {
  int count = m.columns - column, next = row + 1 < m.rows ? count : 0;
  if (m.half) {
    auto read = [&](int r, int count) {
      return _mm512_cvtepu16_epi32(
          _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(first(count), m.halves(r, column))));
    };
    return (Words)_mm512_or_si512(read(row, count), _mm512_slli_epi32(read(next ? row + 1 : row, next), 16));
  }
  Words words = rounded(_mm512_maskz_loadu_ps(first(count), m.floats(row, column)),
                        _mm512_maskz_loadu_ps(first(next), m.floats(next ? row + 1 : row, column)));
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Words)_mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)words);
}

// r[i] lane j <-> r[j] lane i
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; c++) {  // r[4i + c] holds rows 4i to 4i + 3 of the columns c, 4 + c, 8 + c and 12 + c
    __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    __m512i d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88), e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
    t[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
  std::copy(t, t + 16, r);
}

// The left factor as words: TERMS of each number, the second what the first leaves.
template <int TERMS>
struct Left {
  int rows, words, stride;
  bool in_rows;
  std::unique_ptr<uint32_t[]> data;

  // m, or with `across` its transpose.
  Left(const Matrix& m, bool across) : in_rows(!across) {
    rows = across ? m.columns : m.rows;
    words = ((across ? m.rows : m.columns) + 1) / 2;
    stride = (words + LANES - 1) / LANES * LANES + LANES / 2;  // a multiple of eight, and no power of two
    data.reset(new uint32_t[(size_t(rows) + 15) / 16 * 16 * stride * TERMS]);
    int each = std::max(1, (1 << 14) / std::max(1, words));
    if (in_rows) {
      Pool::shared().each((rows + each - 1) / each, [&](int task) {
        for (int row = task * each; row < std::min(rows, (task + 1) * each); row++)
          for (int k = 0; k < words; k += LANES) {
            Words rest;
            store(at(row, k), neighbours<TERMS == 2>(m, row, 2 * k, &rest));
            if (TERMS == 2) store(at(row, k) + step(), rest);
          }
      });
    } else {  // in panels of eight rows, which two of 16 lanes' halves make
      Pool::shared().each((words + 31) / 32, [&](int task) {
        for (int row = 0; row < rows; row += 16)
          for (int k = task * 32; k < std::min(words, task * 32 + 32); k++) {
            __m512i both = (__m512i)stacked(m, 2 * k, row);
            _mm256_storeu_si256((__m256i*)at(row, k), _mm512_castsi512_si256(both));
            _mm256_storeu_si256((__m256i*)at(row + ROWS, k), _mm512_extracti64x4_epi64(both, 1));
          }
      });
    }
  }

  size_t step() const { return (size_t(rows) + 15) / 16 * 16 * stride; }  // from a first term to its second

  uint32_t* at(int row, int k) const {
    return &data[in_rows ? size_t(row) * stride + k : size_t(row) * stride + size_t(k) * ROWS];
  }
};

// Eight rows by V vectors of columns, `depth` words deep, added to c (of N columns), or with `fresh` instead of it; its
// rows from `count` on and its columns from `columns` on are not there.
template <int TERMS, bool IN_ROWS, int V>
inline void tile(const uint32_t* a, size_t stride, size_t step, const uint32_t* b, int depth, float* c, int N, int count,
                 int columns, bool fresh) {
  __m512 sums[ROWS][V];
  auto each = [&](auto&& work) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
      for (int v = 0; v < V; v++)
        work(sums[r][v], c + size_t(r) * N + v * LANES, r < count ? first(columns - v * LANES) : __mmask16(0));
  };
  if (fresh) each([](__m512& sum, float*, __mmask16) { sum = _mm512_setzero_ps(); });
  else each([](__m512& sum, float* p, __mmask16 m) { sum = _mm512_maskz_loadu_ps(m, p); });
  for (int k = 0; k < depth; k++) {
    __m512bh right[V];
#pragma GCC unroll 3
    for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_load_si512(b + k * COLUMNS + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int t = 0; t < TERMS; t++) {
        auto word = (__m512bh)_mm512_set1_epi32(a[(IN_ROWS ? r * stride + k : size_t(k) * ROWS + r) + t * step]);
#pragma GCC unroll 3
        for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], word, right[v]);
      }
  }
  each([](__m512& sum, float* p, __mmask16 m) { _mm512_mask_storeu_ps(p, m, sum); });
}

// Words of COLUMNS columns of b, or with `across` rows, from `column` on: `depth` of them from word k on.
inline void panel(const Matrix& b, bool across, int column, int k, int depth, uint32_t* to) {
  if (!across) {
    for (int i = 0; i < depth; i++)
      for (int v = 0; v < VECTORS; v++)
        store(to + i * COLUMNS + v * LANES, stacked(b, 2 * (k + i), std::min(b.columns, column + v * LANES)));
    return;
  }
  for (int v = 0; v < VECTORS; v++)
    for (int i = 0; i < depth; i += LANES) {
      __m512i words[16];
      for (int c = 0; c < 16; c++) {
        int row = column + v * LANES + c;
        words[c] = row < b.rows ? (__m512i)neighbours(b, row, 2 * (k + i)) : _mm512_setzero_si512();
      }
      transpose(words);
      for (int j = 0; j < std::min(LANES, depth - i); j++) store(to + (i + j) * COLUMNS + v * LANES, words[j]);
    }
}

// c [rows of a, N] = a · b, b of N columns, or with `across` N rows.
template <int TERMS, bool IN_ROWS>
void multiply(const Left<TERMS>& a, const Matrix& b, bool across, int N, float* c) {
  int panels = (N + COLUMNS - 1) / COLUMNS, wanted = 4 * Pool::shared().threads();
  int chunks = std::min((wanted + panels - 1) / panels, (a.rows + 63) / 64);
  int each = ((a.rows + chunks - 1) / chunks + ROWS - 1) / ROWS * ROWS;
  Pool::shared().each(panels * chunks, [&](int task) {
    int column = task / chunks * COLUMNS, start = task % chunks * each, end = std::min(a.rows, start + each);
    int columns = std::min(COLUMNS, N - column);
    alignas(64) uint32_t words[DEPTH * COLUMNS];
    for (int k = 0; k < a.words; k += DEPTH) {
      int depth = std::min(DEPTH, a.words - k);
      panel(b, across, column, k, depth, words);
      auto rows = [&](auto run) {
        for (int row = start; row < end; row += ROWS)
          run(a.at(row, k), a.stride, a.step(), words, depth, c + size_t(row) * N + column, N, end - row, columns, k == 0);
      };
      if (columns > 2 * LANES) rows(tile<TERMS, IN_ROWS, 3>);
      else if (columns > LANES) rows(tile<TERMS, IN_ROWS, 2>);
      else rows(tile<TERMS, IN_ROWS, 1>);
    }
  });
}

}  // namespace mlxgpt::gemm
#endif
