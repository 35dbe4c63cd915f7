// Matmuls with dense matrices in the dtype they are stored in, and lookups of their rows. Sums are f32 whatever the
// dtype of activations. Reference: DenseWeight in lance-mm-tensor/src/dense.rs.
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;

constant ushort ADD [[function_constant(0)]];      // whether there is a bias

// Y[m, r] for PASS rows m and eight rows r a threadgroup: a SIMD group takes four rows r, a lane four neighbouring
// columns of every 128.
template <typename T, typename S>
[[kernel]] void dense_matvec(
    const device S* w [[buffer(0)]],           // (R, K)
    const device T* x [[buffer(1)]],           // (M, K)
    const device float* added [[buffer(2)]],   // (R)
    device T* y [[buffer(3)]],                 // (M, R)
    constant uint& M [[buffer(4)]],
    constant uint& R [[buffer(5)]],
    constant uint& K [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint ROWS = 4, PASS = 4, STEP = 4;
  const uint row0 = group.x * 2 * ROWS + simd * ROWS;
  const uint m0 = group.y * PASS;
  const uint n_rows = min(ROWS, R - min(R, row0)), n_x = min(PASS, M - m0);
  float sums[PASS][ROWS] = {{0}};
  for (uint k = lane * STEP; k < K; k += 32 * STEP) {
    const uint n = min(STEP, K - k);
    float v[PASS][STEP];
    for (uint m = 0; m < n_x; m++)
      for (uint i = 0; i < n; i++) v[m][i] = float(x[(m0 + m) * K + k + i]);
    for (uint r = 0; r < n_rows; r++) {
      const device S* row = w + (row0 + r) * K + k;
      for (uint i = 0; i < n; i++) {
        const float value = float(row[i]);
        for (uint m = 0; m < n_x; m++) sums[m][r] += v[m][i] * value;
      }
    }
  }
  for (uint m = 0; m < n_x; m++) {
    for (uint r = 0; r < n_rows; r++) {
      const float sum = simd_sum(sums[m][r]);
      if (lane == 0) y[(m0 + m) * R + row0 + r] = T(ADD ? sum + added[row0 + r] : sum);
    }
  }
}

// A 32 x 32 tile of Y a threadgroup of four SIMD groups, each a 16 x 16 quarter as 2 x 2 fragments. 32 columns
// of x and of W at a time lie in threadgroup memory, rows four values longer against bank conflicts.
template <typename T, typename S>
[[kernel]] void dense_matmul(
    const device S* w [[buffer(0)]],
    const device T* x [[buffer(1)]],
    const device float* added [[buffer(2)]],
    device T* y [[buffer(3)]],
    constant uint& M [[buffer(4)]],
    constant uint& R [[buffer(5)]],
    constant uint& K [[buffer(6)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint TILE = 32, STRIDE = 36;
  threadgroup float xs[TILE * STRIDE];
  threadgroup float ws[TILE * STRIDE];
  const uint m0 = group.y * TILE, row0 = group.x * TILE;
  const uint m_part = simd / 2 * 16, r_part = simd % 2 * 16;
  simdgroup_float8x8 acc[2][2];
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 2; j++) acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

  for (uint k0 = 0; k0 < K; k0 += TILE) {
    // Neighbouring threads read neighbouring columns.
    for (uint i = t; i < TILE * TILE; i += 128) {
      const uint line = i / TILE, k = i % TILE;
      const bool inside = k0 + k < K;
      xs[line * STRIDE + k] = inside && m0 + line < M ? float(x[(m0 + line) * K + k0 + k]) : 0.0f;
      ws[line * STRIDE + k] = inside && row0 + line < R ? float(w[(row0 + line) * K + k0 + k]) : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint kk = 0; kk < TILE; kk += 8) {
      simdgroup_float8x8 a[2], b[2];
      for (uint i = 0; i < 2; i++) {
        simdgroup_load(a[i], xs + (m_part + 8 * i) * STRIDE + kk, STRIDE);
        simdgroup_load(b[i], ws + (r_part + 8 * i) * STRIDE + kk, STRIDE, ulong2(0), true);
      }
      for (uint i = 0; i < 2; i++)
        for (uint j = 0; j < 2; j++) simdgroup_multiply_accumulate(acc[i][j], a[i], b[j], acc[i][j]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 2; j++)
      simdgroup_store(acc[i][j], xs + (m_part + 8 * i) * STRIDE + r_part + 8 * j, STRIDE);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = t; i < TILE * TILE; i += 128) {
    const uint m = m0 + i / TILE, r = row0 + i % TILE;
    if (m < M && r < R) {
      const float sum = xs[i / TILE * STRIDE + i % TILE];
      y[m * R + r] = T(ADD ? sum + added[r] : sum);
    }
  }
}

// OUT[i, k] = W[ids[i], k].
template <typename T, typename S>
[[kernel]] void dense_rows(
    const device S* w [[buffer(0)]],
    const device uint* ids [[buffer(1)]],
    device T* out [[buffer(2)]],
    constant uint& K [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]]) {
  const uint k = group.x * 64 + t;
  if (k < K) out[group.y * K + k] = T(float(w[ids[group.y] * K + k]));
}

#define KERNEL(name, T, t, S, s) \
  template [[host_name(#name "_" #t "_" #s)]] [[kernel]] decltype(name<T, S>) name<T, S>;
#define KERNELS(T, t, S, s) \
  KERNEL(dense_matvec, T, t, S, s) KERNEL(dense_matmul, T, t, S, s) KERNEL(dense_rows, T, t, S, s)
#define MATRICES(T, t) KERNELS(T, t, float, f32) KERNELS(T, t, half, f16) KERNELS(T, t, bfloat, bf16)
MATRICES(float, f32)
MATRICES(half, f16)
MATRICES(bfloat, bf16)
