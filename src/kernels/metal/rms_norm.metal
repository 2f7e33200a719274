
// Root-mean-square normalisation of rows, alone or after adding a residual, and its gradient. Statistics are f32
// whatever the tensors are. One threadgroup a row.

template <typename T>
[[kernel]] void rms_norm(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                         constant Norm& norm [[buffer(2)]], device T* y [[buffer(3)]], ROW_ARGUMENTS) {
  threadgroup float parts[32];
  const uint width = norm.width, start = row * width;
  float squares = 0.0f;
  for (uint i = at; i < width; i += threads) squares += float(x[start + i]) * float(x[start + i]);
  squares = sum_of_all(squares, parts, simd_at, simds, lane);
  const float r = 1.0f / sqrt(squares / float(width) + norm.eps);
  for (uint i = at; i < width; i += threads) y[start + i] = T(float(x[start + i]) * r * float(weight[i]));
}

// y: [2, rows, width], the sum and then what it is normalised to.
template <typename T>
[[kernel]] void add_rms_norm(device const T* x [[buffer(0)]], device const T* residual [[buffer(1)]],
                             device const T* weight [[buffer(2)]], constant Norm& norm [[buffer(3)]],
                             device T* y [[buffer(4)]], ROW_ARGUMENTS) {
  threadgroup float parts[32];
  const uint width = norm.width, start = row * width, second = norm.rows * width;
  float squares = 0.0f;
  for (uint i = at; i < width; i += threads) {
    // What is normalised is what was stored, rounded as it is.
    const T sum = T(float(x[start + i]) + float(residual[start + i]));
    y[start + i] = sum;
    squares += float(sum) * float(sum);
  }
  squares = sum_of_all(squares, parts, simd_at, simds, lane);
  const float r = 1.0f / sqrt(squares / float(width) + norm.eps);
  for (uint i = at; i < width; i += threads) {
    const T sum = T(float(x[start + i]) + float(residual[start + i]));
    y[second + start + i] = T(float(sum) * r * float(weight[i]));
  }
}

// With r = 1 / sqrt(mean(x²) + eps) and g = weight * dy: dx = r g - x r³ mean(x g).
template <typename T>
[[kernel]] void rms_norm_back(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                              device const T* dy [[buffer(2)]], constant Norm& norm [[buffer(3)]],
                              device T* dx [[buffer(4)]], ROW_ARGUMENTS) {
  threadgroup float parts[32];
  const uint width = norm.width, start = row * width;
  float squares = 0.0f, product = 0.0f;
  for (uint i = at; i < width; i += threads) {
    const float value = float(x[start + i]);
    squares += value * value;
    product += value * float(weight[i]) * float(dy[start + i]);
  }
  squares = sum_of_all(squares, parts, simd_at, simds, lane);
  product = sum_of_all(product, parts, simd_at, simds, lane);
  const float r = 1.0f / sqrt(squares / float(width) + norm.eps);
  const float back = r * r * r * product / float(width);
  for (uint i = at; i < width; i += threads) {
    dx[start + i] = T(r * float(weight[i]) * float(dy[start + i]) - float(x[start + i]) * back);
  }
}

#define INSTANTIATE(KERNEL, TYPE, T) \
  template [[host_name(#KERNEL "_" TYPE)]] [[kernel]] decltype(KERNEL<T>) KERNEL<T>;
#define ALL(TYPE, T) \
  INSTANTIATE(rms_norm, TYPE, T) \
  INSTANTIATE(add_rms_norm, TYPE, T) \
  INSTANTIATE(rms_norm_back, TYPE, T)
ALL("f32", float)
ALL("f16", half)
#if defined(__HAVE_BFLOAT__)
ALL("bf16", bfloat)
#endif
