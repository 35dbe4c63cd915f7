//! `y = x · Wᵀ` on the CPU for any [`Rows`]: panels of weight rows are widened to f32 one at a time, so that the matrix
//! never exists as a whole in f32.
//!
//! ```text
//! panel of W      (up to 256 rows, K) f32, row-major, for one thread
//! output          (R, n), a panel of it for each thread; transposed to (n, R) at the end
//! ```

use rayon::prelude::*;

use super::operands::Rows;

/// f32 values of a panel.
// 512 kB, half of a common second-level cache of 1 MB. On one core with 2 MB, 64 x 2048 x 2048 took 69 ms with 64 kB, 17
// with 512 kB and 13 with 2 MB; one token reads each row once and takes 5.3 to 5.8 ms with any.
const PANEL: usize = 128 * 1024;
/// Most tokens that are multiplied row by row.
// Kept for its order of sums: with AVX-512, packing two to four tokens takes less than half of the time (4 x 2048 x 2048 in
// 5.2 ms where dot products take 20.2, on one core), but gives other bits. One token takes 3.7 to 5.8 ms either way.
const FEW: usize = 4;

/// `x` `(n, K)` times the transpose of `w` `(R, K)`: `(n, R)`, summed in f32.
///
/// # Panics
/// When `x` is not `n` tokens of `K`.
pub(crate) fn matmul(x: &[f32], n: usize, w: &dyn Rows) -> Vec<f32> {
    let (rows, k) = (w.n_rows(), w.n_cols());
    assert_eq!(x.len(), n * k, "x is n tokens of K");
    let panel = (PANEL / k.max(1)).clamp(8, 256);
    // (R, n), so that every panel writes a piece of its own.
    let mut by_row = vec![0.0; rows * n];
    by_row.par_chunks_mut(panel * n.max(1)).enumerate().for_each(|(i, out)| {
        if n <= FEW { dots(x, n, w, i * panel, out) } else { product(x, n, w, i * panel, out) }
    });
    match n {
        1 => by_row,
        _ => transpose(&by_row, rows, n),
    }
}

fn dots(x: &[f32], n: usize, w: &dyn Rows, first: usize, out: &mut [f32]) {
    let k = w.n_cols();
    let mut row = vec![0.0; k];
    for (r, out) in out.chunks_exact_mut(n).enumerate() {
        w.read_row(first + r, &mut row);
        for (x, o) in x.chunks_exact(k).zip(out) {
            *o = dot(x, &row);
        }
    }
}

/// Dot product with sixteen running sums: short dependency chains, and an error that grows with K / 16 only.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

#[expect(unsafe_code, reason = "gemm takes pointers and strides")]
fn product(x: &[f32], n: usize, w: &dyn Rows, first: usize, out: &mut [f32]) {
    let k = w.n_cols();
    let m = out.len() / n;
    let mut panel = vec![0.0; m * k];
    for (r, row) in panel.chunks_exact_mut(k).enumerate() {
        w.read_row(first + r, row);
    }
    assert!(
        out.len() == m * n && panel.len() == m * k && x.len() == n * k,
        "the extents given to gemm below"
    );
    // SAFETY: out (m, n), panel (m, k) and x (n, k, read as its transpose) are row-major slices of exactly
    // these extents, asserted above; out is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            panel.as_ptr(),
            1,
            k as isize,
            x.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `(rows, cols)` to `(cols, rows)`, in blocks that stay in the first-level cache.
fn transpose(a: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    // Both blocks of 4 kB: input and output.
    const BLOCK: usize = 32;
    let mut out = vec![0.0; a.len()];
    for r0 in (0..rows).step_by(BLOCK) {
        for c0 in (0..cols).step_by(BLOCK) {
            for c in c0..(c0 + BLOCK).min(cols) {
                for r in r0..(r0 + BLOCK).min(rows) {
                    out[c * rows + r] = a[r * cols + c];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::AffineWeight;
    use crate::dense::DenseWeight;
    use crate::scheme::Scheme;
    use crate::testing::seeded;

    /// Sum of products in f64, and the sum of their magnitudes, the yardstick for its error.
    fn naive(x: &[f32], n: usize, w: &dyn Rows) -> (Vec<f64>, Vec<f64>) {
        let (rows, k) = (w.n_rows(), w.n_cols());
        let mut row = vec![0.0; k];
        let (mut y, mut size) = (vec![0.0; n * rows], vec![0.0; n * rows]);
        for r in 0..rows {
            w.read_row(r, &mut row);
            for i in 0..n {
                for j in 0..k {
                    let p = f64::from(x[i * k + j]) * f64::from(row[j]);
                    y[i * rows + r] += p;
                    size[i * rows + r] += p.abs();
                }
            }
        }
        (y, size)
    }

    struct Case {
        n: usize,
        rows: usize,
        k: usize,
        bits: Option<usize>,
    }

    #[test]
    fn products_equal_the_naive_reference() {
        let case = |n, rows, k, bits| Case { n, rows, k, bits };
        let cases = [
            case(1, 1, 1, None),
            case(1, 7, 33, None),
            case(3, 300, 65, None),
            case(5, 257, 96, None),
            case(17, 5, 40, None),
            case(64, 130, 512, None),
            case(1, 9, 32, Some(4)),
            case(2, 33, 256, Some(3)),
            case(9, 40, 384, Some(5)),
            case(33, 513, 128, Some(8)),
            case(1, 3, 11008, Some(4)),
        ];
        for Case { n, rows, k, bits } in cases {
            let x = seeded(n * k, 1);
            let values = seeded(rows * k, 2);
            let w: Box<dyn Rows> = match bits {
                None => Box::new(DenseWeight::from_f32(&values, k)),
                Some(b) => Box::new(
                    AffineWeight::quantize_f32("w", &values, k, Scheme::affine(b, 32).unwrap()).unwrap(),
                ),
            };
            let (expected, size) = naive(&x, n, w.as_ref());
            for (i, y) in matmul(&x, n, w.as_ref()).into_iter().enumerate() {
                let error = (f64::from(y) - expected[i]).abs();
                assert!(error <= 5e-6 * size[i], "n {n} rows {rows} k {k} bits {bits:?} at {i}: {error}");
            }
        }
    }

    #[test]
    fn no_rows_give_no_output() {
        let w = DenseWeight::from_f32(&[1.0, 2.0], 2);
        assert!(matmul(&[], 0, &w).is_empty());
    }
}
