// Vectors as wide as the CPU that this is compiled for has them: AVX-512, AVX2, NEON, SSE2, or the compiler's own.
// Only the product of 16-bit pairs has no operator; all else is GCC's and clang's vector extension.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mlxgpt {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline Ints lane_numbers() {
  Ints v;
  for (int i = 0; i < LANES; i++) v[i] = i;
  return v;
}

inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

// bfloat16 is the upper half of a float32.
inline Floats load_bf16(const uint16_t* p) {
  return (Floats)(__builtin_convertvector(load<Halves>(p), Words) << 16);
}

inline float sum(Floats v) {
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, (lane_numbers() + half) & (LANES - 1));
  return v[0];
}

// The number at p and those after it, `count` < LANES in all; the other lanes are `rest`.
inline Floats load_first(const float* p, int count, float rest) {
  Floats v = Floats{} + rest;
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}

// e to the power of each; 0 where that is below the smallest normal number. 2^n times a polynomial of what is left in
// ±ln(2)/2, with the coefficients of Cephes's expf (netlib.org/cephes); two units in the last place at most.
inline Floats exp(Floats x) {
  Floats shifted = x * 1.44269504f + 12582912.f;  // of 1.5 · 2^23: the nearest whole number is in the last bits
  Floats n = shifted - 12582912.f;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
              1.6666665459e-1f) * r + 5.0000001201e-1f;
  Floats y = (Floats)((Ints)(p * r * r + r + 1) + ((Ints)shifted << 23));
  Floats high = x > 88.72f ? Floats{} + __builtin_inff() : y;
  return x < -87.33f ? Floats{} : x == x ? high : x;
}

// Each of n numbers becomes f of it, `f` of vectors.
template <class F>
inline void map(float* x, int n, const F& f) {
  int i = 0;
  for (; i + LANES <= n; i += LANES) store(x + i, f(load<Floats>(x + i)));
  if (i == n) return;
  Floats last = f(load_first(x + i, n - i, 0));
  std::memcpy(x + i, &last, (n - i) * sizeof(float));
}

inline float largest(const float* x, int n) {
  Floats top = Floats{} - __builtin_inff();
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    Floats v = load<Floats>(x + i);
    top = v > top ? v : top;
  }
  Floats v = load_first(x + i, n - i, -__builtin_inff());
  top = v > top ? v : top;
  float most = top[0];
  for (int lane = 1; lane < LANES; lane++) most = top[lane] > most ? top[lane] : most;
  return most;
}

inline float sum(const float* x, int n) {
  Floats total = {};
  int i = 0;
  for (; i + LANES <= n; i += LANES) total += load<Floats>(x + i);
  return sum(total + load_first(x + i, n - i, 0));
}

// sums[lane] + a[lane].low · b[lane].low + a[lane].high · b[lane].high, halves as signed 16-bit integers
inline Ints multiply_add(Ints sums, Ints a, Ints b) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512F__) && defined(__AVX512BW__)
  return sums + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && defined(__AVXVNNI__)
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
  return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return sums + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
  int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
  return sums + (Ints)vpaddq_s32(low, high);
#else
  return sums + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

#if (defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)) || defined(__AVXVNNI__)
constexpr bool BYTES = true;  // whether there is multiply_add_bytes

// sums[lane] + the four products of a's bytes, unsigned, and b's, signed
inline Ints multiply_add_bytes(Ints sums, Ints a, Ints b) {
#if defined(__AVX512F__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#else
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#endif
}
#else
constexpr bool BYTES = false;
inline Ints multiply_add_bytes(Ints, Ints, Ints);
#endif

}  // namespace mlxgpt
