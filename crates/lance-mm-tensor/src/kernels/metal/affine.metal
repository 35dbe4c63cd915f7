// Matmuls with matrices in MLX's affine format, and lookups of their rows:
//   w[r, k] = scale[r, k / GROUP] * code[r, k] + bias[r, k / GROUP]
// Codes of BITS bits follow each other from the lowest bit of a row's first word, so eight of them take BITS
// bytes. Sums are f32. Reference: AffineWeight in lance-mm-tensor/src/affine.rs.
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;

constant ushort BITS [[function_constant(0)]];
constant ushort GROUP [[function_constant(1)]];
constant ushort ADD [[function_constant(2)]];      // whether there is a bias

// Codes 0 to 7 of the eight that begin at `p`.
inline void codes8(const device uchar* p, thread float* q) {
  if (BITS == 4) {
    const uint word = *(const device uint*)p;
    for (uint i = 0; i < 8; i++) q[i] = float((word >> (4 * i)) & 15u);
  } else if (BITS == 8) {
    for (uint i = 0; i < 8; i++) q[i] = float(p[i]);
  } else if (BITS == 6) {
    for (uint half8 = 0; half8 < 2; half8++) {
      const device uchar* b = p + 3 * half8;
      const uint word = uint(b[0]) | uint(b[1]) << 8 | uint(b[2]) << 16;
      for (uint i = 0; i < 4; i++) q[4 * half8 + i] = float((word >> (6 * i)) & 63u);
    }
  } else if (BITS == 5) {
    const uint low = uint(p[0]) | uint(p[1]) << 8 | uint(p[2]) << 16;
    const uint high = uint(p[2]) >> 4 | uint(p[3]) << 4 | uint(p[4]) << 12;
    for (uint i = 0; i < 4; i++) {
      q[i] = float((low >> (5 * i)) & 31u);
      q[4 + i] = float((high >> (5 * i)) & 31u);
    }
  } else if (BITS == 3) {
    const uint word = uint(p[0]) | uint(p[1]) << 8 | uint(p[2]) << 16;
    for (uint i = 0; i < 8; i++) q[i] = float((word >> (3 * i)) & 7u);
  } else {
    const uint word = uint(p[0]) | uint(p[1]) << 8;
    for (uint i = 0; i < 8; i++) q[i] = float((word >> (2 * i)) & 3u);
  }
}

// Y[m, r] for PASS rows m and eight rows r a threadgroup: a SIMD group takes four rows r, a lane eight
// neighbouring codes of every 256. The bias enters once for eight codes, with the sum of their x.
template <typename T, typename S>
[[kernel]] void affine_matvec(
    const device uchar* words [[buffer(0)]],   // (R, K * BITS / 8) bytes
    const device S* scales [[buffer(1)]],      // (R, K / GROUP)
    const device S* biases [[buffer(2)]],      // (R, K / GROUP)
    const device T* x [[buffer(3)]],           // (M, K)
    const device float* added [[buffer(4)]],   // (R)
    device T* y [[buffer(5)]],                 // (M, R)
    constant uint& M [[buffer(6)]],
    constant uint& R [[buffer(7)]],
    constant uint& K [[buffer(8)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint ROWS = 4, PASS = 4;
  const uint row0 = group.x * 2 * ROWS + simd * ROWS;
  const uint m0 = group.y * PASS;
  const uint n_rows = min(ROWS, R - min(R, row0)), n_x = min(PASS, M - m0);
  const uint bytes = K / 8 * BITS, groups = K / GROUP;
  float sums[PASS][ROWS] = {{0}};
  for (uint k = lane * 8; k < K; k += 32 * 8) {
    float v[PASS][8], total[PASS];
    for (uint m = 0; m < n_x; m++) {
      total[m] = 0;
      for (uint i = 0; i < 8; i++) {
        v[m][i] = float(x[(m0 + m) * K + k + i]);
        total[m] += v[m][i];
      }
    }
    for (uint r = 0; r < n_rows; r++) {
      float q[8];
      codes8(words + (row0 + r) * bytes + k / 8 * BITS, q);
      const uint g = (row0 + r) * groups + k / GROUP;
      const float scale = float(scales[g]), bias = float(biases[g]);
      for (uint m = 0; m < n_x; m++) {
        float dot = 0;
        for (uint i = 0; i < 8; i++) dot += v[m][i] * q[i];
        sums[m][r] += scale * dot + bias * total[m];
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
// of x and of unpacked W at a time lie in threadgroup memory, rows four values longer against bank conflicts.
template <typename T, typename S>
[[kernel]] void affine_matmul(
    const device uchar* words [[buffer(0)]],
    const device S* scales [[buffer(1)]],
    const device S* biases [[buffer(2)]],
    const device T* x [[buffer(3)]],
    const device float* added [[buffer(4)]],
    device T* y [[buffer(5)]],
    constant uint& M [[buffer(6)]],
    constant uint& R [[buffer(7)]],
    constant uint& K [[buffer(8)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint TILE = 32, STRIDE = 36;
  threadgroup float xs[TILE * STRIDE];
  threadgroup float ws[TILE * STRIDE];
  const uint m0 = group.y * TILE, row0 = group.x * TILE;
  const uint bytes = K / 8 * BITS, groups = K / GROUP;
  const uint m_part = simd / 2 * 16, r_part = simd % 2 * 16;
  simdgroup_float8x8 acc[2][2];
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 2; j++) acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

  for (uint k0 = 0; k0 < K; k0 += TILE) {
    // Thread t takes eight values of row t / 4 of both tiles.
    const uint line = t / 4, k = t % 4 * 8;
    const bool in_x = m0 + line < M, in_w = row0 + line < R;
    for (uint i = 0; i < 8; i++)
      xs[line * STRIDE + k + i] = in_x ? float(x[(m0 + line) * K + k0 + k + i]) : 0.0f;
    float q[8] = {0};
    float scale = 0, bias = 0;
    if (in_w) {
      codes8(words + (row0 + line) * bytes + (k0 + k) / 8 * BITS, q);
      const uint g = (row0 + line) * groups + (k0 + k) / GROUP;
      scale = float(scales[g]);
      bias = float(biases[g]);
    }
    for (uint i = 0; i < 8; i++) ws[line * STRIDE + k + i] = scale * q[i] + bias;
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

// OUT[i, k] = W[ids[i], k]; a thread unpacks eight codes.
template <typename T, typename S>
[[kernel]] void affine_rows(
    const device uchar* words [[buffer(0)]],
    const device S* scales [[buffer(1)]],
    const device S* biases [[buffer(2)]],
    const device uint* ids [[buffer(3)]],
    device T* out [[buffer(4)]],
    constant uint& K [[buffer(5)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]]) {
  const uint k = (group.x * 64 + t) * 8;
  if (k < K) {
    const uint row = ids[group.y];
    float q[8];
    codes8(words + row * (K / 8 * BITS) + k / 8 * BITS, q);
    const uint g = row * (K / GROUP) + k / GROUP;
    const float scale = float(scales[g]), bias = float(biases[g]);
    for (uint i = 0; i < 8; i++) out[group.y * K + k + i] = T(scale * q[i] + bias);
  }
}

#define KERNEL(name, T, t, S, s) \
  template [[host_name(#name "_" #t "_" #s)]] [[kernel]] decltype(name<T, S>) name<T, S>;
#define KERNELS(T, t, S, s) \
  KERNEL(affine_matvec, T, t, S, s) KERNEL(affine_matmul, T, t, S, s) KERNEL(affine_rows, T, t, S, s)
#define SCALES(T, t) KERNELS(T, t, float, f32) KERNELS(T, t, half, f16) KERNELS(T, t, bfloat, bf16)
SCALES(float, f32)
SCALES(half, f16)
SCALES(bfloat, bf16)
