//! Products with matrices in MLX's affine format, and lookups of their rows; kernels in `affine.metal`.

use super::{KernelArg, KernelPlan, KernelSource, size, type_name};
use crate::dtype::FloatType;
use crate::scheme::{QuantMode, Scheme};

pub(super) static SOURCE: KernelSource = KernelSource { name: "affine", text: include_str!("affine.metal") };

/// Rows of x up to which every row of the matrix is read once for all of them by a matrix-vector product;
/// with more, tiles of the matrix are unpacked once for 32 rows.
const MATVEC_ROWS: usize = 8;
/// Rows of x that one pass of the matrix-vector product keeps in registers.
const PASS: usize = 4;
/// Rows of the matrix that one threadgroup of the matrix-vector product handles.
const MATVEC_TILE: usize = 8;
/// Rows of x and of the matrix in one tile of the matrix product.
const TILE: usize = 32;
/// Codes that one thread unpacks at a time.
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
    /// A matrix of `rows` rows and `cols` columns with scales and biases of type `scales`.
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

/// `x · Wᵀ`: input 3 is x `(n, K)` of type `x`, the output `(n, R)` of the same type; sums are f32. With `add`, input 4
/// is added to every row, f32 `(R)`.
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

/// Rows of the matrix: input 3 holds `n` indices (`uint`) below `R`, the output is `(n, K)` of type `out`.
pub fn affine_rows(w: &AffineShape, n: usize, out: FloatType) -> KernelPlan {
    let mut args: Vec<KernelArg> = (0..4).map(KernelArg::Input).collect();
    args.extend([KernelArg::Output(n * w.cols, out), size(w.cols)]);
    w.plan("affine_rows", out, [w.cols.div_ceil(64 * CODES), n, 1], 64, args)
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests;
