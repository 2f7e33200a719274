// What shaders that work on rows begin with: sums and maxima over a threadgroup, the arguments they share.
#include <metal_stdlib>
using namespace metal;

// The sum of `x` over the threads of a threadgroup, for each of them. `parts` has room for one number per simdgroup and
// may be used again at once.
inline float sum_of_all(float x, threadgroup float* parts, uint simd_at, uint simds, uint lane) {
  x = simd_sum(x);
  if (lane == 0) parts[simd_at] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x = simd_sum(lane < simds ? parts[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return x;
}

inline float max_of_all(float x, threadgroup float* parts, uint simd_at, uint simds, uint lane) {
  x = simd_max(x);
  if (lane == 0) parts[simd_at] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x = simd_max(lane < simds ? parts[lane] : -3e38f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return x;
}

#define ROW_ARGUMENTS \
  uint row [[threadgroup_position_in_grid]], uint at [[thread_index_in_threadgroup]], \
  uint threads [[threads_per_threadgroup]], uint simd_at [[simdgroup_index_in_threadgroup]], \
  uint simds [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]

// The twin of `Rows::words` in norms.rs.
struct Norm {
  uint width;
  uint rows;
  uint has_bias;
  float eps;
};
