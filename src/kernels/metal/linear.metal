// A few rows of activations times a matrix: y = x Wᵀ. Sums are f32 whatever the tensors are, where candle's kernel for a
// single row of f16 adds up in f16. Each simdgroup takes one output of one row.
#include <metal_stdlib>
using namespace metal;

// The twin of the words in linear.rs.
struct Linear {
  uint inn;
  uint out;
};

#define SIMDS 8

template <typename T>
[[kernel]] void linear_row(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                           constant Linear& linear [[buffer(2)]], device T* y [[buffer(3)]],
                           uint3 group_at [[threadgroup_position_in_grid]],
                           uint simd_at [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  const uint inn = linear.inn, out = group_at.x * SIMDS + simd_at, row = group_at.y;
  if (out >= linear.out) return;
  device const T* from = x + row * inn;
  device const T* with = weight + ulong(out) * inn;
  float sum = 0.0f, second = 0.0f;
  uint i = lane * 4;
  for (; i + 3 < inn; i += 128) {
    sum = fma(float(from[i]), float(with[i]), sum);
    second = fma(float(from[i + 1]), float(with[i + 1]), second);
    sum = fma(float(from[i + 2]), float(with[i + 2]), sum);
    second = fma(float(from[i + 3]), float(with[i + 3]), second);
  }
  // What is left is less than four elements, of one lane.
  for (; i < inn; i++) sum = fma(float(from[i]), float(with[i]), sum);
  sum = simd_sum(sum + second);
  if (lane == 0) y[row * linear.out + out] = T(sum);
}

#define INSTANTIATE(KERNEL, TYPE, T) \
  template [[host_name(#KERNEL "_" TYPE)]] [[kernel]] decltype(KERNEL<T>) KERNEL<T>;
INSTANTIATE(linear_row, "f32", float)
INSTANTIATE(linear_row, "f16", half)
#if defined(__HAVE_BFLOAT__)
INSTANTIATE(linear_row, "bf16", bfloat)
#endif
