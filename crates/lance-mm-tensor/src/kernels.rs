//! The only door to `unsafe` code: products of activations with weights that stay in their stored form.

mod affine_cpu;
mod affine_matrix;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_matmul;
mod attention;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "processor instructions")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod columns;
mod conv_cpu;
mod gemm;
#[cfg(all(test, target_os = "linux", not(miri)))]
mod guarded;
mod matmul;
pub mod metal;
mod norm_cpu;
mod operands;
pub(crate) mod peak;
mod pointwise;
mod rope_cpu;
mod rows_cpu;
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "functions compiled for instructions"))]
mod simd;
#[cfg(target_arch = "x86_64")]
mod stripes;
mod tile;
mod vector;
mod zeros;

pub(crate) use affine_matrix::Affine;
pub(crate) use attention::{Attention, Heads, Kept, Single, attend_singly};
pub(crate) use conv_cpu::{Frames, Geometry, add_conv};
pub use gemm::{MatRef, Real, add_matmul};
pub(crate) use matmul::{gated, matmul, matmul_each};
pub(crate) use norm_cpu::{pixel_norm, rms_norm};
pub(crate) use operands::{Addends, Dense, Layer, Matrix, Rows};
pub(crate) use pointwise::swiglu;
pub(crate) use rope_cpu::{Angles, turn};
pub(crate) use zeros::zeros;
