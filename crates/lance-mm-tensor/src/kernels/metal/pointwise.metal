// Value by value. Reference: swiglu() in lance-mm-tensor/src/gate.rs.
#include <metal_stdlib>
using namespace metal;

// OUT = gate / (1 + exp(-gate)) * up, four values a thread.
[[kernel]] void swiglu(
    const device float* gate [[buffer(0)]],    // (N)
    const device float* up [[buffer(1)]],      // (N)
    device float* out [[buffer(2)]],           // (N)
    constant uint& N [[buffer(3)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint t [[thread_index_in_threadgroup]]) {
  const uint first = (group.x * 256 + t) * 4;
  for (uint i = first; i < min(first + 4, N); i++) {
    const float x = gate[i];
    // The power of the negative magnitude neither overflows nor loses what is left.
    const float e = exp(-fabs(x));
    out[i] = x * (x < 0.0f ? e : 1.0f) / (1.0f + e) * up[i];
  }
}
