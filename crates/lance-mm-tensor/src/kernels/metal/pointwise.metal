// Pointwise operations, in f32 whatever the dtype. Reference: swiglu() in lance-mm-tensor/src/swiglu.rs.
#include <metal_stdlib>
using namespace metal;

// OUT = gate / (1 + exp(-gate)) * up, four values a thread.
template <typename T>
[[kernel]] void swiglu(
    const device T* gate [[buffer(0)]],        // (N)
    const device T* up [[buffer(1)]],          // (N)
    device T* out [[buffer(2)]],               // (N)
    constant uint& N [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]]) {
  const uint first = (group.x * 256 + t) * 4;
  for (uint i = first; i < min(first + 4, N); i++) {
    const float x = float(gate[i]);
    // The exponential of the negative magnitude neither overflows nor cancels.
    const float e = exp(-fabs(x));
    out[i] = T(x * (x < 0.0f ? e : 1.0f) / (1.0f + e) * float(up[i]));
  }
}

#define KERNEL(name, T, t) template [[host_name(#name "_" #t)]] [[kernel]] decltype(name<T>) name<T>;
#define KERNELS(name) KERNEL(name, float, f32) KERNEL(name, half, f16) KERNEL(name, bfloat, bf16)
KERNELS(swiglu)
