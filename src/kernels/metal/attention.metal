// Attention over ragged batches, forward and backward, in memory that grows with the tokens and not with their square.
//
// What a query sees follows from `Problem`: keys from `before` before its own position to `after` after it. Scores and
// sums are f32 whatever the tensors are. Sources: Dao 2023, "FlashAttention-2".
//
//   attend_tile   32 queries of one head at a time, in simdgroup matrices: prompts, training, embeddings
//   attend_row    one query of one head, its keys shared out to simdgroups: decoding, and heads too wide for tiles
//   attend_back_q, attend_back_kv   gradients of one query, of one key and value
#include <metal_stdlib>
using namespace metal;

// Stands for minus infinity, finite so that differences of two stay numbers, also with fast math.
#define LOWEST (-1e30f)
#define NOTHING (-5e29f)

// The twin of `Problem` in attention/metal.rs.
struct Problem {
  uint heads;
  uint group;  // query heads of one key head
  uint head_dim;
  uint before;
  uint after;
  uint bias_width;  // 0 without a bias
  uint keep_log_sums;
  float scale;
};

// The twin of `Span` in attention/metal.rs. The last query sits at the last key.
struct Span {
  uint q_start;
  uint queries;
  uint k_start;
  uint keys;
};

inline uint first_key(uint position, uint before) { return position > before ? position - before : 0; }
inline uint end_of_keys(uint position, uint after, uint keys) { return min(keys, position + after + 1); }
inline bool sees(uint position, uint key, uint before, uint after) {
  return key + before >= position && key <= position + after;
}
// What is added to the score of `key` for the query at `position`.
inline float bias_at(device const float* bias, uint width, uint head, uint position, uint key) {
  return width == 0 ? 0.0f : bias[head * width + width / 2 + key - position];
}

// ---- forward, tiles --------------------------------------------------------------------------------------------

#define TILE_QUERIES 32
#define TILE_KEYS 32
#define TILE_THREADS 128

template <typename T, int D>
[[kernel]] void attend_tile(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const T* v [[buffer(2)]],
    device const float* bias [[buffer(3)]], constant Problem& problem [[buffer(4)]],
    constant Span* spans [[buffer(5)]], device T* out [[buffer(6)]], device float* log_sums [[buffer(7)]],
    uint3 group_at [[threadgroup_position_in_grid]], uint thread_at [[thread_index_in_threadgroup]],
    uint simd_at [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  constexpr int STEP = D + 4;  // of a row of `tile`, against bank conflicts
  constexpr int DIMS = D / 8;
  constexpr int COLUMNS = TILE_KEYS / 8;
  threadgroup T tile[TILE_KEYS * STEP];  // keys, then values

  constant Span& span = spans[group_at.z];
  const uint queries = span.queries, keys = span.keys, dim = problem.head_dim;
  const uint first = group_at.x * TILE_QUERIES;
  if (first >= queries) return;
  const uint head = group_at.y, kv_heads = problem.heads / problem.group;
  const uint kv_step = kv_heads * dim;
  const uint kv_at = span.k_start * kv_step + head / problem.group * dim;

  // Which elements of an 8 x 8 matrix this lane holds: (row, column) and (row, column + 1).
  const uint quad = lane / 4;
  const uint row = (quad & 4) + (lane / 2) % 4, column = (quad & 2) * 2 + (lane % 2) * 2;
  const uint query = first + simd_at * 8 + row;
  const bool real = query < queries;
  const uint position = keys - queries + query;
  const uint q_at = ((span.q_start + query) * problem.heads + head) * dim;

  simdgroup_float8x8 q_part[DIMS], sum[DIMS];
  for (int i = 0; i < DIMS; i++) {
    const uint d = i * 8 + column;
    q_part[i].thread_elements()[0] = real && d < dim ? float(q[q_at + d]) * problem.scale : 0.0f;
    q_part[i].thread_elements()[1] = real && d + 1 < dim ? float(q[q_at + d + 1]) * problem.scale : 0.0f;
    sum[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  float highest = LOWEST, total = 0.0f;

  const uint first_position = keys - queries + first;
  const uint last_position = keys - queries + min(queries, first + TILE_QUERIES) - 1;
  const uint end = end_of_keys(last_position, problem.after, keys);
  const uint begin = first_key(first_position, problem.before) / TILE_KEYS * TILE_KEYS;
  for (uint key_0 = begin; key_0 < end; key_0 += TILE_KEYS) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = thread_at; i < TILE_KEYS * D; i += TILE_THREADS) {
      const uint key = key_0 + i / D, d = i % D;
      tile[i / D * STEP + d] = key < keys && d < dim ? k[kv_at + key * kv_step + d] : T(0.0f);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    simdgroup_float8x8 scores[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) {
      scores[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      for (int i = 0; i < DIMS; i++) {
        simdgroup_float8x8 part;
        part.thread_elements()[0] = float(tile[(j * 8 + column) * STEP + i * 8 + row]);
        part.thread_elements()[1] = float(tile[(j * 8 + column + 1) * STEP + i * 8 + row]);
        simdgroup_multiply_accumulate(scores[j], q_part[i], part, scores[j]);
      }
    }
    float now_highest = highest;
    for (int j = 0; j < COLUMNS; j++) {
      for (int e = 0; e < 2; e++) {
        const uint key = key_0 + j * 8 + column + e;
        float score = LOWEST;
        if (real && key < keys && sees(position, key, problem.before, problem.after)) {
          score = scores[j].thread_elements()[e] + bias_at(bias, problem.bias_width, head, position, key);
        }
        scores[j].thread_elements()[e] = score;
        now_highest = max(now_highest, score);
      }
    }
    // The lanes that hold the same row differ in bits 0 and 3.
    now_highest = max(now_highest, simd_shuffle_xor(now_highest, ushort(1)));
    now_highest = max(now_highest, simd_shuffle_xor(now_highest, ushort(8)));
    const float shrink = exp(highest - now_highest);
    float added = 0.0f;
    for (int j = 0; j < COLUMNS; j++) {
      for (int e = 0; e < 2; e++) {
        const float score = scores[j].thread_elements()[e];
        const float weight = score > NOTHING ? exp(score - now_highest) : 0.0f;
        scores[j].thread_elements()[e] = weight;
        added += weight;
      }
    }
    added += simd_shuffle_xor(added, ushort(1));
    added += simd_shuffle_xor(added, ushort(8));
    total = total * shrink + added;
    highest = now_highest;

    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = thread_at; i < TILE_KEYS * D; i += TILE_THREADS) {
      const uint key = key_0 + i / D, d = i % D;
      tile[i / D * STEP + d] = key < keys && d < dim ? v[kv_at + key * kv_step + d] : T(0.0f);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = 0; i < DIMS; i++) {
      sum[i].thread_elements()[0] *= shrink;
      sum[i].thread_elements()[1] *= shrink;
      for (int j = 0; j < COLUMNS; j++) {
        simdgroup_float8x8 part;
        part.thread_elements()[0] = float(tile[(j * 8 + row) * STEP + i * 8 + column]);
        part.thread_elements()[1] = float(tile[(j * 8 + row) * STEP + i * 8 + column + 1]);
        simdgroup_multiply_accumulate(sum[i], scores[j], part, sum[i]);
      }
    }
  }
  if (!real) return;
  const float factor = total > 0.0f ? 1.0f / total : 0.0f;
  for (int i = 0; i < DIMS; i++) {
    const uint d = i * 8 + column;
    if (d < dim) out[q_at + d] = T(sum[i].thread_elements()[0] * factor);
    if (d + 1 < dim) out[q_at + d + 1] = T(sum[i].thread_elements()[1] * factor);
  }
  if (problem.keep_log_sums != 0 && column == 0) {
    log_sums[(span.q_start + query) * problem.heads + head] = highest + log(total);
  }
}

// ---- forward, one query ----------------------------------------------------------------------------------------

#define ROW_SIMDS 8

// Lane `l` of a simdgroup holds elements l, l + 32, … of a head: N of them.
template <typename T, int N>
[[kernel]] void attend_row(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const T* v [[buffer(2)]],
    device const float* bias [[buffer(3)]], constant Problem& problem [[buffer(4)]],
    constant Span* spans [[buffer(5)]], device T* out [[buffer(6)]], device float* log_sums [[buffer(7)]],
    uint3 group_at [[threadgroup_position_in_grid]], uint thread_at [[thread_index_in_threadgroup]],
    uint simd_at [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float maxima[ROW_SIMDS];
  threadgroup float totals[ROW_SIMDS];
  threadgroup float sums[ROW_SIMDS * N * 32];

  constant Span& span = spans[group_at.z];
  const uint query = group_at.x, head = group_at.y, dim = problem.head_dim;
  if (query >= span.queries) return;
  const uint position = span.keys - span.queries + query;
  const uint kv_step = problem.heads / problem.group * dim;
  const uint kv_at = span.k_start * kv_step + head / problem.group * dim;
  const uint q_at = ((span.q_start + query) * problem.heads + head) * dim;

  float q_part[N], sum[N];
  for (int i = 0; i < N; i++) {
    const uint d = i * 32 + lane;
    q_part[i] = d < dim ? float(q[q_at + d]) * problem.scale : 0.0f;
    sum[i] = 0.0f;
  }
  float highest = LOWEST, total = 0.0f;
  const uint end = end_of_keys(position, problem.after, span.keys);
  for (uint key = first_key(position, problem.before) + simd_at; key < end; key += ROW_SIMDS) {
    const uint at = kv_at + key * kv_step;
    float score = 0.0f;
    for (int i = 0; i < N; i++) {
      const uint d = i * 32 + lane;
      if (d < dim) score += q_part[i] * float(k[at + d]);
    }
    score = simd_sum(score) + bias_at(bias, problem.bias_width, head, position, key);
    const float now_highest = max(highest, score);
    const float shrink = exp(highest - now_highest), weight = exp(score - now_highest);
    for (int i = 0; i < N; i++) {
      const uint d = i * 32 + lane;
      if (d < dim) sum[i] = sum[i] * shrink + weight * float(v[at + d]);
    }
    total = total * shrink + weight;
    highest = now_highest;
  }
  for (int i = 0; i < N; i++) sums[(simd_at * N + i) * 32 + lane] = sum[i];
  if (lane == 0) {
    maxima[simd_at] = highest;
    totals[simd_at] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  highest = LOWEST;
  for (int s = 0; s < ROW_SIMDS; s++) highest = max(highest, maxima[s]);
  total = 0.0f;
  for (int s = 0; s < ROW_SIMDS; s++) total += totals[s] * exp(maxima[s] - highest);
  const float factor = total > 0.0f ? 1.0f / total : 0.0f;
  for (uint d = thread_at; d < dim; d += ROW_SIMDS * 32) {
    float y = 0.0f;
    for (int s = 0; s < ROW_SIMDS; s++) y += sums[s * N * 32 + d] * exp(maxima[s] - highest);
    out[q_at + d] = T(y * factor);
  }
  if (problem.keep_log_sums != 0 && thread_at == 0) {
    log_sums[(span.q_start + query) * problem.heads + head] = highest + log(total);
  }
}

// ---- backward --------------------------------------------------------------------------------------------------

// The gradient of one query of one head; also leaves dot(out, grad), which the keys' gradients need.
template <typename T, int N>
[[kernel]] void attend_back_q(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const T* v [[buffer(2)]],
    device const float* bias [[buffer(3)]], device const T* out [[buffer(4)]], device const T* grad [[buffer(5)]],
    device const float* log_sums [[buffer(6)]], constant Problem& problem [[buffer(7)]],
    constant Span* spans [[buffer(8)]], device T* d_q [[buffer(9)]], device float* deltas [[buffer(10)]],
    uint3 group_at [[threadgroup_position_in_grid]], uint thread_at [[thread_index_in_threadgroup]],
    uint simd_at [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float sums[ROW_SIMDS * N * 32];

  constant Span& span = spans[group_at.z];
  const uint query = group_at.x, head = group_at.y, dim = problem.head_dim;
  if (query >= span.queries) return;
  const uint position = span.keys - span.queries + query;
  const uint kv_step = problem.heads / problem.group * dim;
  const uint kv_at = span.k_start * kv_step + head / problem.group * dim;
  const uint line = (span.q_start + query) * problem.heads + head;

  float q_part[N], grad_part[N], sum[N], delta = 0.0f;
  for (int i = 0; i < N; i++) {
    const uint d = i * 32 + lane;
    q_part[i] = d < dim ? float(q[line * dim + d]) * problem.scale : 0.0f;
    grad_part[i] = d < dim ? float(grad[line * dim + d]) : 0.0f;
    delta += d < dim ? grad_part[i] * float(out[line * dim + d]) : 0.0f;
    sum[i] = 0.0f;
  }
  delta = simd_sum(delta);
  const float log_sum = log_sums[line];
  const uint end = end_of_keys(position, problem.after, span.keys);
  for (uint key = first_key(position, problem.before) + simd_at; key < end; key += ROW_SIMDS) {
    const uint at = kv_at + key * kv_step;
    float score = 0.0f, d_weight = 0.0f;
    for (int i = 0; i < N; i++) {
      const uint d = i * 32 + lane;
      if (d < dim) {
        score += q_part[i] * float(k[at + d]);
        d_weight += grad_part[i] * float(v[at + d]);
      }
    }
    score = simd_sum(score) + bias_at(bias, problem.bias_width, head, position, key);
    d_weight = simd_sum(d_weight);
    const float d_score = exp(score - log_sum) * (d_weight - delta) * problem.scale;
    for (int i = 0; i < N; i++) {
      const uint d = i * 32 + lane;
      if (d < dim) sum[i] += d_score * float(k[at + d]);
    }
  }
  for (int i = 0; i < N; i++) sums[(simd_at * N + i) * 32 + lane] = sum[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint d = thread_at; d < dim; d += ROW_SIMDS * 32) {
    float y = 0.0f;
    for (int s = 0; s < ROW_SIMDS; s++) y += sums[s * N * 32 + d];
    d_q[line * dim + d] = T(y);
  }
  if (thread_at == 0) deltas[line] = delta;
}

// The gradients of one key and value: from every query that sees them, of every query head that shares them.
template <typename T, int N>
[[kernel]] void attend_back_kv(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const T* v [[buffer(2)]],
    device const float* bias [[buffer(3)]], device const T* grad [[buffer(4)]],
    device const float* log_sums [[buffer(5)]], device const float* deltas [[buffer(6)]],
    constant Problem& problem [[buffer(7)]], constant Span* spans [[buffer(8)]],
    device T* d_k [[buffer(9)]], device T* d_v [[buffer(10)]],
    uint3 group_at [[threadgroup_position_in_grid]], uint thread_at [[thread_index_in_threadgroup]],
    uint simd_at [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float k_sums[ROW_SIMDS * N * 32];
  threadgroup float v_sums[ROW_SIMDS * N * 32];

  constant Span& span = spans[group_at.z];
  const uint key = group_at.x, kv_head = group_at.y, dim = problem.head_dim;
  if (key >= span.keys) return;
  const uint kv_at = ((span.k_start + key) * (problem.heads / problem.group) + kv_head) * dim;

  float k_part[N], v_part[N], k_sum[N], v_sum[N];
  for (int i = 0; i < N; i++) {
    const uint d = i * 32 + lane;
    k_part[i] = d < dim ? float(k[kv_at + d]) * problem.scale : 0.0f;
    v_part[i] = d < dim ? float(v[kv_at + d]) : 0.0f;
    k_sum[i] = 0.0f;
    v_sum[i] = 0.0f;
  }
  // A query sees `before` back and `after` ahead: a key is seen by queries `after` back and `before` ahead.
  const uint begin = first_key(key, problem.after), end = end_of_keys(key, problem.before, span.keys);
  const uint skipped = span.keys - span.queries;
  for (uint h = 0; h < problem.group; h++) {
    const uint head = kv_head * problem.group + h;
    for (uint position = max(begin, skipped) + simd_at; position < end; position += ROW_SIMDS) {
      const uint line = (span.q_start + position - skipped) * problem.heads + head;
      float score = 0.0f, d_weight = 0.0f;
      for (int i = 0; i < N; i++) {
        const uint d = i * 32 + lane;
        if (d < dim) {
          score += k_part[i] * float(q[line * dim + d]);
          d_weight += v_part[i] * float(grad[line * dim + d]);
        }
      }
      score = simd_sum(score) + bias_at(bias, problem.bias_width, head, position, key);
      d_weight = simd_sum(d_weight);
      const float weight = exp(score - log_sums[line]);
      const float d_score = weight * (d_weight - deltas[line]) * problem.scale;
      for (int i = 0; i < N; i++) {
        const uint d = i * 32 + lane;
        if (d < dim) {
          k_sum[i] += d_score * float(q[line * dim + d]);
          v_sum[i] += weight * float(grad[line * dim + d]);
        }
      }
    }
  }
  for (int i = 0; i < N; i++) {
    k_sums[(simd_at * N + i) * 32 + lane] = k_sum[i];
    v_sums[(simd_at * N + i) * 32 + lane] = v_sum[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint d = thread_at; d < dim; d += ROW_SIMDS * 32) {
    float dk = 0.0f, dv = 0.0f;
    for (int s = 0; s < ROW_SIMDS; s++) {
      dk += k_sums[s * N * 32 + d];
      dv += v_sums[s * N * 32 + d];
    }
    d_k[kv_at + d] = T(dk);
    d_v[kv_at + d] = T(dv);
  }
}

#define INSTANTIATE(KERNEL, NAME, T, N) \
  template [[host_name(NAME)]] [[kernel]] decltype(KERNEL<T, N>) KERNEL<T, N>;
#define TILES(TYPE, T) \
  INSTANTIATE(attend_tile, "attend_tile_" TYPE "_32", T, 32) \
  INSTANTIATE(attend_tile, "attend_tile_" TYPE "_64", T, 64) \
  INSTANTIATE(attend_tile, "attend_tile_" TYPE "_96", T, 96) \
  INSTANTIATE(attend_tile, "attend_tile_" TYPE "_128", T, 128)
#define ROWS(KERNEL, NAME, TYPE, T) \
  INSTANTIATE(KERNEL, NAME "_" TYPE "_32", T, 1) \
  INSTANTIATE(KERNEL, NAME "_" TYPE "_64", T, 2) \
  INSTANTIATE(KERNEL, NAME "_" TYPE "_128", T, 4)
#define ALL(TYPE, T) \
  TILES(TYPE, T) \
  ROWS(attend_row, "attend_row", TYPE, T) \
  INSTANTIATE(attend_row, "attend_row_" TYPE "_256", T, 8) \
  ROWS(attend_back_q, "attend_back_q", TYPE, T) \
  ROWS(attend_back_kv, "attend_back_kv", TYPE, T)
ALL("f32", float)
ALL("f16", half)
#if defined(__HAVE_BFLOAT__)
ALL("bf16", bfloat)
#endif
