// RMS norms of tokens, and of heads together with rotary. Arithmetic is f32; weights, cosines
// and sines are f32 whatever the activations are.
// References: RmsNorm in lance-mm-tensor/src/norm.rs, RotaryTable in rope.rs.
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;

// Y[t, :] = x[t, :] / sqrt(mean(x[t, :]^2) + eps) * w, one threadgroup a row.
template <typename T>
[[kernel]] void rms_norm(
    const device T* x [[buffer(0)]],           // (T, D)
    const device float* w [[buffer(1)]],       // (D)
    device T* y [[buffer(2)]],                 // (T, D)
    constant uint& D [[buffer(3)]],
    constant float& eps [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]],
    uint3 threads [[threads_per_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float parts[32];
  const device T* row = x + group.x * D;
  float sum = 0;
  for (uint i = t; i < D; i += threads.x) {
    const float v = float(row[i]);
    sum += v * v;
  }
  sum = simd_sum(sum);
  if (lane == 0) parts[simd] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0;
  for (uint i = 0; i < threads.x / 32; i++) total += parts[i];
  const float r = rsqrt(total / float(D) + eps);
  for (uint i = t; i < D; i += threads.x) y[group.x * D + i] = T(float(row[i]) * r * w[i]);
}

constant ushort NORM [[function_constant(0)]];     // weights of the norm: none is no norm

// Heads (T, H, D) to (H, T, D): normalized over D (tokens FIRST to LAST - 1 with the second weight, if there are two), then
// channels j and j + D/2 rotated by the angle of token t and pair j. One SIMD group a head.
template <typename T>
[[kernel]] void norm_rope(
    const device T* x [[buffer(0)]],           // (T, H, D)
    const device float* w [[buffer(1)]],       // (D)
    const device float* other [[buffer(2)]],   // (D)
    const device float* cosines [[buffer(3)]], // (T, D/2)
    const device float* sines [[buffer(4)]],   // (T, D/2)
    device T* y [[buffer(5)]],                 // (H, T, D)
    constant uint& N [[buffer(6)]],            // rows T
    constant uint& H [[buffer(7)]],
    constant uint& D [[buffer(8)]],
    constant float& eps [[buffer(9)]],
    constant uint& FIRST [[buffer(10)]],
    constant uint& LAST [[buffer(11)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint SIMDS = 4;
  const uint head = group.x * SIMDS + simd;
  if (head < N * H) {
    const uint t = head / H, h = head % H, pairs = D / 2;
    const device T* row = x + head * D;
    float r = 1;
    if (NORM) {
      float sum = 0;
      for (uint i = lane; i < D; i += 32) {
        const float v = float(row[i]);
        sum += v * v;
      }
      r = rsqrt(simd_sum(sum) / float(D) + eps);
    }
    const device float* weight = NORM == 2 && t >= FIRST && t < LAST ? other : w;
    device T* out = y + (h * N + t) * D;
    for (uint j = lane; j < pairs; j += 32) {
      float a = float(row[j]), b = float(row[j + pairs]);
      if (NORM) {
        a *= r * weight[j];
        b *= r * weight[j + pairs];
      }
      const float c = cosines[t * pairs + j], s = sines[t * pairs + j];
      out[j] = T(a * c - b * s);
      out[j + pairs] = T(b * c + a * s);
    }
  }
}

constant ushort SILU [[function_constant(1)]];

// Y[p, :] = x[p, :] / max(|x[p, :]|, 1e-12) * sqrt(C) * gamma, then v / (1 + exp(-v)) when SILU. One SIMD group a pixel.
// Reference: PixelNorm in lance-mm-tensor/src/pixel_norm.rs.
[[kernel]] void pixel_norm(
    const device float* x [[buffer(0)]],       // (P, C)
    const device float* gamma [[buffer(1)]],   // (C)
    device float* y [[buffer(2)]],             // (P, C)
    constant uint& P [[buffer(3)]],
    constant uint& C [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint simd [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint SIMDS = 4;
  const uint p = group.x * SIMDS + simd;
  if (p < P) {
    float sum = 0;
    for (uint i = lane; i < C; i += 32) {
      const float v = x[p * C + i];
      sum += v * v;
    }
    const float factor = sqrt(float(C)) / max(sqrt(simd_sum(sum)), 1e-12f);
    for (uint i = lane; i < C; i += 32) {
      const float v = x[p * C + i] * factor * gamma[i];
      y[p * C + i] = SILU ? v / (1.0f + exp(-v)) : v;
    }
  }
}

#define KERNEL(name, T, t) template [[host_name(#name "_" #t)]] [[kernel]] decltype(name<T>) name<T>;
#define KERNELS(name) KERNEL(name, float, f32) KERNEL(name, half, f16) KERNEL(name, bfloat, bf16)
KERNELS(rms_norm)
KERNELS(norm_rope)
