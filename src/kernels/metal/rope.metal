// Rotary position embedding of [tokens, heads, head_dim]. One thread a rotated pair, or an element that passes through.
#include <metal_stdlib>
using namespace metal;

// The twin of the words in rope.rs.
struct Rope {
  uint tokens;
  uint heads;
  uint head_dim;
  uint half_dim;     // rotated pairs of a head
  uint interleaved;  // pairs are (2i, 2i + 1), not (i, i + half_dim)
  float sign;        // -1 rotates back
};

template <typename T>
[[kernel]] void rope(device const T* x [[buffer(0)]], device const float* cosines [[buffer(1)]],
                     device const float* sines [[buffer(2)]], constant Rope& rope [[buffer(3)]],
                     device T* y [[buffer(4)]], uint index [[thread_position_in_grid]]) {
  const uint half_dim = rope.half_dim, rest = rope.head_dim - 2 * half_dim;
  const uint per_head = half_dim + rest;
  if (index >= rope.tokens * rope.heads * per_head) return;
  const uint line = index / per_head, part = index % per_head, start = line * rope.head_dim;
  if (part >= half_dim) {
    const uint at = start + half_dim + part;
    y[at] = x[at];
    return;
  }
  const uint angle = line / rope.heads * half_dim + part;
  const float c = cosines[angle], s = sines[angle] * rope.sign;
  const uint first = start + (rope.interleaved != 0 ? 2 * part : part);
  const uint second = rope.interleaved != 0 ? first + 1 : first + half_dim;
  const float a = float(x[first]), b = float(x[second]);
  y[first] = T(a * c - b * s);
  y[second] = T(b * c + a * s);
}

#define INSTANTIATE(KERNEL, TYPE, T) \
  template [[host_name(#KERNEL "_" TYPE)]] [[kernel]] decltype(KERNEL<T>) KERNEL<T>;
#define ALL(TYPE, T) \
  INSTANTIATE(rope, TYPE, T)
ALL("f32", float)
ALL("f16", half)
#if defined(__HAVE_BFLOAT__)
ALL("bf16", bfloat)
#endif
