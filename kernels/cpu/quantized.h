// Rows of x by MLX's affine weights of 4 and 8 bits.
//
// Each group of x is rounded to 16-bit integers of one scale, so that a group's products with the weights' integers
// are exact in 32 bits, and two scales and a bias a group make them real:
//   y[m, n] = Σ_g scale[n, g] · d[m, g] · (Σ_k q[n, k] · i[m, k]) + bias[n, g] · d[m, g] · Σ_k i[m, k]
// That is 2⁻¹⁶ of the group's largest x at most. A word of 32 bits is taken apart with shifts into PARTS lanes of a few
// weights PARTS apart, and x lies in the same order: as pairs of 16-bit numbers, or, where the CPU multiplies bytes, as
// the high and the low bytes of four of them.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/pool.h"
#include "cpu/vectors.h"

namespace mlxgpt::quantized {

constexpr int AHEAD = 512;  // words of w: how far ahead memory is asked for them
constexpr int ROWS = 8, PANEL = 2;  // a product of many rows: 8 of x by 2 vectors of w's at a time
constexpr int CHUNK = 256;          // of which this many share what was unpacked of w

// A matrix of float32 or bfloat16, by rows.
struct Matrix {
  const void* data;
  bool bf16;

  float at(size_t i) const {
    if (!bf16) return static_cast<const float*>(data)[i];
    uint32_t word = uint32_t(static_cast<const uint16_t*>(data)[i]) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
  Floats vector(size_t i) const {
    return bf16 ? load_bf16(static_cast<const uint16_t*>(data) + i) : load<Floats>(static_cast<const float*>(data) + i);
  }
  Matrix from(size_t i) const { return {static_cast<const char*>(data) + i * (bf16 ? 2 : 4), bf16}; }
};

struct Sizes {
  int M, groups, row_words;  // row_words: 32-bit words of a row of w
};

// w as it lies: N rows.
struct Packed {
  const uint32_t* words;
  Matrix scales, biases;
  int N;
};

template <int BITS, int GROUP>
struct Product {
  static constexpr int EACH = BYTES ? 4 : 2;                     // weights of a word that are multiplied at once
  static constexpr int PARTS = 32 / BITS / EACH;                 // of which a word has so many
  static constexpr int TERMS = BYTES ? 2 : 1;                    // words of x for each part: high and low bytes, or one
  static constexpr int STEP = PARTS * TERMS;                     // words of x for a word of weights
  static constexpr int WORDS = GROUP * BITS / 32;                // words of a group
  static constexpr int BLOCK = LANES * WORDS;                    // words of LANES groups
  static constexpr int RUN = WORDS > LANES ? WORDS / LANES : 1;  // vectors of words within one group
  static constexpr int32_t MASK = int32_t((BYTES ? 0x01010101u : 0x00010001u) * ((1u << BITS) - 1));
  static constexpr float LARGEST = BYTES ? 127 * 256 + 127 : 32767;

  Sizes size;
  int stride, group_stride;  // of a row of x: words, and groups, both of whole blocks
  std::unique_ptr<Ints[]> aligned;
  std::unique_ptr<Floats[]> real;
  int32_t* words;
  float *scales, *sums;  // d, and d · Σ i

  explicit Product(const Sizes& s) : size(s) {
    int blocks = (s.groups + LANES - 1) / LANES, rows = (s.M + ROWS - 1) / ROWS * ROWS;
    group_stride = blocks * LANES;
    stride = blocks * BLOCK * STEP + 16;  // not a power of two: the rows of a tile shall not meet in one cache set
    aligned.reset(new Ints[size_t(rows) * stride / LANES]);
    real.reset(new Floats[size_t(rows) * group_stride * 2 / LANES]);
    words = reinterpret_cast<int32_t*>(aligned.get());
    scales = reinterpret_cast<float*>(real.get());
    sums = scales + size_t(rows) * group_stride;
  }

  // Where the words of a group begin, and those of its word w, part and term from there.
  static size_t offset(int group) { return size_t(group) * WORDS / LANES * STEP * LANES + size_t(group) * WORDS % LANES; }
  static constexpr int offset(int w, int part, int term) {
    return (w / LANES * STEP + part * TERMS + term) * LANES + w % LANES;
  }

  // Row m of x, `step` apart in memory from `x` on; zeros where x has no such row or group.
  void round(int m, const Matrix& x, int64_t step) {
    int32_t* to = &words[size_t(m) * stride];
    float* scale = &scales[size_t(m) * group_stride];
    float* sum = &sums[size_t(m) * group_stride];
    int groups = m < size.M ? size.groups : 0;
    std::fill(to + size_t(groups / LANES) * BLOCK * STEP, to + stride, 0);
    std::fill(scale + groups, scale + group_stride, 0.0f);
    std::fill(sum + groups, sum + group_stride, 0.0f);
    for (int g = 0; g < groups; g++) {
      float values[GROUP];
      int32_t integers[GROUP], top = 0, total = 0;
      if (step == 1 && !x.bf16) std::memcpy(values, static_cast<const float*>(x.data) + g * GROUP, sizeof values);
      else for (int k = 0; k < GROUP; k++) values[k] = x.at((int64_t(g) * GROUP + k) * step);
      std::memcpy(integers, values, sizeof values);
      for (int k = 0; k < GROUP; k++) top = std::max(top, integers[k] & 0x7fffffff);  // |x| orders as its bits do
      float largest;
      std::memcpy(&largest, &top, 4);
      if (top >= 0x7f800000) {  // inf or nan: the whole row becomes nan
        scale[g] = sum[g] = std::numeric_limits<float>::quiet_NaN();
        std::fill(values, values + GROUP, 0.0f);
        largest = 0;
      } else {
        scale[g] = largest / LARGEST;
      }
      float inverse = largest > 1e-30f ? LARGEST / largest : 0;
      for (int k = 0; k < GROUP; k++) {
        float shifted = values[k] * inverse + 12582912.0f;  // 1.5 · 2²³: the sum's last bits are the nearest integer
        std::memcpy(&integers[k], &shifted, 4);
        integers[k] -= 0x4b400000;
        total += integers[k];
      }
      if (top < 0x7f800000) sum[g] = scale[g] * total;
      int32_t* here = to + offset(g);
      for (int w = 0; w < WORDS; w++)
        for (int part = 0; part < PARTS; part++) {
          const int32_t* from = integers + w * EACH * PARTS + part;
          if constexpr (BYTES) {
            uint32_t high = 0, low = 0;
            for (int b = 0; b < EACH; b++) {
              int32_t rest = int8_t(from[b * PARTS]);
              low |= uint32_t(rest & 0xff) << (8 * b);
              high |= uint32_t((from[b * PARTS] - rest) >> 8 & 0xff) << (8 * b);
            }
            here[offset(w, part, 0)] = high;
            here[offset(w, part, 1)] = low;
          } else {
            here[offset(w, part, 0)] = (from[0] & 0xffff) | (from[PARTS] << 16);
          }
        }
    }
  }

  static Ints multiplied(Ints sums, Ints w, Ints x) {
    if constexpr (BYTES) return multiply_add_bytes(sums, w, x);
    else return multiply_add(sums, w, x);
  }

  static Ints part_of(Words word, int part) { return (Ints)(word >> (part * BITS)) & MASK; }

  // y[m, n] for COUNT rows of x from m on, and one row of w. May read, not use, up to a block past the end of w's row.
  template <int COUNT>
  void dot(int m, const uint32_t* w, const Matrix& s, const Matrix& b, float* out) const {
    Floats total[COUNT] = {};
    const int32_t* x = &words[size_t(m) * stride];
    for (int g = 0; g < size.groups; g += LANES) {
      Floats s_w = s.vector(g), b_w = b.vector(g), factor[COUNT];
      int left = size.groups - g;
      if (left < LANES) {  // what follows is the next row's
        Ints mine = lane_numbers() < left;
        s_w = (Floats)((Ints)s_w & mine);
        b_w = (Floats)((Ints)b_w & mine);
      }
      for (int r = 0; r < COUNT; r++) {
        size_t at = size_t(m + r) * group_stride + g;
        factor[r] = s_w * load<Floats>(&scales[at]);
        total[r] += b_w * load<Floats>(&sums[at]);
      }
      int vectors = left < LANES ? (left * WORDS + LANES - 1) / LANES : WORDS;
#pragma GCC unroll 8
      for (int j = 0; j < WORDS; j += RUN) {
        if (j >= vectors) break;
        Ints products[COUNT][TERMS] = {};
#pragma GCC unroll 8
        for (int v = j; v < j + RUN; v++) {
          Words word = load<Words>(w + v * LANES);
          __builtin_prefetch(w + v * LANES + AHEAD);
#pragma GCC unroll 4
          for (int part = 0; part < PARTS; part++) {
            Ints q = part_of(word, part);
#pragma GCC unroll 4
            for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
              for (int t = 0; t < TERMS; t++)
                products[r][t] = multiplied(products[r][t], q,
                                            load<Ints>(x + size_t(r) * stride + (v * STEP + part * TERMS + t) * LANES));
          }
        }
        Ints group = (lane_numbers() + j * LANES) / WORDS;
        for (int r = 0; r < COUNT; r++) {
          Ints whole = TERMS == 2 ? (products[r][0] << 8) + products[r][TERMS - 1] : products[r][0];
          total[r] += to_floats(whole) * __builtin_shuffle(factor[r], group);
        }
      }
      w += BLOCK;
      x += BLOCK * STEP;
    }
    for (int r = 0; r < COUNT; r++) out[r] = sum(total[r]);
  }

  // y[m, n] for every row m of x, given row n of w; y is [M, N].
  void column(int n, const uint32_t* w, const Matrix& s, const Matrix& b, float* y, int N) const {
    float out[4];
    for (int m = 0; m < size.M; m += 4) {
      int count = std::min(4, size.M - m);
      if (count == 1) dot<1>(m, w, s, b, out);
      else if (count == 2) dot<2>(m, w, s, b, out);
      else dot<4>(m, w, s, b, out);
      for (int r = 0; r < count; r++) y[size_t(m + r) * N + n] = out[r];
    }
  }

  // y[:, first to last - 1] for few rows of x: every row of w is read once, in the order of memory.
  void columns(int first, int last, const Packed& w, float* y) const {
    const auto& [M, groups, row_words] = size;
    // The last rows' blocks would reach past the end of the arrays: those are copied first.
    int words = (groups + LANES - 1) / LANES * BLOCK;
    int safe = w.N - std::max((group_stride - 1) / groups, (words - 1) / row_words);
    for (int n = first; n < last; n++) {
      const uint32_t* row = w.words + size_t(n) * row_words;
      size_t at = size_t(n) * groups;
      if (n < safe) {
        column(n, row, w.scales.from(at), w.biases.from(at), y, w.N);
        continue;
      }
      std::vector<uint32_t> copy(words);
      std::vector<float> s(group_stride), b(group_stride);
      std::copy(row, row + row_words, copy.begin());
      for (int g = 0; g < groups; g++) s[g] = w.scales.at(at + g), b[g] = w.biases.at(at + g);
      column(n, copy.data(), {s.data(), false}, {b.data(), false}, y, w.N);
    }
  }

  // Many rows of x: PANEL · LANES rows of w are unpacked a group at a time, a lane each, and meet CHUNK rows of x.
  void wide(const Packed& w, float* y) const {
    constexpr int COLUMNS = PANEL * LANES;
    int panels = (w.N + COLUMNS - 1) / COLUMNS, chunks = (size.M + CHUNK - 1) / CHUNK;
    Pool::shared().each(panels * chunks, [&](int task) {
      int n0 = task / chunks * COLUMNS, m0 = task % chunks * CHUNK;
      int columns = std::min(COLUMNS, w.N - n0), rows = std::min(CHUNK, size.M - m0);
      std::unique_ptr<Floats[]> totals(new Floats[CHUNK * PANEL]());
      alignas(64) uint32_t packed[WORDS][COLUMNS] = {};
      alignas(64) float s_w[COLUMNS] = {}, b_w[COLUMNS] = {};
      Ints unpacked[WORDS * PARTS][PANEL];
      for (int g = 0; g < size.groups; g++) {
        for (int c = 0; c < columns; c++) {
          const uint32_t* row = w.words + size_t(n0 + c) * size.row_words + g * WORDS;
          for (int i = 0; i < WORDS; i++) packed[i][c] = row[i];
          size_t at = size_t(n0 + c) * size.groups + g;
          s_w[c] = w.scales.at(at);
          b_w[c] = w.biases.at(at);
        }
        for (int i = 0; i < WORDS * PARTS; i++)
          for (int v = 0; v < PANEL; v++)
            unpacked[i][v] = part_of(load<Words>(packed[i / PARTS] + v * LANES), i % PARTS);
        for (int m = m0; m < m0 + rows; m += ROWS) {
          const int32_t* x = &words[size_t(m) * stride + offset(g)];
          Ints products[ROWS][PANEL] = {};
          for (int t = 0; t < TERMS; t++) {
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
              for (int v = 0; v < PANEL; v++) products[r][v] = products[r][v] << 8;
            for (int i = 0; i < WORDS * PARTS; i++) {
              const int32_t* word = x + offset(i / PARTS, i % PARTS, t);
#pragma GCC unroll 8
              for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
                for (int v = 0; v < PANEL; v++)
                  products[r][v] = multiplied(products[r][v], unpacked[i][v], Ints{} + word[size_t(r) * stride]);
            }
          }
#pragma GCC unroll 8
          for (int r = 0; r < ROWS; r++) {
            size_t at = size_t(m + r) * group_stride + g;
#pragma GCC unroll 2
            for (int v = 0; v < PANEL; v++)
              totals[(m - m0 + r) * PANEL + v] +=
                  to_floats(products[r][v]) * (load<Floats>(s_w + v * LANES) * scales[at]) +
                  load<Floats>(b_w + v * LANES) * sums[at];
          }
        }
      }
      for (int r = 0; r < rows; r++)
        std::memcpy(y + size_t(m0 + r) * w.N + n0, &totals[r * PANEL], columns * sizeof(float));
    });
  }
};

}  // namespace mlxgpt::quantized
