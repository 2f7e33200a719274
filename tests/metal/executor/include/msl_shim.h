// msl_shim.h -- enough of the Metal Shading Language's standard library to compile compute kernels as C++ with clang
// (>= 18, for __bf16 arithmetic) and run them on the CPU. No libc/libc++ headers: MSL names must not clash with them.
#pragma once
#define __METAL_VERSION__ 320
#define __HAVE_BFLOAT__ 1
#ifdef MSL_STRICT_AS  // address spaces checked by the compiler, as Metal does
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant const
#define threadgroup
#endif
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))
#define MSL_TG static __attribute__((section("msltg"), used))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef _Float16 half;
typedef __bf16 bfloat;
typedef half float16_t;
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define MAXFLOAT __FLT_MAX__
#define HALF_MAX ((half)65504.0f)
#define M_PI_F 3.14159265358979323846f
#define M_SQRT1_2_F 0.70710678118654752440f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define FLT_MAX __FLT_MAX__
#define FLT_EPSILON __FLT_EPSILON__
#define FOR_COMPONENT(X) \
  X(bool) X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong) X(half) X(bfloat) X(float)
#define DECLV(T)                                      \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
FOR_COMPONENT(DECLV)
struct packed_int3 {
  int x, y, z;
};
struct packed_float3 {
  float x, y, z;
  operator float3() const { return float3{x, y, z}; }
};
// ---- what the runtime gives each simulated thread (runtime.cpp)
struct MslIds {
  uint3 tpig, tgpig, tpitg, tptg, tpg, tgpg;
  uint tiitg, tiisg, sgitg, sgptg;
};
extern "C" const MslIds* msl_ids();
extern "C" void msl_tg_barrier(int line);
extern "C" void msl_simd_barrier();
extern "C" const unsigned char* msl_exchange(const void* v, uint size, ulong* active);  // 32 slots of 64 bytes
extern "C" void msl_error(const char* what);

namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
// ---- traits
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <class T, T v>
struct integral_constant {
  static constexpr T value = v;
  typedef T value_type;
  constexpr operator T() const { return v; }
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;
template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
inline constexpr bool is_same_v = is_same<A, B>::value;
template <class T>
struct remove_cv {
  typedef T type;
};
template <class T>
struct remove_cv<const T> {
  typedef T type;
};
template <class T>
struct remove_reference {
  typedef T type;
};
template <class T>
struct remove_reference<T&> {
  typedef T type;
};
template <bool B, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;
template <class T>
struct is_floating_point : integral_constant<bool, is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>> {
};
template <class T>
struct is_integral : integral_constant<bool, __is_integral(T)> {};
template <class T>
inline constexpr bool is_integral_v = __is_integral(T);
template <class T>
inline constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
struct is_arithmetic : integral_constant<bool, is_integral<T>::value || is_floating_point<T>::value> {};
template <class T>
struct is_empty : integral_constant<bool, __is_empty(T)> {};
template <class A, class B>
struct is_convertible : integral_constant<bool, __is_convertible(A, B)> {};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
struct vec_elements : integral_constant<int, 0> {};
template <class T>
struct _numeric_limits_impl;
template <class T>
struct numeric_limits : _numeric_limits_impl<T> {};
template <class T>
struct __is_valid_simdgroup_type : is_arithmetic<T> {};
#define LIMF(T, MAX, MIN, EPS)                                       \
  template <>                                                        \
  struct _numeric_limits_impl<T> {                                   \
    static constexpr bool is_iec559 = true;                          \
    static constexpr T max() { return (T)MAX; }                      \
    static constexpr T lowest() { return (T) - MAX; }                \
    static constexpr T min() { return (T)MIN; }                      \
    static constexpr T infinity() { return (T)__builtin_inff(); }    \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); } \
    static constexpr T epsilon() { return (T)EPS; }                  \
  };
LIMF(float, __FLT_MAX__, __FLT_MIN__, __FLT_EPSILON__)
LIMF(half, 65504.0f, 6.103515625e-05f, 0.0009765625f)
LIMF(bfloat, 3.38953139e38f, 1.17549435e-38f, 0.0078125f)
#define LIMI(T, MIN, MAX)                         \
  template <>                                     \
  struct _numeric_limits_impl<T> {                \
    static constexpr bool is_iec559 = false;      \
    static constexpr T max() { return MAX; }      \
    static constexpr T min() { return MIN; }      \
    static constexpr T lowest() { return MIN; }   \
    static constexpr T infinity() { return MAX; } \
  };
    LIMI(bool, 0, 1) LIMI(char, -128, 127) LIMI(signed char, -128, 127) LIMI(uchar, 0, 255) LIMI(short, -32768, 32767)
        LIMI(ushort, 0, 65535) LIMI(int, -2147483647 - 1, 2147483647) LIMI(uint, 0, 4294967295u)
            LIMI(long, -9223372036854775807l - 1, 9223372036854775807l) LIMI(ulong, 0, 18446744073709551615ul)
// ---- scalar/vector math, elementwise on every floating type
#define MATH1(N, E)             \
  template <class T>            \
  METAL_FUNC auto N(T x) -> T { \
    return E;                   \
  }
                template <class T>
                METAL_FUNC T msl_f(T x, float (*)(float));
#define EW1(N, B)                                                                                     \
  METAL_FUNC float N(float x) { return B(x); }                                                        \
  METAL_FUNC half N(half x) { return (half)B((float)x); }                                             \
  METAL_FUNC bfloat N(bfloat x) { return (bfloat)B((float)x); }                                       \
  METAL_FUNC float2 N(float2 v) { return float2{B(v.x), B(v.y)}; }                                    \
  METAL_FUNC float3 N(float3 v) { return float3{B(v.x), B(v.y), B(v.z)}; }                            \
  METAL_FUNC float4 N(float4 v) { return float4{B(v.x), B(v.y), B(v.z), B(v.w)}; }                    \
  METAL_FUNC half4 N(half4 v) {                                                                       \
    return half4{(half)B((float)v.x), (half)B((float)v.y), (half)B((float)v.z), (half)B((float)v.w)}; \
  }                                                                                                   \
  template <class I>                                                                                  \
  METAL_FUNC enable_if_t<__is_integral(I), float> N(I x) {                                            \
    return B((float)x);                                                                               \
  }
METAL_FUNC float msl_rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
METAL_FUNC float msl_exp10(float x) { return __builtin_powf(10.f, x); }
METAL_FUNC float msl_sign(float x) { return x > 0 ? 1.f : x < 0 ? -1.f : 0.f; }
METAL_FUNC float msl_fract(float x) { return x - __builtin_floorf(x); }
#define ALL1(X)                                                                                                     \
  X(exp, __builtin_expf)                                                                                            \
  X(exp2, __builtin_exp2f)                                                                                          \
  X(exp10, msl_exp10) X(log, __builtin_logf) X(log2, __builtin_log2f) X(log10, __builtin_log10f)                    \
      X(sqrt, __builtin_sqrtf) X(rsqrt, msl_rsqrt) X(sin, __builtin_sinf) X(cos, __builtin_cosf)                    \
          X(tan, __builtin_tanf) X(tanh, __builtin_tanhf) X(sinh, __builtin_sinhf) X(cosh, __builtin_coshf)         \
              X(asin, __builtin_asinf) X(acos, __builtin_acosf) X(atan, __builtin_atanf) X(floor, __builtin_floorf) \
                  X(ceil, __builtin_ceilf) X(round, __builtin_roundf) X(rint, __builtin_rintf)                      \
                      X(trunc, __builtin_truncf) X(fabs, __builtin_fabsf) X(sign, msl_sign) X(fract, msl_fract)
ALL1(EW1)
#define CMP(T)                                         \
  METAL_FUNC T max(T a, T b) { return a > b ? a : b; } \
  METAL_FUNC T min(T a, T b) { return a < b ? a : b; } \
  METAL_FUNC T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }
CMP(char)
CMP(uchar)
CMP(short) CMP(ushort) CMP(int) CMP(uint) CMP(long) CMP(ulong)
#define CMPF(T)                                                                               \
  METAL_FUNC T max(T a, T b) { return (T)__builtin_fmaxf((float)a, (float)b); }               \
  METAL_FUNC T min(T a, T b) { return (T)__builtin_fminf((float)a, (float)b); }               \
  METAL_FUNC T fmax(T a, T b) { return max(a, b); }                                           \
  METAL_FUNC T fmin(T a, T b) { return min(a, b); }                                           \
  METAL_FUNC T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }                         \
  METAL_FUNC bool isnan(T x) { return x != x; }                                               \
  METAL_FUNC bool isinf(T x) { return __builtin_isinf((float)x); }                            \
  METAL_FUNC T abs(T x) { return (T)__builtin_fabsf((float)x); }                              \
  METAL_FUNC T pow(T a, T b) { return (T)__builtin_powf((float)a, (float)b); }                \
  METAL_FUNC T fma(T a, T b, T c) { return (T)__builtin_fmaf((float)a, (float)b, (float)c); } \
  METAL_FUNC T powr(T a, T b) { return pow(a, b); }                                           \
  METAL_FUNC T fmod(T a, T b) { return (T)__builtin_fmodf((float)a, (float)b); }              \
  METAL_FUNC T atan2(T a, T b) { return (T)__builtin_atan2f((float)a, (float)b); }            \
  METAL_FUNC T mix(T a, T b, T t) { return (T)(a + (b - a) * t); }                            \
  METAL_FUNC T divide(T a, T b) { return (T)(a / b); }
    CMPF(float) CMPF(half) CMPF(bfloat) METAL_FUNC float fmax(float a, half b) {
  return max(a, (float)b);
}
METAL_FUNC float fmax(half a, float b) { return max((float)a, b); }
#define CMPV(V, N)                                      \
  METAL_FUNC V max(V a, V b) {                          \
    for (int i = 0; i < N; i++) a[i] = max(a[i], b[i]); \
    return a;                                           \
  }                                                     \
  METAL_FUNC V min(V a, V b) {                          \
    for (int i = 0; i < N; i++) a[i] = min(a[i], b[i]); \
    return a;                                           \
  }
METAL_FUNC float4 fmax(float4 a, float4 b) {
  for (int i = 0; i < 4; i++) a[i] = max(a[i], b[i]);
  return a;
}
CMPV(float2, 2) CMPV(float4, 4) CMPV(half4, 4) METAL_FUNC float sincos(float x, float& c) {
  c = __builtin_cosf(x);
  return __builtin_sinf(x);
}
METAL_FUNC float sqrt(double x) { return __builtin_sqrtf((float)x); }
METAL_FUNC float log(double x) { return __builtin_logf((float)x); }
METAL_FUNC float exp(double x) { return __builtin_expf((float)x); }
METAL_FUNC int abs(int x) { return x < 0 ? -x : x; }
METAL_FUNC long abs(long x) { return x < 0 ? -x : x; }
METAL_FUNC uint abs(uint x) { return x; }
METAL_FUNC uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
METAL_FUNC uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
METAL_FUNC uint popcount(uint x) { return __builtin_popcount(x); }
METAL_FUNC float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
METAL_FUNC half dot(half4 a, half4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
METAL_FUNC float dot(float2 a, float2 b) { return a.x * b.x + a.y * b.y; }
template <class T>
METAL_FUNC T select(T a, T b, bool c) {
  return c ? b : a;
}
namespace fast {
using metal::clamp;
using metal::cos;
using metal::divide;
using metal::exp;
using metal::exp2;
using metal::log;
using metal::max;
using metal::min;
using metal::pow;
using metal::rsqrt;
using metal::sin;
using metal::sqrt;
using metal::tanh;
}  // namespace fast
namespace precise = fast;
// ---- barriers and simdgroup communication
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
METAL_FUNC mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }
METAL_FUNC void threadgroup_barrier(mem_flags, int line = __builtin_LINE()) { msl_tg_barrier(line); }
METAL_FUNC void simdgroup_barrier(mem_flags) { msl_simd_barrier(); }
template <class T>
METAL_FUNC T msl_slot(const unsigned char* s, uint l) {
  T v;
  __builtin_memcpy(&v, s + 64 * l, sizeof(T));
  return v;
}
template <class T, class F>
METAL_FUNC T msl_reduce(T v, F f) {
  ulong act;
  auto* s = msl_exchange(&v, sizeof(T), &act);
  bool first = true;
  T r = v;
  for (uint l = 0; l < 32; l++)
    if (act >> l & 1) {
      T x = msl_slot<T>(s, l);
      r = first ? x : f(r, x);
      first = false;
    }
  return r;
}
template <class T>
METAL_FUNC T simd_sum(T v) {
  return msl_reduce(v, [](T a, T b) { return (T)(a + b); });
}
template <class T>
METAL_FUNC T simd_product(T v) {
  return msl_reduce(v, [](T a, T b) { return (T)(a * b); });
}
template <class T>
METAL_FUNC T simd_max(T v) {
  return msl_reduce(v, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
METAL_FUNC T simd_min(T v) {
  return msl_reduce(v, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
METAL_FUNC T msl_from(T v, uint src) {
  ulong act;
  auto* s = msl_exchange(&v, sizeof(T), &act);
  if (src > 31) return v;
  if (!(act >> src & 1)) return v;
  return msl_slot<T>(s, src);
}
template <class T>
struct msl_shufflable : is_arithmetic<T> {};
template <>
struct msl_shufflable<uint2> : true_type {};
template <>
struct msl_shufflable<float2> : true_type {};
template <>
struct msl_shufflable<float4> : true_type {};
template <class T>
METAL_FUNC T simd_shuffle(T v, ushort l) {
  return msl_from(v, l);
}
template <class T>
METAL_FUNC T simd_broadcast(T v, ushort l) {
  return msl_from(v, l);
}
template <class T>
METAL_FUNC T simd_broadcast_first(T v) {
  ulong act;
  auto* s = msl_exchange(&v, sizeof(T), &act);
  return msl_slot<T>(s, __builtin_ctzl(act));
}
template <class T>
METAL_FUNC enable_if_t<msl_shufflable<T>::value, T> simd_shuffle_down(T v, ushort d) {
  return msl_from(v, msl_ids()->tiisg + d);
}
template <class T>
METAL_FUNC enable_if_t<msl_shufflable<T>::value, T> simd_shuffle_up(T v, ushort d) {
  return msl_from(v, msl_ids()->tiisg - d);
}
template <class T>
METAL_FUNC T simd_shuffle_xor(T v, ushort m) {
  return msl_from(v, msl_ids()->tiisg ^ m);
}
METAL_FUNC bool simd_any(bool b) { return simd_max((int)b); }
METAL_FUNC bool simd_all(bool b) { return simd_min((int)b); }
template <class T>
METAL_FUNC T simd_prefix_exclusive_sum(T v) {
  ulong act;
  auto* s = msl_exchange(&v, sizeof(T), &act);
  T r = 0;
  for (uint l = 0; l < msl_ids()->tiisg; l++)
    if (act >> l & 1) r += msl_slot<T>(s, l);
  return r;
}
// ---- simdgroup 8x8 matrices: two elements a lane, Apple's lane layout
METAL_FUNC void msl_lane_rc(uint lane, uint& r, uint& c) {
  uint q = lane / 4;
  r = (q & 4) + ((lane / 2) % 4);
  c = (q & 2) * 2 + (lane % 2) * 2;
}
template <class T, int R = 8, int C = 8>
struct simdgroup_matrix {
  typedef vec<T, 2> storage_type;
  storage_type e;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diag) {
    uint r, c;
    msl_lane_rc(msl_ids()->tiisg, r, c);
    e = storage_type{r == c ? diag : (T)0, r == c + 1 ? diag : (T)0};
  }
  storage_type& thread_elements() { return e; }
  const storage_type& thread_elements() const { return e; }
};
template <class T, int R = 8, int C = 8>
METAL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, R, C> m;
  m.e = {v, v};
  return m;
}
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;
template <class T, class P>
METAL_FUNC void simdgroup_load(simdgroup_matrix<T>& m, P p, ulong ld = 8, ulong2 o = ulong2{0, 0}, bool tr = false) {
  uint r, c;
  msl_lane_rc(msl_ids()->tiisg, r, c);
  m.e = tr ? vec<T, 2>{(T)p[(o.y + c) * ld + o.x + r], (T)p[(o.y + c + 1) * ld + o.x + r]}
           : vec<T, 2>{(T)p[(o.y + r) * ld + o.x + c], (T)p[(o.y + r) * ld + o.x + c + 1]};
}
template <class T, class P>
METAL_FUNC void simdgroup_store(simdgroup_matrix<T> m, P p, ulong ld = 8, ulong2 o = ulong2{0, 0}, bool tr = false) {
  uint r, c;
  msl_lane_rc(msl_ids()->tiisg, r, c);
  if (tr) {
    p[(o.y + c) * ld + o.x + r] = m.e.x;
    p[(o.y + c + 1) * ld + o.x + r] = m.e.y;
  } else {
    p[(o.y + r) * ld + o.x + c] = m.e.x;
    p[(o.y + r) * ld + o.x + c + 1] = m.e.y;
  }
}
template <class T>
METAL_FUNC void msl_gather(simdgroup_matrix<T> m, float* out) {
  ulong act;
  auto* s = msl_exchange(&m.e, sizeof(m.e), &act);
  if (act != 0xffffffffull) msl_error("simdgroup matrix op with inactive lanes");
  for (uint l = 0; l < 32; l++) {
    uint r, c;
    msl_lane_rc(l, r, c);
    auto v = msl_slot<vec<T, 2>>(s, l);
    out[r * 8 + c] = (float)v.x;
    out[r * 8 + c + 1] = (float)v.y;
  }
}
template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(simdgroup_matrix<D>& d, simdgroup_matrix<A> a, simdgroup_matrix<B> b,
                                              simdgroup_matrix<C> c) {
  float fa[64], fb[64];
  msl_gather(a, fa);
  msl_gather(b, fb);
  uint r, k;
  msl_lane_rc(msl_ids()->tiisg, r, k);
  float x = (float)c.e.x, y = (float)c.e.y;
  for (int i = 0; i < 8; i++) {
    x += fa[r * 8 + i] * fb[i * 8 + k];
    y += fa[r * 8 + i] * fb[i * 8 + k + 1];
  }
  d.e = vec<D, 2>{(D)x, (D)y};
}
template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(simdgroup_matrix<D>& d, simdgroup_matrix<A> a, simdgroup_matrix<B> b) {
  simdgroup_matrix<D> z = make_filled_simdgroup_matrix<D, 8, 8>((D)0);
  simdgroup_multiply_accumulate(d, a, b, z);
}
// ---- small matrices: columns
template <class T, int C, int R>
struct matrix {
  vec<T, R> c[C];
  matrix() = default;
  METAL_FUNC vec<T, R>& operator[](int i) { return c[i]; }
  METAL_FUNC const vec<T, R>& operator[](int i) const { return c[i]; }
  template <class U>
  METAL_FUNC explicit matrix(const matrix<U, C, R>& o) {
    for (int i = 0; i < C; i++)
      for (int j = 0; j < R; j++) c[i][j] = (T)(float)o.c[i][j];
  }
};
typedef matrix<float, 4, 4> float4x4;
template <class T>
METAL_FUNC vec<T, 4> operator*(vec<T, 4> v, const matrix<T, 4, 4>& m) {
  vec<T, 4> r;
  for (int j = 0; j < 4; j++) {
    T s = 0;
    for (int i = 0; i < 4; i++) s += v[i] * m.c[j][i];
    r[j] = s;
  }
  return r;
}
typedef matrix<half, 4, 4> half4x4;
typedef matrix<bfloat, 4, 4> bfloat4x4;
typedef matrix<float, 2, 4> float2x4;
typedef matrix<half, 2, 4> half2x4;
// ---- atomics (one OS thread runs a dispatch, so plain operations are atomic)
enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T v;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
template <class P, class T>
METAL_FUNC void atomic_store_explicit(P p, T x, memory_order) {
  p->v = x;
}
template <class P>
METAL_FUNC auto atomic_load_explicit(P p, memory_order) {
  return p->v;
}
template <class P, class T>
METAL_FUNC auto atomic_fetch_add_explicit(P p, T x, memory_order) {
  auto o = p->v;
  p->v += x;
  return o;
}
template <class P, class T>
METAL_FUNC auto atomic_fetch_max_explicit(P p, T x, memory_order) {
  auto o = p->v;
  if (x > o) p->v = x;
  return o;
}
}  // namespace metal
template <class T, class F>
METAL_FUNC T as_type(F f) {
  static_assert(sizeof(T) == sizeof(F), "as_type size");
  T t;
  __builtin_memcpy(&t, &f, sizeof(T));
  return t;
}
#include "msl_vectors.h"
// ---- argument binding for the generated trampolines
struct MslPtr {
  void* p;
  template <class T>
  operator T*() const {
    return (T*)(uintptr_t)p;
  }
};
struct MslRef {
  void* p;
  template <class T>
  operator T&() const {
    return *(T*)(uintptr_t)p;
  }
};
typedef uint2 msl_u2;
typedef uint3 msl_u3;
typedef ushort2 msl_s2;
typedef ushort3 msl_s3;
struct MslId {
  msl_u3 v;
  operator uint() const { return v.x; }
  operator ushort() const { return (ushort)v.x; }
  operator msl_u2() const { return v.xy; }
  operator msl_u3() const { return v; }
  operator msl_s2() const { return msl_s2{(ushort)v.x, (ushort)v.y}; }
  operator msl_s3() const { return msl_s3{(ushort)v.x, (ushort)v.y, (ushort)v.z}; }
};
struct MslKernel {
  const char* name;
  const char* args;
  void (*fn)(void** bufs, void** tg);
};
struct MslConst {
  int index;
  void* p;
  uint size;
  bool* defined;
};
