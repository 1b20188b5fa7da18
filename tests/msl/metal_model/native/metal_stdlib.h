// The part of Metal's standard library that the kernels use, for two compilers.
//
// MSL_CHECK is set for the type-check: clang's OpenCL C++ front end, where address spaces are real and nothing is run.
// Without it the file is compiled as C++: address spaces vanish and what needs other threads calls the runtime.
// A name that is missing here is a compile error, never a silent approximation.
#pragma once

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef uchar uint8_t;
typedef ushort uint16_t;
typedef uint uint32_t;
typedef ulong uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __bf16 bfloat;
#ifdef MSL_CHECK
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define atomic_int msl_atomic_int  // OpenCL has types of these names
#define atomic_uint msl_atomic_uint
#define atomic_float msl_atomic_float
#define MSL_EACH_SPACE(M) M(device) M(threadgroup)
#define MSL_EACH_SOURCE(M) M(device) M(threadgroup) M(constant)
#else
#define device
#define constant const
#define threadgroup
#define thread
#define MSL_EACH_SPACE(M) M(thread)
#define MSL_EACH_SOURCE(M) M(thread)
typedef _Float16 half;
#endif
typedef half float16_t;
typedef bfloat bfloat16_t;
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT 3.402823466e+38f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_PI_F 3.14159265358979323846f
#define M_SQRT2_F 1.41421356237309504880f
#define METAL_FUNC inline
#define MSL_INLINE inline __attribute__((always_inline, nomerge))

#ifndef MSL_CHECK
// The runtime. Each takes one more argument, the place in the source, which is added to the compiled code. Two barriers
// in two branches stay two: nothing may make one of them, as of any two calls that are alike.
extern "C" __attribute__((nomerge, convergent)) void msl_barrier(int scope, int flags);
extern "C" __attribute__((nomerge, convergent)) const char* msl_exchange(const void* value, int size);
extern "C" void* msl_threadgroup(int id, int bytes, int scalar);
extern "C" uint msl_atomic(const volatile void* address, int operation, int type, uint value, uint expected);
extern "C" void msl_access(const void* address, long bytes, int write);
extern "C" int msl_pick(int mutant);
#else
int msl_pick(int mutant);
#endif

namespace metal {

template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));

// What a threadgroup variable is made of: the runtime's shadow has a cell for each.
template <typename T> struct msl_scalar { typedef T type; };
template <typename T, int N> struct msl_scalar<T __attribute__((ext_vector_type(N)))> { typedef T type; };
template <typename T, size_t N> struct msl_scalar<T[N]> { typedef typename msl_scalar<T>::type type; };

// make_float4(a, b, c, d), make_float4(a), make_float4(other vector): what float4(...) becomes, by macros at the end.
#define MSL_VECTORS(T)                                                                                       \
  typedef T T##2 __attribute__((ext_vector_type(2)));                                                        \
  typedef T T##3 __attribute__((ext_vector_type(3)));                                                        \
  typedef T T##4 __attribute__((ext_vector_type(4)));                                                        \
  MSL_INLINE T##2 make_##T##2(T a, T b) { T##2 v = {a, b}; return v; }                                       \
  MSL_INLINE T##3 make_##T##3(T a, T b, T c) { T##3 v = {a, b, c}; return v; }                               \
  MSL_INLINE T##4 make_##T##4(T a, T b, T c, T d) { T##4 v = {a, b, c, d}; return v; }                       \
  MSL_INLINE T##4 make_##T##4(T##2 a, T##2 b) { T##4 v = {a.x, a.y, b.x, b.y}; return v; }                   \
  MSL_INLINE T##4 make_##T##4(T##3 a, T b) { T##4 v = {a.x, a.y, a.z, b}; return v; }                        \
  MSL_INLINE T##2 make_##T##2(T a) { T##2 v = {a, a}; return v; }                                            \
  MSL_INLINE T##3 make_##T##3(T a) { T##3 v = {a, a, a}; return v; }                                         \
  MSL_INLINE T##4 make_##T##4(T a) { T##4 v = {a, a, a, a}; return v; }                                      \
  template <typename U> MSL_INLINE T##2 make_##T##2(vec<U, 2> v) { return __builtin_convertvector(v, T##2); } \
  template <typename U> MSL_INLINE T##3 make_##T##3(vec<U, 3> v) { return __builtin_convertvector(v, T##3); } \
  template <typename U> MSL_INLINE T##4 make_##T##4(vec<U, 4> v) { return __builtin_convertvector(v, T##4); }
MSL_VECTORS(float)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)

#define MSL_UNARY(name, builtin) \
  template <typename T> MSL_INLINE T name(T x) { return builtin(x); }
#define MSL_BINARY(name, builtin) \
  template <typename T> MSL_INLINE T name(T x, T y) { return builtin(x, y); }
#define MSL_MATH                                   \
  MSL_UNARY(exp, __builtin_elementwise_exp)        \
  MSL_UNARY(exp2, __builtin_elementwise_exp2)      \
  MSL_UNARY(log, __builtin_elementwise_log)        \
  MSL_UNARY(log2, __builtin_elementwise_log2)      \
  MSL_UNARY(log10, __builtin_elementwise_log10)    \
  MSL_UNARY(sqrt, __builtin_elementwise_sqrt)      \
  MSL_UNARY(sin, __builtin_elementwise_sin)        \
  MSL_UNARY(cos, __builtin_elementwise_cos)        \
  MSL_UNARY(tan, __builtin_elementwise_tan)        \
  MSL_UNARY(tanh, __builtin_elementwise_tanh)      \
  MSL_UNARY(sinh, __builtin_elementwise_sinh)      \
  MSL_UNARY(cosh, __builtin_elementwise_cosh)      \
  MSL_UNARY(atan, __builtin_elementwise_atan)      \
  MSL_UNARY(floor, __builtin_elementwise_floor)    \
  MSL_UNARY(ceil, __builtin_elementwise_ceil)      \
  MSL_UNARY(round, __builtin_elementwise_round)    \
  MSL_UNARY(rint, __builtin_elementwise_rint)      \
  MSL_UNARY(trunc, __builtin_elementwise_trunc)    \
  MSL_BINARY(pow, __builtin_elementwise_pow)       \
  MSL_BINARY(atan2, __builtin_elementwise_atan2)   \
  MSL_BINARY(fmod, __builtin_elementwise_fmod)     \
  MSL_BINARY(fmax, __builtin_elementwise_max)      \
  MSL_BINARY(fmin, __builtin_elementwise_min)      \
  MSL_UNARY(fabs, __builtin_elementwise_abs)       \
  template <typename T> MSL_INLINE T rsqrt(T x) { return T(1) / __builtin_elementwise_sqrt(x); }
MSL_MATH
namespace precise { MSL_MATH }
namespace fast { MSL_MATH }
MSL_UNARY(abs, __builtin_elementwise_abs)
MSL_UNARY(popcount, __builtin_elementwise_popcount)
MSL_BINARY(max, __builtin_elementwise_max)
MSL_BINARY(min, __builtin_elementwise_min)
template <typename T> MSL_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <typename T> MSL_INLINE T fma(T x, T y, T z) { return __builtin_elementwise_fma(x, y, z); }
template <typename T> MSL_INLINE T mix(T x, T y, T a) { return x + (y - x) * a; }
template <typename T> MSL_INLINE T saturate(T x) { return clamp(x, T(0), T(1)); }
template <typename T> MSL_INLINE T select(T no, T yes, bool condition) { return condition ? yes : no; }
template <typename T> MSL_INLINE bool isnan(T x) { return x != x; }
template <typename T> MSL_INLINE bool isinf(T x) { return float(x) == INFINITY || float(x) == -INFINITY; }
template <typename T> MSL_INLINE bool isfinite(T x) { return !isnan(x) && !isinf(x); }
template <typename T> MSL_INLINE T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x; }
MSL_INLINE uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
MSL_INLINE uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
MSL_INLINE uint mulhi(uint x, uint y) { return uint((ulong(x) * y) >> 32); }
MSL_INLINE uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 32 ? x : (x >> offset) & ((1u << bits) - 1);
}
template <typename T> MSL_INLINE T dot(vec<T, 2> a, vec<T, 2> b) { return a.x * b.x + a.y * b.y; }
template <typename T> MSL_INLINE T dot(vec<T, 3> a, vec<T, 3> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <typename T> MSL_INLINE T dot(vec<T, 4> a, vec<T, 4> b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

template <typename T> struct numeric_limits {};
#define MSL_LIMITS(T, LOWEST, LEAST, MOST, INF)            \
  template <> struct numeric_limits<T> {                   \
    static constexpr T lowest() { return LOWEST; }         \
    static constexpr T min() { return LEAST; }             \
    static constexpr T max() { return MOST; }              \
    static constexpr T infinity() { return INF; }          \
  };
MSL_LIMITS(float, -MAXFLOAT, 1.17549435e-38f, MAXFLOAT, INFINITY)
MSL_LIMITS(half, half(-65504.0f), half(6.103515625e-5f), half(65504.0f), half(INFINITY))
MSL_LIMITS(bfloat, bfloat(-3.3895314e38f), bfloat(1.17549435e-38f), bfloat(3.3895314e38f), bfloat(INFINITY))
MSL_LIMITS(int, -2147483647 - 1, -2147483647 - 1, 2147483647, 0)
MSL_LIMITS(uint, 0u, 0u, 4294967295u, 0u)

// ---- barriers

enum class mem_flags : int { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
#ifdef MSL_CHECK
void threadgroup_barrier(mem_flags flags);
void simdgroup_barrier(mem_flags flags);
#else
MSL_INLINE void threadgroup_barrier(mem_flags flags) { msl_barrier(0, int(flags)); }
MSL_INLINE void simdgroup_barrier(mem_flags flags) { msl_barrier(1, int(flags)); }
#endif

// ---- simdgroups of 32: a lane shows its value to the others, and all must be at the same call

#ifdef MSL_CHECK
#define MSL_SIMD_REDUCE(name, type, expression) template <typename T> type name(T value);
#define MSL_SIMD_LANE(name, expression) template <typename T> T name(T value, ushort n);
#else
template <typename T> struct msl_lanes {
  static_assert(sizeof(T) <= 32, "a simdgroup exchanges at most 32 bytes a lane");
  const char* slots;
  MSL_INLINE explicit msl_lanes(T value) : slots(msl_exchange(&value, sizeof(T))) {}
  MSL_INLINE T operator[](uint lane) const {
    T value;
    __builtin_memcpy(&value, slots + 32 * lane, sizeof(T));
    return value;
  }
};
extern "C" uint msl_lane();
#define MSL_SIMD_REDUCE(name, type, expression)              \
  template <typename T> MSL_INLINE type name(T value) {      \
    msl_lanes<T> lanes(value);                               \
    type result = type(lanes[0]);                            \
    for (uint i = 1; i < 32; ++i) {                          \
      type x = type(lanes[i]);                               \
      result = expression;                                   \
    }                                                        \
    return result;                                           \
  }
#define MSL_SIMD_LANE(name, expression)                      \
  template <typename T> MSL_INLINE T name(T value, ushort n) {\
    msl_lanes<T> lanes(value);                               \
    uint lane = msl_lane();                                  \
    uint from = expression;                                  \
    return lanes[from < 32 ? from : lane];                   \
  }
#endif
MSL_SIMD_REDUCE(simd_sum, T, T(result + x))
MSL_SIMD_REDUCE(simd_product, T, T(result * x))
MSL_SIMD_REDUCE(simd_max, T, max(result, x))
MSL_SIMD_REDUCE(simd_min, T, min(result, x))
MSL_SIMD_REDUCE(simd_and, T, T(result & x))
MSL_SIMD_REDUCE(simd_or, T, T(result | x))
MSL_SIMD_REDUCE(simd_xor, T, T(result ^ x))
MSL_SIMD_REDUCE(simd_all, bool, result && x)
MSL_SIMD_REDUCE(simd_any, bool, result || x)
MSL_SIMD_LANE(simd_shuffle, n)
MSL_SIMD_LANE(simd_broadcast, n)
MSL_SIMD_LANE(simd_shuffle_xor, lane ^ n)
MSL_SIMD_LANE(simd_shuffle_up, lane - n)
MSL_SIMD_LANE(simd_shuffle_down, lane + n)
template <typename T> MSL_INLINE T simd_broadcast_first(T value) { return simd_broadcast(value, 0); }
#ifdef MSL_CHECK
template <typename T> T simd_prefix_inclusive_sum(T value);
template <typename T> T simd_prefix_exclusive_sum(T value);
#else
template <typename T> MSL_INLINE T msl_prefix_sum(T value, uint count) {
  msl_lanes<T> lanes(value);
  T result = T(0);
  for (uint i = 0; i < count; ++i) result = T(result + lanes[i]);
  return result;
}
template <typename T> MSL_INLINE T simd_prefix_inclusive_sum(T value) { return msl_prefix_sum(value, msl_lane() + 1); }
template <typename T> MSL_INLINE T simd_prefix_exclusive_sum(T value) { return msl_prefix_sum(value, msl_lane()); }
#endif

// ---- 8x8 matrices spread over a simdgroup, two elements a lane, laid out as MLX's steel kernels take them to be

template <typename T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "only 8x8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T value) : elements(value) {}
  thread vec<T, 2>& thread_elements() thread { return *(thread vec<T, 2>*)&elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <typename T, int R, int C> MSL_INLINE simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, R, C>(value);
}
#ifdef MSL_CHECK
#define MSL_MATRIX_LOAD(SPACE)                                                                         \
  template <typename T>                                                                                \
  void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& d, const SPACE T* source, ulong stride = 8,    \
                      vec<ulong, 2> origin = 0, bool transpose = false);
#define MSL_MATRIX_STORE(SPACE)                                                                        \
  template <typename T>                                                                                \
  void simdgroup_store(const thread simdgroup_matrix<T, 8, 8>& d, SPACE T* target, ulong stride = 8,   \
                       vec<ulong, 2> origin = 0, bool transpose = false);
MSL_EACH_SOURCE(MSL_MATRIX_LOAD)
MSL_EACH_SPACE(MSL_MATRIX_STORE)
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d, const thread simdgroup_matrix<A, 8, 8>& a,
                                   const thread simdgroup_matrix<B, 8, 8>& b,
                                   const thread simdgroup_matrix<C, 8, 8>& c);
template <typename D, typename A, typename B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d, const thread simdgroup_matrix<A, 8, 8>& a,
                        const thread simdgroup_matrix<B, 8, 8>& b);
#else
MSL_INLINE uint msl_matrix_row() { uint l = msl_lane(); return ((l / 4) & 4) + (l / 2) % 4; }
MSL_INLINE uint msl_matrix_column() { uint l = msl_lane(); return ((l / 4) & 2) * 2 + (l % 2) * 2; }
MSL_INLINE uint msl_matrix_lane(uint r, uint c) { return (r & 4) * 4 + (c & 4) * 2 + (r & 3) * 2 + ((c >> 1) & 1); }
template <typename T>
MSL_INLINE void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const T* source, ulong stride = 8,
                               vec<ulong, 2> origin = 0, bool transpose = false) {
  uint row = msl_matrix_row(), column = msl_matrix_column();
  (void)msl_lanes<uint>(uint(transpose));
  for (uint i = 0; i < 2; ++i) {
    uint r = transpose ? column + i : row, c = transpose ? row : column + i;
    d.elements[i] = source[(origin.y + r) * stride + origin.x + c];
  }
}
template <typename T>
MSL_INLINE void simdgroup_store(const simdgroup_matrix<T, 8, 8>& d, T* target, ulong stride = 8,
                                vec<ulong, 2> origin = 0, bool transpose = false) {
  uint row = msl_matrix_row(), column = msl_matrix_column();
  (void)msl_lanes<uint>(uint(transpose));
  for (uint i = 0; i < 2; ++i) {
    uint r = transpose ? column + i : row, c = transpose ? row : column + i;
    target[(origin.y + r) * stride + origin.x + c] = d.elements[i];
  }
}
template <typename A, typename B> struct msl_pair { vec<A, 2> a; vec<B, 2> b; };
template <typename D, typename A, typename B, typename C>
MSL_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                              const simdgroup_matrix<B, 8, 8>& b,
                                              const simdgroup_matrix<C, 8, 8>& c) {
  msl_pair<A, B> mine{a.elements, b.elements};
  msl_lanes<msl_pair<A, B>> lanes(mine);
  uint row = msl_matrix_row(), column = msl_matrix_column();
  float x = float(c.elements[0]), y = float(c.elements[1]);
  for (uint k = 0; k < 8; ++k) {
    float left = float(lanes[msl_matrix_lane(row, k)].a[k % 2]);
    vec<B, 2> right = lanes[msl_matrix_lane(k, column)].b;
    x += left * float(right[0]);
    y += left * float(right[1]);
  }
  d.elements[0] = D(x);
  d.elements[1] = D(y);
}
template <typename D, typename A, typename B>
MSL_INLINE void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                   const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D, 8, 8>(D(0)));
}
#endif

// ---- atomics: relaxed only, of 32 bits, as Metal has them

enum memory_order { memory_order_relaxed };
template <typename T> struct atomic { T value; };
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
template <typename T> struct msl_code;
template <> struct msl_code<uint> { enum { value = 0 }; };
template <> struct msl_code<int> { enum { value = 1 }; };
template <> struct msl_code<float> { enum { value = 2 }; };
#ifdef MSL_CHECK
#define MSL_ATOMIC(SPACE, T, name, code) T name(volatile SPACE atomic<T>* object, T operand, memory_order order);
#define MSL_ATOMIC_MEMORY(SPACE, T)                                                                       \
  T atomic_load_explicit(const volatile SPACE atomic<T>* object, memory_order order);                     \
  void atomic_store_explicit(volatile SPACE atomic<T>* object, T desired, memory_order order);            \
  bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* object, thread T* expected, T desired, \
                                             memory_order success, memory_order failure);
#else
#define MSL_ATOMIC(SPACE, T, name, code)                                                                  \
  MSL_INLINE T name(volatile SPACE atomic<T>* object, T operand, memory_order) {                          \
    return __builtin_bit_cast(                                                                            \
        T, msl_atomic(object, code, msl_code<T>::value, __builtin_bit_cast(uint, operand), 0));           \
  }
#define MSL_ATOMIC_MEMORY(SPACE, T)                                                                       \
  MSL_INLINE T atomic_load_explicit(const volatile SPACE atomic<T>* object, memory_order) {               \
    return __builtin_bit_cast(T, msl_atomic(object, 0, msl_code<T>::value, 0, 0));                        \
  }                                                                                                       \
  MSL_INLINE void atomic_store_explicit(volatile SPACE atomic<T>* object, T desired, memory_order) {      \
    msl_atomic(object, 1, msl_code<T>::value, __builtin_bit_cast(uint, desired), 0);                      \
  }                                                                                                       \
  MSL_INLINE bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* object, T* expected, T desired, \
                                                        memory_order, memory_order) {                     \
    uint before = __builtin_bit_cast(uint, *expected);                                                    \
    uint found = msl_atomic(object, 9, msl_code<T>::value, __builtin_bit_cast(uint, desired), before);    \
    *expected = __builtin_bit_cast(T, found);                                                             \
    return found == before;                                                                               \
  }
#endif
#define MSL_ATOMIC_INTEGER(SPACE, T)                       \
  MSL_ATOMIC(SPACE, T, atomic_fetch_max_explicit, 4)       \
  MSL_ATOMIC(SPACE, T, atomic_fetch_min_explicit, 5)       \
  MSL_ATOMIC(SPACE, T, atomic_fetch_and_explicit, 6)       \
  MSL_ATOMIC(SPACE, T, atomic_fetch_or_explicit, 7)        \
  MSL_ATOMIC(SPACE, T, atomic_fetch_xor_explicit, 8)
#define MSL_ATOMIC_ANY(SPACE, T)                           \
  MSL_ATOMIC_MEMORY(SPACE, T)                              \
  MSL_ATOMIC(SPACE, T, atomic_exchange_explicit, 1)        \
  MSL_ATOMIC(SPACE, T, atomic_fetch_add_explicit, 2)       \
  MSL_ATOMIC(SPACE, T, atomic_fetch_sub_explicit, 3)
#define MSL_ATOMICS(SPACE)         \
  MSL_ATOMIC_ANY(SPACE, uint)      \
  MSL_ATOMIC_ANY(SPACE, int)       \
  MSL_ATOMIC_ANY(SPACE, float)     \
  MSL_ATOMIC_INTEGER(SPACE, uint)  \
  MSL_ATOMIC_INTEGER(SPACE, int)
MSL_EACH_SPACE(MSL_ATOMICS)

}  // namespace metal
using namespace metal;

template <typename To, typename From> MSL_INLINE To as_type(From x) { return __builtin_bit_cast(To, x); }

#define float2(...) make_float2(__VA_ARGS__)
#define float3(...) make_float3(__VA_ARGS__)
#define float4(...) make_float4(__VA_ARGS__)
#define half2(...) make_half2(__VA_ARGS__)
#define half3(...) make_half3(__VA_ARGS__)
#define half4(...) make_half4(__VA_ARGS__)
#define bfloat2(...) make_bfloat2(__VA_ARGS__)
#define bfloat3(...) make_bfloat3(__VA_ARGS__)
#define bfloat4(...) make_bfloat4(__VA_ARGS__)
#define char2(...) make_char2(__VA_ARGS__)
#define char4(...) make_char4(__VA_ARGS__)
#define uchar2(...) make_uchar2(__VA_ARGS__)
#define uchar4(...) make_uchar4(__VA_ARGS__)
#define short2(...) make_short2(__VA_ARGS__)
#define short4(...) make_short4(__VA_ARGS__)
#define ushort2(...) make_ushort2(__VA_ARGS__)
#define ushort4(...) make_ushort4(__VA_ARGS__)
#define int2(...) make_int2(__VA_ARGS__)
#define int3(...) make_int3(__VA_ARGS__)
#define int4(...) make_int4(__VA_ARGS__)
#define uint2(...) make_uint2(__VA_ARGS__)
#define uint3(...) make_uint3(__VA_ARGS__)
#define uint4(...) make_uint4(__VA_ARGS__)
