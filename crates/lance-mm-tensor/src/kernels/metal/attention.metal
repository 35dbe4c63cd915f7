// softmax(q kᵀ / sqrt(D)) v over ranges of keys, with grouped heads and without a stored mask: query i attends
// to keys first[i] to last[i] - 1, at least one. The softmax is online, tile by tile of keys
// (Milakov and Gimelshein, arXiv:1805.02867), in f32. Reference: attention() in lance-mm-tensor/src/attention.rs.
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;

constant ushort D [[function_constant(0)]];      // width of a head: a multiple of 8, at most 128

// 32 rows of q of one head a threadgroup, eight to each of four SIMD groups; 32 keys at a time. Rows of a
// fragment are scaled by a product with a diagonal, so that nothing depends on which lane holds which element.
template <typename T>
[[kernel]] void attention_tiles(
    const device T* q [[buffer(0)]],           // (H, N, D)
    const device T* k [[buffer(1)]],           // (G, STRIDE, D), the first S rows of each head used
    const device T* v [[buffer(2)]],
    const device uint* first [[buffer(3)]],    // (N)
    const device uint* last [[buffer(4)]],     // (N)
    device T* out [[buffer(5)]],               // (N, H * D)
    constant uint& N [[buffer(6)]],
    constant uint& H [[buffer(7)]],
    constant uint& G [[buffer(8)]],
    constant uint& STRIDE [[buffer(9)]],
    constant float& scale [[buffer(10)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint TILE = 32, ROWS = 8, LINE = 132, SCORES = 36, MAX = 16;
  threadgroup float tile[TILE * LINE];         // rows of q, then of k, then of v, then of the result
  threadgroup float scores[TILE * SCORES];
  threadgroup float factors[TILE * 8];         // an 8 x 8 diagonal a SIMD group
  const uint row0 = group.x * TILE, head = group.y;
  const uint fragments = D / 8;
  const device T* heads_k = k + head / (H / G) * STRIDE * D;
  const device T* heads_v = v + head / (H / G) * STRIDE * D;

  for (uint i = t; i < TILE * D; i += 128) {
    const uint row = row0 + i / D;
    tile[i / D * LINE + i % D] = row < N ? scale * float(q[(head * N + row) * D + i % D]) : 0.0f;
  }
  for (uint i = t; i < TILE * 8; i += 128) factors[i] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 query[MAX], acc[MAX];
  for (uint i = 0; i < fragments; i++) {
    simdgroup_load(query[i], tile + simd * ROWS * LINE + 8 * i, LINE);
    acc[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }

  // Keys that any query of the tile attends to, and those of this lane's query: four lanes share a row.
  uint begin = 0xffffffffu, end = 0;
  for (uint i = 0; i < TILE && row0 + i < N; i++) {
    begin = min(begin, first[row0 + i]);
    end = max(end, last[row0 + i]);
  }
  const uint own = simd * ROWS + lane / 4, part = lane % 4 * 8;
  const bool inside = row0 + own < N;
  const uint own_first = inside ? first[row0 + own] : 0, own_last = inside ? last[row0 + own] : 0;
  float highest = -INFINITY, total = 0;

  for (uint key0 = begin; key0 < end; key0 += TILE) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = t; i < TILE * D; i += 128) {
      const uint key = key0 + i / D;
      tile[i / D * LINE + i % D] = key < end ? float(heads_k[key * D + i % D]) : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    threadgroup float* mine = scores + simd * ROWS * SCORES;
    for (uint j = 0; j < TILE / 8; j++) {
      simdgroup_float8x8 s = make_filled_simdgroup_matrix<float, 8, 8>(0.0f), keys;
      for (uint i = 0; i < fragments; i++) {
        simdgroup_load(keys, tile + 8 * j * LINE + 8 * i, LINE, ulong2(0), true);
        simdgroup_multiply_accumulate(s, query[i], keys, s);
      }
      simdgroup_store(s, mine + 8 * j, SCORES);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = t; i < TILE * D; i += 128) {
      const uint key = key0 + i / D;
      tile[i / D * LINE + i % D] = key < end ? float(heads_v[key * D + i % D]) : 0.0f;
    }
    threadgroup float* row = scores + own * SCORES + part;
    float best = highest;
    for (uint j = 0; j < 8; j++) {
      const uint key = key0 + part + j;
      if (key >= own_first && key < own_last) best = max(best, row[j]);
    }
    best = max(best, simd_shuffle_xor(best, 1));
    best = max(best, simd_shuffle_xor(best, 2));
    // A query without keys so far keeps zeros, whatever they are scaled by.
    const float kept = highest == -INFINITY ? 0.0f : exp(highest - best);
    float sum = 0;
    for (uint j = 0; j < 8; j++) {
      const uint key = key0 + part + j;
      const float weight = key >= own_first && key < own_last ? exp(row[j] - best) : 0.0f;
      row[j] = weight;
      sum += weight;
    }
    sum += simd_shuffle_xor(sum, 1);
    sum += simd_shuffle_xor(sum, 2);
    total = total * kept + sum;
    highest = best;
    if (part == 0) factors[own * 8 + lane / 4] = kept;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 diagonal, weights[TILE / 8], values;
    simdgroup_load(diagonal, factors + simd * 64, 8);
    for (uint j = 0; j < TILE / 8; j++) simdgroup_load(weights[j], mine + 8 * j, SCORES);
    for (uint i = 0; i < fragments; i++) {
      simdgroup_multiply(acc[i], diagonal, acc[i]);
      for (uint j = 0; j < TILE / 8; j++) {
        simdgroup_load(values, tile + 8 * j * LINE + 8 * i, LINE);
        simdgroup_multiply_accumulate(acc[i], weights[j], values, acc[i]);
      }
    }
  }

  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (part == 0) factors[own * 8 + lane / 4] = inside ? 1.0f / total : 0.0f;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 diagonal;
  simdgroup_load(diagonal, factors + simd * 64, 8);
  for (uint i = 0; i < fragments; i++) {
    simdgroup_multiply(acc[i], diagonal, acc[i]);
    simdgroup_store(acc[i], tile + simd * ROWS * LINE + 8 * i, LINE);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = t; i < TILE * D; i += 128) {
    const uint at = row0 + i / D;
    if (at < N) out[at * H * D + head * D + i % D] = T(tile[i / D * LINE + i % D]);
  }
}

// One row of q of one head a threadgroup: SIMD groups take every eighth key, lanes every 32nd channel, and
// what the groups found is put together at the end.
template <typename T>
[[kernel]] void attention_row(
    const device T* q [[buffer(0)]],
    const device T* k [[buffer(1)]],
    const device T* v [[buffer(2)]],
    constant uint* first [[buffer(3)]],        // (N), by value
    constant uint* last [[buffer(4)]],
    device T* out [[buffer(5)]],
    constant uint& N [[buffer(6)]],
    constant uint& H [[buffer(7)]],
    constant uint& G [[buffer(8)]],
    constant uint& STRIDE [[buffer(9)]],
    constant float& scale [[buffer(10)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint SIMDS = 8, CHANNELS = 4;
  threadgroup float highs[SIMDS];
  threadgroup float totals[SIMDS];
  threadgroup float parts[SIMDS * 128];
  const uint row = group.x, head = group.y;
  const device T* heads_k = k + head / (H / G) * STRIDE * D;
  const device T* heads_v = v + head / (H / G) * STRIDE * D;
  float query[CHANNELS], acc[CHANNELS];
  for (uint i = 0; i < CHANNELS; i++) {
    const uint c = lane + 32 * i;
    query[i] = c < D ? scale * float(q[(head * N + row) * D + c]) : 0.0f;
    acc[i] = 0;
  }
  float highest = -INFINITY, total = 0;
  for (uint key = first[row] + simd; key < last[row]; key += SIMDS) {
    float dot = 0;
    for (uint i = 0; i < CHANNELS; i++) {
      const uint c = lane + 32 * i;
      if (c < D) dot += query[i] * float(heads_k[key * D + c]);
    }
    const float score = simd_sum(dot);
    const float best = max(highest, score);
    const float kept = highest == -INFINITY ? 0.0f : exp(highest - best), weight = exp(score - best);
    for (uint i = 0; i < CHANNELS; i++) {
      const uint c = lane + 32 * i;
      if (c < D) acc[i] = acc[i] * kept + weight * float(heads_v[key * D + c]);
    }
    total = total * kept + weight;
    highest = best;
  }
  for (uint i = 0; i < CHANNELS; i++) parts[simd * 128 + lane + 32 * i] = acc[i];
  if (lane == 0) {
    highs[simd] = highest;
    totals[simd] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float best = -INFINITY;
  for (uint i = 0; i < SIMDS; i++) best = max(best, highs[i]);
  for (uint c = t; c < D; c += 32 * SIMDS) {
    float sum = 0, weight = 0;
    for (uint i = 0; i < SIMDS; i++) {
      const float kept = highs[i] == -INFINITY ? 0.0f : exp(highs[i] - best);
      sum += kept * parts[i * 128 + c];
      weight += kept * totals[i];
    }
    out[row * H * D + head * D + c] = T(sum / weight);
  }
}

#define KERNEL(name, T, t) template [[host_name(#name "_" #t)]] [[kernel]] decltype(name<T>) name<T>;
#define KERNELS(name) KERNEL(name, float, f32) KERNEL(name, half, f16) KERNEL(name, bfloat, bf16)
KERNELS(attention_tiles)
KERNELS(attention_row)
