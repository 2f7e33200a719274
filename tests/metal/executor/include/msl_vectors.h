// msl_vectors.h -- Metal's constructors and casts of vectors, on clang's builtin vectors. Part of msl_shim.h.
#pragma once
// ---- constructor syntax: float4(a, b, c, d), float4(s), float4(v2, v2), half4(f4) ... on clang's builtin vectors
template <class V, class T, int N, class... A>
METAL_FUNC V msl_make(A... a);
template <class X>
struct msl_n {
  static constexpr int v = 1;
};
#define DECLN(T)                \
  template <>                   \
  struct msl_n<T##2> {          \
    static constexpr int v = 2; \
  };                            \
  template <>                   \
  struct msl_n<T##3> {          \
    static constexpr int v = 3; \
  };                            \
  template <>                   \
  struct msl_n<T##4> {          \
    static constexpr int v = 4; \
  };
FOR_COMPONENT(DECLN)
template <class V, class T, class A>
METAL_FUNC void msl_put(V& v, int& i, int n, A a) {
  if constexpr (msl_n<A>::v == 1) {
    v[i++] = (T)a;
  } else {
    for (int k = 0; k < msl_n<A>::v; k++) v[i++] = (T)a[k];
  }
}
template <class V, class T, int N, class... A>
METAL_FUNC V msl_make(A... a) {
  V v = (V)(T)0;
  int i = 0;
  if constexpr (sizeof...(A) == 0)
    return v;
  else {
    (msl_put<V, T>(v, i, N, a), ...);
    if (sizeof...(A) == 1 && i == 1)
      for (; i < N; i++) v[i] = v[0];
    return v;
  }
}
#define MAKEV(T)                       \
  template <class... A>                \
  METAL_FUNC T##2 msl_##T##2(A... a) { \
    return msl_make<T##2, T, 2>(a...); \
  }                                    \
  template <class... A>                \
  METAL_FUNC T##3 msl_##T##3(A... a) { \
    return msl_make<T##3, T, 3>(a...); \
  }                                    \
  template <class... A>                \
  METAL_FUNC T##4 msl_##T##4(A... a) { \
    return msl_make<T##4, T, 4>(a...); \
  }
FOR_COMPONENT(MAKEV)
#define bool2(...) msl_bool2(__VA_ARGS__)
#define bool3(...) msl_bool3(__VA_ARGS__)
#define bool4(...) msl_bool4(__VA_ARGS__)
#define char2(...) msl_char2(__VA_ARGS__)
#define char3(...) msl_char3(__VA_ARGS__)
#define char4(...) msl_char4(__VA_ARGS__)
#define uchar2(...) msl_uchar2(__VA_ARGS__)
#define uchar3(...) msl_uchar3(__VA_ARGS__)
#define uchar4(...) msl_uchar4(__VA_ARGS__)
#define short2(...) msl_short2(__VA_ARGS__)
#define short3(...) msl_short3(__VA_ARGS__)
#define short4(...) msl_short4(__VA_ARGS__)
#define ushort2(...) msl_ushort2(__VA_ARGS__)
#define ushort3(...) msl_ushort3(__VA_ARGS__)
#define ushort4(...) msl_ushort4(__VA_ARGS__)
#define int2(...) msl_int2(__VA_ARGS__)
#define int3(...) msl_int3(__VA_ARGS__)
#define int4(...) msl_int4(__VA_ARGS__)
#define uint2(...) msl_uint2(__VA_ARGS__)
#define uint3(...) msl_uint3(__VA_ARGS__)
#define uint4(...) msl_uint4(__VA_ARGS__)
#define long2(...) msl_long2(__VA_ARGS__)
#define long3(...) msl_long3(__VA_ARGS__)
#define long4(...) msl_long4(__VA_ARGS__)
#define ulong2(...) msl_ulong2(__VA_ARGS__)
#define ulong3(...) msl_ulong3(__VA_ARGS__)
#define ulong4(...) msl_ulong4(__VA_ARGS__)
#define half2(...) msl_half2(__VA_ARGS__)
#define half3(...) msl_half3(__VA_ARGS__)
#define half4(...) msl_half4(__VA_ARGS__)
#define bfloat2(...) msl_bfloat2(__VA_ARGS__)
#define bfloat3(...) msl_bfloat3(__VA_ARGS__)
#define bfloat4(...) msl_bfloat4(__VA_ARGS__)
#define float2(...) msl_float2(__VA_ARGS__)
#define float3(...) msl_float3(__VA_ARGS__)
#define float4(...) msl_float4(__VA_ARGS__)
template <class T, class F>
METAL_FUNC constexpr T msl_cast(F&& x) {  // static_cast; half <-> bfloat goes through float, which clang refuses
  using U = metal::remove_cv_t<metal::remove_reference_t<F>>;
  if constexpr ((__is_same(T, half) && __is_same(U, bfloat)) || (__is_same(T, bfloat) && __is_same(U, half)))
    return (T)(float)x;
  else
    return (T)x;
}
template <class V>
struct msl_to {};
template <class T, int N>
struct msl_to<T __attribute__((ext_vector_type(N)))> {  // (float4)v with conversion
  template <class F>
  METAL_FUNC auto operator->*(F x) const {
    if constexpr (msl_n<F>::v == 1)
      return (vec_t)((T)x);
    else
      return __builtin_convertvector(x, vec_t);
  }
  typedef T vec_t __attribute__((ext_vector_type(N)));
};
template <class R, class D, class S>
METAL_FUNC void msl_copy(D d, S s) {
  for (uint i = 0; i < sizeof(R) / sizeof(d[0]); i++) d[i] = s[i];
}
