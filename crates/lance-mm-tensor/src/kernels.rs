//! Kernels, and the only door to `unsafe` code: matmuls with weights in their stored form, attention, convolutions, norms.
//!
//! Lowest first: `simd`, `output_columns`, `zeros` and `avx512_bf16`; `tile`, `output_stripes`, `pointwise` and `amx`; `vector`;
//! `affine_matrix` and `operands`; then one file for each operation, and `matmul`, which chooses among those of its own.
//! Files named `_cpu` run on any CPU; `metal` makes plans for a GPU.

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
mod conv_cpu;
mod gemm;
#[cfg(all(test, target_os = "linux", not(miri)))]
mod guarded;
mod matmul;
pub mod metal;
mod norm_cpu;
mod operands;
mod output_columns;
#[cfg(target_arch = "x86_64")]
mod output_stripes;
pub(crate) mod peak;
mod pointwise;
mod rope_cpu;
mod rows_cpu;
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "functions compiled for instructions"))]
mod simd;
mod tile;
mod vector;
mod zeros;

pub(crate) use affine_matrix::Affine;
pub(crate) use attention::{Attention, Heads, KeyValues, SingleQuery, attend_single_queries};
pub(crate) use conv_cpu::{Frames, Geometry, add_conv};
pub use gemm::{MatRef, Real, add_matmul};
pub(crate) use matmul::{matmul, matmul_each, matmul_swiglu};
pub(crate) use norm_cpu::{pixel_norm, rms_norm};
pub(crate) use operands::{Addends, Dense, Layer, Matrix, Rows};
pub(crate) use pointwise::swiglu;
pub(crate) use rope_cpu::{Angles, apply_rotary};
pub(crate) use zeros::zeros;
