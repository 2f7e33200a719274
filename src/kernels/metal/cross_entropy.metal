
// Cross-entropy of rows of logits and its gradient, without a copy of the logits. One threadgroup a row.

// The twin of the words in cross_entropy.rs. A label of -1 does not count.
struct Loss {
  uint vocab;
  float smoothing;
};

// losses: (1 - s) (log_sum - logit of the label) + s (log_sum - mean of the logits), and the log_sums for the gradient.
template <typename T>
[[kernel]] void cross_entropy(device const T* logits [[buffer(0)]], device const int* labels [[buffer(1)]],
                              constant Loss& loss [[buffer(2)]], device float* losses [[buffer(3)]],
                              device float* log_sums [[buffer(4)]], ROW_ARGUMENTS) {
  threadgroup float parts[32];
  const uint vocab = loss.vocab;
  const int label = labels[row];
  if (label < 0) {
    if (at == 0) {
      losses[row] = 0.0f;
      log_sums[row] = 0.0f;
    }
    return;
  }
  device const T* values = logits + ulong(row) * vocab;
  float highest = -3e38f, plain = 0.0f;
  for (uint i = at; i < vocab; i += threads) {
    highest = max(highest, float(values[i]));
    plain += float(values[i]);
  }
  highest = max_of_all(highest, parts, simd_at, simds, lane);
  float sum = 0.0f;
  for (uint i = at; i < vocab; i += threads) sum += exp(float(values[i]) - highest);
  sum = sum_of_all(sum, parts, simd_at, simds, lane);
  plain = sum_of_all(plain, parts, simd_at, simds, lane);
  if (at == 0) {
    const float log_sum = highest + log(sum);
    log_sums[row] = log_sum;
    float found = (1.0f - loss.smoothing) * (log_sum - float(values[label]));
    if (loss.smoothing != 0.0f) found += loss.smoothing * (log_sum - plain / float(vocab));
    losses[row] = found;
  }
}

// factor (softmax - target), for the gradient `factor` of a row's loss.
template <typename T>
[[kernel]] void cross_entropy_back(device const T* logits [[buffer(0)]], device const int* labels [[buffer(1)]],
                                   device const float* log_sums [[buffer(2)]], device const float* factors [[buffer(3)]],
                                   constant Loss& loss [[buffer(4)]], device T* d_logits [[buffer(5)]], ROW_ARGUMENTS) {
  const uint vocab = loss.vocab;
  const int label = labels[row];
  const ulong start = ulong(row) * vocab;
  const float everywhere = loss.smoothing / float(vocab);
  for (uint i = at; i < vocab; i += threads) {
    float slope = 0.0f;
    if (label >= 0) {
      slope = exp(float(logits[start + i]) - log_sums[row]) - everywhere;
      if (int(i) == label) slope -= 1.0f - loss.smoothing;
    }
    d_logits[start + i] = T(slope * factors[row]);
  }
}

#define INSTANTIATE(KERNEL, TYPE, T) \
  template [[host_name(#KERNEL "_" TYPE)]] [[kernel]] decltype(KERNEL<T>) KERNEL<T>;
#define ALL(TYPE, T) \
  INSTANTIATE(cross_entropy, TYPE, T) \
  INSTANTIATE(cross_entropy_back, TYPE, T)
ALL("f32", float)
ALL("f16", half)
#if defined(__HAVE_BFLOAT__)
ALL("bf16", bfloat)
#endif
