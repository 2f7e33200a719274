// Activations element by element, alone or gating a second tensor, and their gradients.
#include <metal_stdlib>
using namespace metal;

// The twin of the words in gated_act.rs.
struct Act {
  uint count;
  uint kind;   // 0 silu, 1 gelu, 2 gelu by tanh, 3 x sigmoid(1.702 x)
  uint gated;  // multiply with `up`
};

inline float sigmoid(float x) {
  const float e = exp(-min(fabs(x), 100.0f));
  return x >= 0.0f ? 1.0f / (1.0f + e) : e / (1.0f + e);
}

// x σ(inner) and its derivative, for the derivative `slope` of `inner`.
inline float2 gated_by_sigmoid(float x, float inner, float slope) {
  const float s = sigmoid(inner);
  return float2(x * s, s + x * s * (1.0f - s) * slope);
}

// x Φ(x) and Φ(x) + x φ(x), with the polynomial of gated_act/fused.rs: Φ(-a) = exp(-a²/2) t p(t) for t = 1 / (1 + 0.48 a).
inline float2 gelu(float x) {
  const float a = min(fabs(x), 14.0f), t = 1.0f / (1.0f + 0.48f * a);
  float p = 0.053875986f;
  p = fma(p, t, -0.28232154f);
  p = fma(p, t, 0.58469594f);
  p = fma(p, t, -0.54503596f);
  p = fma(p, t, 0.13728483f);
  p = fma(p, t, 0.015247666f);
  p = fma(p, t, 0.1537585f);
  p = fma(p, t, 0.19098559f);
  p = fma(p, t, 0.19150904f);
  const float bell = exp(-0.5f * a * a), tail = bell * t * p;
  const float below = x < 0.0f ? tail : 1.0f - tail;
  return float2(x * below, below + x * bell * 0.3989423f);
}

// The value, and its derivative.
inline float2 activate(uint kind, float x) {
  if (kind == 0) return gated_by_sigmoid(x, x, 1.0f);
  if (kind == 1) return gelu(x);
  if (kind == 3) return gated_by_sigmoid(x, 1.702f * x, 1.702f);
  // (1 + tanh u) / 2 = σ(2 u) with u = √(2/π) (x + 0.044715 x³); beyond 100 nothing changes any more.
  const float twice = 2.0f * 0.7978846f, bounded = clamp(x, -100.0f, 100.0f), square = bounded * bounded;
  return gated_by_sigmoid(x, bounded * (twice + twice * 0.044715f * square), twice + 3.0f * twice * 0.044715f * square);
}

template <typename T>
[[kernel]] void gated_act(device const T* gate [[buffer(0)]], device const T* up [[buffer(1)]],
                          constant Act& act [[buffer(2)]], device T* y [[buffer(3)]],
                          uint index [[thread_position_in_grid]]) {
  if (index >= act.count) return;
  const float value = activate(act.kind, float(gate[index])).x;
  y[index] = T(act.gated != 0 ? value * float(up[index]) : value);
}

// Without `up` d_up is not touched.
template <typename T>
[[kernel]] void gated_act_back(device const T* gate [[buffer(0)]], device const T* up [[buffer(1)]],
                               device const T* dy [[buffer(2)]], constant Act& act [[buffer(3)]],
                               device T* d_gate [[buffer(4)]], device T* d_up [[buffer(5)]],
                               uint index [[thread_position_in_grid]]) {
  if (index >= act.count) return;
  const float2 value = activate(act.kind, float(gate[index]));
  const float g = float(dy[index]);
  if (act.gated != 0) {
    d_up[index] = T(g * value.x);
    d_gate[index] = T(g * value.y * float(up[index]));
  } else {
    d_gate[index] = T(g * value.y);
  }
}

#define INSTANTIATE(KERNEL, TYPE, T) \
  template [[host_name(#KERNEL "_" TYPE)]] [[kernel]] decltype(KERNEL<T>) KERNEL<T>;
#define ALL(TYPE, T) \
  INSTANTIATE(gated_act, TYPE, T) \
  INSTANTIATE(gated_act_back, TYPE, T)
ALL("f32", float)
ALL("f16", half)
#if defined(__HAVE_BFLOAT__)
ALL("bf16", bfloat)
#endif
