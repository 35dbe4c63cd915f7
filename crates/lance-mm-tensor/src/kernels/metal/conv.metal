// Convolutions of frames with channels last, as matmuls whose left operand is read in place: pixels under the filters
// are not copied. Sums are f32. Reference: Conv in lance-mm-tensor/src/conv.rs.
#include <metal_stdlib>
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;

constant ushort TAPS [[function_constant(0)]];     // frames given: 1 to 3

// A tile of 32 positions and 32 filters a threadgroup of four SIMD groups, each a 16 x 16 quarter as 2 x 2
// fragments; 32 values under the filters at a time.
template <typename S>
[[kernel]] void conv(
    const device S* w [[buffer(0)]],           // (R, FILTER): of the frames under a filter the last TAPS are read
    const device float* bias [[buffer(1)]],    // (R)
    const device float* now [[buffer(2)]],     // (H, W, C): the newest frame,
    const device float* before1 [[buffer(3)]], // the one before it,
    const device float* before2 [[buffer(4)]], // and the one before that
    device float* y [[buffer(5)]],             // (P, R)
    constant uint& H [[buffer(6)]],
    constant uint& W [[buffer(7)]],
    constant uint& C [[buffer(8)]],
    constant uint& ROWS [[buffer(9)]],         // of a filter
    constant uint& COLUMNS [[buffer(10)]],
    constant uint& STRIDE [[buffer(11)]],
    constant uint& BORDER [[buffer(12)]],      // rows and columns of zeros before the first
    constant uint& ZOOM [[buffer(13)]],
    constant uint& WIDTH [[buffer(14)]],       // positions in a row
    constant uint& P [[buffer(15)]],           // positions
    constant uint& R [[buffer(16)]],
    constant uint& FILTER [[buffer(17)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]],
    uint simd [[simdgroup_index_in_threadgroup]]) {
  constexpr uint TILE = 32, LINE = 36;
  threadgroup float xs[TILE * LINE];
  threadgroup float ws[TILE * LINE];
  const uint p0 = group.y * TILE, row0 = group.x * TILE;
  const uint p_part = simd / 2 * 16, r_part = simd % 2 * 16;
  const uint area = ROWS * COLUMNS * C, K = TAPS * area;
  simdgroup_float8x8 acc[2][2];
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 2; j++) acc[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

  for (uint k0 = 0; k0 < K; k0 += TILE) {
    // A thread stays with one value under the filters; its positions are four apart.
    const uint k = k0 + t % TILE;
    const uint tap = k / area, under = k % area, cell = under / C, channel = under % C;
    const device float* frame = tap + 1 == TAPS ? now : tap + 2 == TAPS ? before1 : before2;
    for (uint line = t / TILE; line < TILE; line += 4) {
      const uint p = p0 + line;
      const uint row = p / WIDTH * STRIDE + cell / COLUMNS, column = p % WIDTH * STRIDE + cell % COLUMNS;
      float value = 0;
      if (k < K && p < P && row >= BORDER && column >= BORDER) {
        const uint r = (row - BORDER) / ZOOM, c = (column - BORDER) / ZOOM;
        if (r < H && c < W) value = frame[(r * W + c) * C + channel];
      }
      xs[line * LINE + t % TILE] = value;
      const bool in_w = k < K && row0 + line < R;
      ws[line * LINE + t % TILE] = in_w ? float(w[(row0 + line) * FILTER + FILTER - K + k]) : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint kk = 0; kk < TILE; kk += 8) {
      simdgroup_float8x8 a[2], b[2];
      for (uint i = 0; i < 2; i++) {
        simdgroup_load(a[i], xs + (p_part + 8 * i) * LINE + kk, LINE);
        simdgroup_load(b[i], ws + (r_part + 8 * i) * LINE + kk, LINE, ulong2(0), true);
      }
      for (uint i = 0; i < 2; i++)
        for (uint j = 0; j < 2; j++) simdgroup_multiply_accumulate(acc[i][j], a[i], b[j], acc[i][j]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (uint i = 0; i < 2; i++)
    for (uint j = 0; j < 2; j++)
      simdgroup_store(acc[i][j], xs + (p_part + 8 * i) * LINE + r_part + 8 * j, LINE);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = t; i < TILE * TILE; i += 128) {
    const uint p = p0 + i / TILE, r = row0 + i % TILE;
    if (p < P && r < R) y[p * R + r] = xs[i / TILE * LINE + i % TILE] + bias[r];
  }
}

#define KERNEL(name, S, s) template [[host_name(#name "_" #s)]] [[kernel]] decltype(name<S>) name<S>;
KERNEL(conv, float, f32)
KERNEL(conv, half, f16)
KERNEL(conv, bfloat, bf16)
