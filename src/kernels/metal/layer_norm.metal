
// Layer normalisation of rows, and its gradient. Statistics are f32 whatever the tensors are. One threadgroup a row.

template <typename T>
[[kernel]] void layer_norm(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                           device const T* bias [[buffer(2)]], constant Norm& norm [[buffer(3)]],
                           device T* y [[buffer(4)]], ROW_ARGUMENTS) {
  threadgroup float parts[32];
  const uint width = norm.width, start = row * width;
  float sum = 0.0f, squares = 0.0f;
  for (uint i = at; i < width; i += threads) sum += float(x[start + i]);
  const float mean = sum_of_all(sum, parts, simd_at, simds, lane) / float(width);
  for (uint i = at; i < width; i += threads) {
    const float distance = float(x[start + i]) - mean;
    squares += distance * distance;
  }
  squares = sum_of_all(squares, parts, simd_at, simds, lane);
  const float r = 1.0f / sqrt(squares / float(width) + norm.eps);
  for (uint i = at; i < width; i += threads) {
    const float add = norm.has_bias != 0 ? float(bias[i]) : 0.0f;
    y[start + i] = T((float(x[start + i]) - mean) * r * float(weight[i]) + add);
  }
}

// With z the normalised row and g = weight * dy: dx = r (g - mean(g) - z mean(g z)).
template <typename T>
[[kernel]] void layer_norm_back(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                                device const T* dy [[buffer(2)]], constant Norm& norm [[buffer(3)]],
                                device T* dx [[buffer(4)]], ROW_ARGUMENTS) {
  threadgroup float parts[32];
  const uint width = norm.width, start = row * width;
  float sum = 0.0f, squares = 0.0f, g_sum = 0.0f, product = 0.0f;
  for (uint i = at; i < width; i += threads) sum += float(x[start + i]);
  const float mean = sum_of_all(sum, parts, simd_at, simds, lane) / float(width);
  for (uint i = at; i < width; i += threads) {
    const float distance = float(x[start + i]) - mean, g = float(weight[i]) * float(dy[start + i]);
    squares += distance * distance;
    g_sum += g;
    product += g * distance;
  }
  squares = sum_of_all(squares, parts, simd_at, simds, lane);
  const float g_mean = sum_of_all(g_sum, parts, simd_at, simds, lane) / float(width);
  const float r = 1.0f / sqrt(squares / float(width) + norm.eps);
  const float z_mean = sum_of_all(product, parts, simd_at, simds, lane) * r / float(width);
  for (uint i = at; i < width; i += threads) {
    const float z = (float(x[start + i]) - mean) * r;
    dx[start + i] = T(r * (float(weight[i]) * float(dy[start + i]) - g_mean - z * z_mean));
  }
}

#define INSTANTIATE(KERNEL, TYPE, T) \
  template [[host_name(#KERNEL "_" TYPE)]] [[kernel]] decltype(KERNEL<T>) KERNEL<T>;
#define ALL(TYPE, T) \
  INSTANTIATE(layer_norm, TYPE, T) \
  INSTANTIATE(layer_norm_back, TYPE, T)
ALL("f32", float)
ALL("f16", half)
#if defined(__HAVE_BFLOAT__)
ALL("bf16", bfloat)
#endif
