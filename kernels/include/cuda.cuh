// What a kernel's body takes from Metal's standard library, in CUDA. `translate.py` puts it before a translated body;
// address spaces are gone by then, and Metal's names of types are those of this namespace.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#endif
#define MAXFLOAT 3.402823466e+38f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_PI_F 3.14159265358979323846f
#define M_SQRT2_F 1.41421356237309504880f
#define METAL_FUNC __device__ inline
#define MSL_FUNC __device__ __forceinline__

namespace metal {

typedef unsigned char uchar;
typedef signed char int8;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long long ulong;
typedef long long int64;
typedef __half half;
typedef __nv_bfloat16 bfloat;

// ---- vectors: elements by name or index, arithmetic with vectors and scalars

template <typename T, int N> struct vec;
#define MSL_VECTOR(N, ALIGN, MEMBERS, SPLAT, CONVERT)                                  \
  template <typename T> struct alignas(sizeof(T) * ALIGN) vec<T, N> {                  \
    T MEMBERS;                                                                         \
    vec() = default;                                                                   \
    MSL_FUNC explicit vec(T s) : SPLAT {}                                              \
    template <typename U> MSL_FUNC explicit vec(vec<U, N> v) : CONVERT {}              \
    MSL_FUNC T& operator[](uint i) { return (&x)[i]; }                                 \
    MSL_FUNC const T& operator[](uint i) const { return (&x)[i]; }
#define MSL_COMMA ,
MSL_VECTOR(2, 2, x MSL_COMMA y, x(s) MSL_COMMA y(s), x(T(float(v.x))) MSL_COMMA y(T(float(v.y))))
    MSL_FUNC vec(T a, T b) : x(a), y(b) {}
  };
MSL_VECTOR(3, 4, x MSL_COMMA y MSL_COMMA z, x(s) MSL_COMMA y(s) MSL_COMMA z(s),
           x(T(float(v.x))) MSL_COMMA y(T(float(v.y))) MSL_COMMA z(T(float(v.z))))
    MSL_FUNC vec(T a, T b, T c) : x(a), y(b), z(c) {}
  };
MSL_VECTOR(4, 4, x MSL_COMMA y MSL_COMMA z MSL_COMMA w, x(s) MSL_COMMA y(s) MSL_COMMA z(s) MSL_COMMA w(s),
           x(T(float(v.x))) MSL_COMMA y(T(float(v.y))) MSL_COMMA z(T(float(v.z))) MSL_COMMA w(T(float(v.w))))
    MSL_FUNC vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
    MSL_FUNC vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
    MSL_FUNC vec(vec<T, 3> a, T d) : x(a.x), y(a.y), z(a.z), w(d) {}
  };
#define MSL_OPERATOR(OP)                                                                                  \
  template <typename T, int N> MSL_FUNC vec<T, N>& operator OP##=(vec<T, N>& a, vec<T, N> b) {            \
    for (int i = 0; i < N; ++i) a[i] = T(a[i] OP b[i]);                                                   \
    return a;                                                                                             \
  }                                                                                                       \
  template <typename T, int N> MSL_FUNC vec<T, N>& operator OP##=(vec<T, N>& a, T b) {                    \
    return a OP##= vec<T, N>(b);                                                                          \
  }                                                                                                       \
  template <typename T, int N> MSL_FUNC vec<T, N> operator OP(vec<T, N> a, vec<T, N> b) { return a OP##= b; } \
  template <typename T, int N> MSL_FUNC vec<T, N> operator OP(vec<T, N> a, T b) { return a OP##= b; }     \
  template <typename T, int N> MSL_FUNC vec<T, N> operator OP(T a, vec<T, N> b) { return vec<T, N>(a) OP b; }
MSL_OPERATOR(+)
MSL_OPERATOR(-)
MSL_OPERATOR(*)
MSL_OPERATOR(/)
template <typename T, int N> MSL_FUNC vec<T, N> operator-(vec<T, N> a) { return vec<T, N>(T(0)) - a; }
template <typename T, int N> MSL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(a[0] * b[0]);
  for (int i = 1; i < N; ++i) sum = T(sum + a[i] * b[i]);
  return sum;
}

// ---- mathematics: in float, and for half, bfloat and vectors through float

#define MSL_UNARY(name, function)                                                          \
  template <typename T> MSL_FUNC T name(T x) { return T(function(float(x))); }             \
  template <typename T, int N> MSL_FUNC vec<T, N> name(vec<T, N> v) {                      \
    for (int i = 0; i < N; ++i) v[i] = T(function(float(v[i])));                           \
    return v;                                                                              \
  }
#define MSL_BINARY(name, function)                                                         \
  template <typename T> MSL_FUNC T name(T x, T y) { return T(function(float(x), float(y))); }
#define MSL_MATH                  \
  MSL_UNARY(exp, ::expf)          \
  MSL_UNARY(exp2, ::exp2f)        \
  MSL_UNARY(log, ::logf)          \
  MSL_UNARY(log2, ::log2f)        \
  MSL_UNARY(log10, ::log10f)      \
  MSL_UNARY(sqrt, ::sqrtf)        \
  MSL_UNARY(rsqrt, ::rsqrtf)      \
  MSL_UNARY(sin, ::sinf)          \
  MSL_UNARY(cos, ::cosf)          \
  MSL_UNARY(tan, ::tanf)          \
  MSL_UNARY(tanh, ::tanhf)        \
  MSL_UNARY(sinh, ::sinhf)        \
  MSL_UNARY(cosh, ::coshf)        \
  MSL_UNARY(atan, ::atanf)        \
  MSL_UNARY(floor, ::floorf)      \
  MSL_UNARY(ceil, ::ceilf)        \
  MSL_UNARY(round, ::roundf)      \
  MSL_UNARY(rint, ::rintf)        \
  MSL_UNARY(trunc, ::truncf)      \
  MSL_UNARY(fabs, ::fabsf)        \
  MSL_BINARY(pow, ::powf)         \
  MSL_BINARY(atan2, ::atan2f)     \
  MSL_BINARY(fmod, ::fmodf)       \
  MSL_BINARY(fmax, ::fmaxf)       \
  MSL_BINARY(fmin, ::fminf)
MSL_MATH
namespace precise { MSL_MATH }
namespace fast { MSL_MATH }
template <typename T> MSL_FUNC T abs(T x) { return x < T(0) ? T(-x) : x; }
template <typename T> MSL_FUNC T max(T x, T y) { return x > y || y != y ? x : y; }
template <typename T> MSL_FUNC T min(T x, T y) { return x < y || y != y ? x : y; }
template <typename T> MSL_FUNC T clamp(T x, T low, T high) { return metal::min(metal::max(x, low), high); }
template <typename T> MSL_FUNC T fma(T x, T y, T z) { return T(::fmaf(float(x), float(y), float(z))); }
template <typename T> MSL_FUNC T mix(T x, T y, T a) { return x + (y - x) * a; }
template <typename T> MSL_FUNC T saturate(T x) { return metal::clamp(x, T(0), T(1)); }
template <typename T> MSL_FUNC T select(T no, T yes, bool condition) { return condition ? yes : no; }
template <typename T> MSL_FUNC bool isnan(T x) { return float(x) != float(x); }
template <typename T> MSL_FUNC bool isinf(T x) { return ::fabsf(float(x)) == INFINITY; }
template <typename T> MSL_FUNC bool isfinite(T x) { return ::fabsf(float(x)) < INFINITY; }
template <typename T> MSL_FUNC T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x; }
MSL_FUNC uint popcount(uint x) { return __popc(x); }
MSL_FUNC uint clz(uint x) { return __clz(x); }
MSL_FUNC uint ctz(uint x) { return x ? __ffs(x) - 1 : 32; }
MSL_FUNC uint mulhi(uint x, uint y) { return __umulhi(x, y); }
MSL_FUNC uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 32 ? x : (x >> offset) & ((1u << bits) - 1);
}

template <typename T> struct numeric_limits;
#define MSL_LIMITS(T, LOWEST, LEAST, MOST, INF)      \
  template <> struct numeric_limits<T> {             \
    MSL_FUNC static T lowest() { return LOWEST; }    \
    MSL_FUNC static T min() { return LEAST; }        \
    MSL_FUNC static T max() { return MOST; }         \
    MSL_FUNC static T infinity() { return INF; }     \
  };
MSL_LIMITS(float, -MAXFLOAT, 1.17549435e-38f, MAXFLOAT, INFINITY)
MSL_LIMITS(half, half(-65504.0f), half(6.103515625e-5f), half(65504.0f), half(INFINITY))
MSL_LIMITS(bfloat, bfloat(-3.3895314e38f), bfloat(1.17549435e-38f), bfloat(3.3895314e38f), bfloat(INFINITY))
MSL_LIMITS(int, -2147483647 - 1, -2147483647 - 1, 2147483647, 0)
MSL_LIMITS(uint, 0u, 0u, 4294967295u, 0u)

template <typename To, typename From> MSL_FUNC To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

// ---- where a thread is

MSL_FUNC vec<uint, 3> msl_thread() { return vec<uint, 3>(threadIdx.x, threadIdx.y, threadIdx.z); }
MSL_FUNC vec<uint, 3> msl_size() { return vec<uint, 3>(blockDim.x, blockDim.y, blockDim.z); }
MSL_FUNC vec<uint, 3> msl_group() { return vec<uint, 3>(blockIdx.x, blockIdx.y, blockIdx.z); }
MSL_FUNC vec<uint, 3> msl_groups() { return vec<uint, 3>(gridDim.x, gridDim.y, gridDim.z); }
MSL_FUNC uint msl_index() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
MSL_FUNC uint msl_count() { return blockDim.x * blockDim.y * blockDim.z; }

// ---- barriers, and warps as simdgroups

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
MSL_FUNC void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_FUNC void simdgroup_barrier(mem_flags) { __syncwarp(); }

template <typename T> MSL_FUNC T simd_shuffle(T value, ushort lane) {
  constexpr int words = (sizeof(T) + 3) / 4;
  uint whole[words] = {};
  memcpy(whole, &value, sizeof(T));
  for (int i = 0; i < words; ++i) whole[i] = __shfl_sync(0xffffffffu, whole[i], lane);
  memcpy(&value, whole, sizeof(T));
  return value;
}
template <typename T> MSL_FUNC T simd_broadcast(T value, ushort lane) { return simd_shuffle(value, lane); }
template <typename T> MSL_FUNC T simd_broadcast_first(T value) { return simd_shuffle(value, 0); }
template <typename T> MSL_FUNC T simd_shuffle_xor(T value, ushort mask) {
  return simd_shuffle(value, (msl_index() % 32) ^ mask);
}
template <typename T> MSL_FUNC T simd_shuffle_down(T value, ushort n) {
  uint lane = msl_index() % 32;
  return simd_shuffle(value, lane + n < 32 ? lane + n : lane);
}
template <typename T> MSL_FUNC T simd_shuffle_up(T value, ushort n) {
  uint lane = msl_index() % 32;
  return simd_shuffle(value, lane >= n ? lane - n : lane);
}
#define MSL_SIMD_REDUCE(name, expression)                          \
  template <typename T> MSL_FUNC T name(T result) {                \
    for (uint n = 16; n > 0; n /= 2) {                             \
      T x = simd_shuffle_xor(result, n);                           \
      result = expression;                                         \
    }                                                              \
    return result;                                                 \
  }
MSL_SIMD_REDUCE(simd_sum, T(result + x))
MSL_SIMD_REDUCE(simd_product, T(result * x))
MSL_SIMD_REDUCE(simd_max, metal::max(result, x))
MSL_SIMD_REDUCE(simd_min, metal::min(result, x))
MSL_SIMD_REDUCE(simd_and, T(result & x))
MSL_SIMD_REDUCE(simd_or, T(result | x))
MSL_SIMD_REDUCE(simd_xor, T(result ^ x))
MSL_FUNC bool simd_all(bool value) { return __all_sync(0xffffffffu, value); }
MSL_FUNC bool simd_any(bool value) { return __any_sync(0xffffffffu, value); }
template <typename T> MSL_FUNC T simd_prefix_inclusive_sum(T value) {
  uint lane = msl_index() % 32;
  for (uint n = 1; n < 32; n *= 2) {
    T x = simd_shuffle_up(value, n);
    value = lane >= n ? T(value + x) : value;
  }
  return value;
}
template <typename T> MSL_FUNC T simd_prefix_exclusive_sum(T value) {
  T sum = simd_shuffle_up(simd_prefix_inclusive_sum(value), 1);
  return msl_index() % 32 ? sum : T(0);
}

// ---- 8x8 matrices over a warp, two elements a lane, laid out as MLX's steel kernels take Metal's to be

template <typename T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "only 8x8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  MSL_FUNC explicit simdgroup_matrix(T value) : elements(value) {}
  MSL_FUNC vec<T, 2>& thread_elements() { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <typename T, int R, int C> MSL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, R, C>(value);
}
MSL_FUNC uint msl_row() { uint l = msl_index() % 32; return ((l / 4) & 4) + (l / 2) % 4; }
MSL_FUNC uint msl_column() { uint l = msl_index() % 32; return ((l / 4) & 2) * 2 + (l % 2) * 2; }
MSL_FUNC uint msl_lane_of(uint r, uint c) { return (r & 4) * 4 + (c & 4) * 2 + (r & 3) * 2 + ((c >> 1) & 1); }
template <typename T>
MSL_FUNC void simdgroup_load(simdgroup_matrix<T, 8, 8>& d, const T* source, ulong stride = 8,
                             vec<ulong, 2> origin = vec<ulong, 2>(0), bool transpose = false) {
  for (uint i = 0; i < 2; ++i) {
    uint r = transpose ? msl_column() + i : msl_row(), c = transpose ? msl_row() : msl_column() + i;
    d.elements[i] = source[(origin.y + r) * stride + origin.x + c];
  }
}
template <typename T>
MSL_FUNC void simdgroup_store(const simdgroup_matrix<T, 8, 8>& d, T* target, ulong stride = 8,
                              vec<ulong, 2> origin = vec<ulong, 2>(0), bool transpose = false) {
  for (uint i = 0; i < 2; ++i) {
    uint r = transpose ? msl_column() + i : msl_row(), c = transpose ? msl_row() : msl_column() + i;
    target[(origin.y + r) * stride + origin.x + c] = d.elements[i];
  }
}
template <typename D, typename A, typename B, typename C>
MSL_FUNC void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                            const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c) {
  float x = float(c.elements[0]), y = float(c.elements[1]);
  for (uint k = 0; k < 8; ++k) {
    vec<A, 2> left = simd_shuffle(a.elements, msl_lane_of(msl_row(), k));
    vec<B, 2> right = simd_shuffle(b.elements, msl_lane_of(k, msl_column()));
    x += float(left[k % 2]) * float(right[0]);
    y += float(left[k % 2]) * float(right[1]);
  }
  d.elements = vec<D, 2>(D(x), D(y));
}
template <typename D, typename A, typename B>
MSL_FUNC void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                 const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D, 8, 8>(D(0)));
}

// ---- atomics: MLX's outputs are plain pointers on CUDA, and so is an atomic<T>

enum memory_order { memory_order_relaxed };
template <typename T> using atomic = T;
typedef int atomic_int;
typedef uint atomic_uint;
typedef float atomic_float;
#define MSL_ATOMIC(name, function)                                                          \
  template <typename T> MSL_FUNC T name(T* object, T operand, memory_order) { return function(object, operand); }
MSL_ATOMIC(atomic_exchange_explicit, ::atomicExch)
MSL_ATOMIC(atomic_fetch_add_explicit, ::atomicAdd)
MSL_ATOMIC(atomic_fetch_max_explicit, ::atomicMax)
MSL_ATOMIC(atomic_fetch_min_explicit, ::atomicMin)
MSL_ATOMIC(atomic_fetch_and_explicit, ::atomicAnd)
MSL_ATOMIC(atomic_fetch_or_explicit, ::atomicOr)
MSL_ATOMIC(atomic_fetch_xor_explicit, ::atomicXor)
template <typename T> MSL_FUNC T atomic_fetch_sub_explicit(T* object, T operand, memory_order) {
  return ::atomicAdd(object, T(T(0) - operand));
}
template <typename T> MSL_FUNC T atomic_load_explicit(const T* object, memory_order) { return *(const volatile T*)object; }
template <typename T> MSL_FUNC void atomic_store_explicit(T* object, T desired, memory_order) {
  ::atomicExch(object, desired);
}
template <typename T>
MSL_FUNC bool atomic_compare_exchange_weak_explicit(T* object, T* expected, T desired, memory_order, memory_order) {
  uint before = as_type<uint>(*expected);
  uint found = ::atomicCAS((uint*)object, before, as_type<uint>(desired));
  *expected = as_type<T>(found);
  return found == before;
}

}  // namespace metal
using namespace metal;

#define thread_position_in_grid (msl_group() * msl_size() + msl_thread())
#define thread_position_in_threadgroup (msl_thread())
#define threadgroup_position_in_grid (msl_group())
#define threads_per_threadgroup (msl_size())
#define dispatch_threads_per_threadgroup (msl_size())
#define threadgroups_per_grid (msl_groups())
#define threads_per_grid (msl_groups() * msl_size())
#define grid_size (msl_groups() * msl_size())
#define thread_index_in_threadgroup (msl_index())
#define thread_index_in_simdgroup (msl_index() % 32)
#define simdgroup_index_in_threadgroup (msl_index() / 32)
#define simdgroups_per_threadgroup (msl_count() / 32)
#define dispatch_simdgroups_per_threadgroup (msl_count() / 32)
#define threads_per_simdgroup 32u
#define thread_execution_width 32u
