//! Matmuls with matrices in MLX's affine format, and lookups of their rows; kernels in `affine.metal`.
//!
//! ```text
//! matvec    a threadgroup: 8 rows of W x 4 tokens; a SIMD group has 4 rows, a lane 8 codes of every 256
//! matmul    a threadgroup: 32 rows of W x 32 tokens, in 4 SIMD groups of 16 x 16, each 2 x 2 fragments of 8 x 8;
//!           32 columns of x and of unpacked W at a time in threadgroup memory (9 kB)
//! lookup    a thread: 8 codes
//! ```

use super::{KernelArg, KernelPlan, KernelSource, size, type_name};
use crate::dtype::FloatType;
use crate::scheme::{QuantMode, Scheme};

pub(super) static SOURCE: KernelSource = KernelSource { name: "affine", text: include_str!("affine.metal") };

/// Most tokens of the matrix-vector kernel; with more, tiles of the matrix are unpacked once for 32 tokens.
// A bound, not measured: fragments of eight tokens would be half empty below it.
const MATVEC_ROWS: usize = 8;
/// Tokens that one pass of the matrix-vector kernel keeps in registers.
// 4 x 4 sums and 4 x 8 activations of a lane; not measured.
const PASS: usize = 4;
/// Rows of the matrix of one threadgroup of the matrix-vector kernel.
// Two SIMD groups of four rows.
const MATVEC_TILE: usize = 8;
/// Tokens, and rows of the matrix, of one tile of the matmul kernel.
// Four SIMD groups of 2 x 2 fragments.
const TILE: usize = 32;
/// Codes that one thread unpacks at a time.
// Eight codes are whole bytes for every width.
const CODES: usize = 8;

/// A matrix `(R, K)` on the device: inputs 0 to 2 of every plan are words, scales and biases.
#[derive(Clone, Copy, Debug)]
pub struct AffineShape {
    scheme: Scheme,
    rows: usize,
    cols: usize,
    scales: FloatType,
}

impl AffineShape {
    /// A matrix of `rows` rows and `cols` columns with scales and biases of dtype `scales`.
    ///
    /// # Panics
    /// When columns are not whole groups or the mode is not affine.
    pub fn new(scheme: Scheme, rows: usize, cols: usize, scales: FloatType) -> Self {
        assert_eq!(scheme.mode(), QuantMode::Affine, "kernels of this file");
        assert!(cols > 0 && cols.is_multiple_of(scheme.group_size()), "columns are whole groups");
        Self { scheme, rows, cols, scales }
    }

    fn plan(
        &self,
        kernel: &str,
        x: FloatType,
        groups: [usize; 3],
        threads: usize,
        args: Vec<KernelArg>,
    ) -> KernelPlan {
        let add = args.contains(&KernelArg::Input(4));
        let constant = |n: usize| u16::try_from(n).expect("bits and group sizes are small");
        KernelPlan {
            source: &SOURCE,
            kernel: format!("{kernel}_{}_{}", type_name(x), type_name(self.scales)),
            constants: vec![constant(self.scheme.bits()), constant(self.scheme.group_size()), u16::from(add)],
            groups,
            threads: [threads, 1, 1],
            args,
        }
    }
}

/// Plans `x · Wᵀ`: input 3 is x `(n, K)` of dtype `x`, the output `(n, R)` of the same dtype; sums are f32. With `add`, input 4
/// is a bias, f32 `(R)`.
pub fn affine_matmul(w: &AffineShape, n: usize, x: FloatType, add: bool) -> KernelPlan {
    let mut args: Vec<KernelArg> = (0..4).map(KernelArg::Input).collect();
    args.push(if add { KernelArg::Input(4) } else { KernelArg::Unused });
    args.extend([KernelArg::Output(n * w.rows, x), size(n), size(w.rows), size(w.cols)]);
    if n <= MATVEC_ROWS {
        let groups = [w.rows.div_ceil(MATVEC_TILE), n.div_ceil(PASS), 1];
        w.plan("affine_matvec", x, groups, 64, args)
    } else {
        w.plan("affine_matmul", x, [w.rows.div_ceil(TILE), n.div_ceil(TILE), 1], 128, args)
    }
}

/// Plans a lookup of rows: input 3 holds `n` indices (`uint`) below `R`, the output is `(n, K)` of dtype `out`.
pub fn affine_rows(w: &AffineShape, n: usize, out: FloatType) -> KernelPlan {
    let mut args: Vec<KernelArg> = (0..4).map(KernelArg::Input).collect();
    args.extend([KernelArg::Output(n * w.cols, out), size(w.cols)]);
    w.plan("affine_rows", out, [w.cols.div_ceil(64 * CODES), n, 1], 64, args)
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests;
