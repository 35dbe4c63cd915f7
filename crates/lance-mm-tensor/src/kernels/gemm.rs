//! Matmul of dense matrices in slices, for arithmetic on weights; the kernels are those of the gemm crate.
//!
//! Operands are row-major or, transposed, column-major, with any stride; nothing is copied here.

use std::fmt::Debug;

/// Element types of [`add_matmul`]: f32 and f64.
pub trait Real: Copy + Debug + Send + Sync + sealed::Sealed + 'static {
    #[doc(hidden)]
    const ONE: Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl Real for f32 {
    const ONE: Self = 1.0;
}

impl Real for f64 {
    const ONE: Self = 1.0;
}

/// A borrowed matrix, row-major or, after [`t`](Self::t), column-major.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    dims: [usize; 2],
    strides: [usize; 2],
}

impl<'a, T> MatRef<'a, T> {
    /// Borrows `rows` rows of `cols` values that begin `stride` apart; `data` starts with the first.
    ///
    /// # Panics
    /// When the last row does not end within `data`, or rows overlap.
    pub fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, stride);
        Self { data, dims: [rows, cols], strides: [stride, 1] }
    }

    /// Transposes without moving a value.
    pub fn t(self) -> Self {
        let ([rows, cols], [row, col]) = (self.dims, self.strides);
        Self { data: self.data, dims: [cols, rows], strides: [col, row] }
    }
}

#[track_caller]
fn assert_fits(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(stride >= cols, "rows do not overlap");
    let end = rows.saturating_sub(1).checked_mul(stride).and_then(|last| last.checked_add(cols));
    assert!(rows == 0 || cols == 0 || end.is_some_and(|end| end <= len), "rows within the slice");
}

/// Computes `out += factor · a · b` on the calling thread. Rows of `out` begin `stride` apart; values between them stay. The
/// same operands give the same bits.
///
/// # Panics
/// When the inner sizes differ or `out` is too short.
#[expect(unsafe_code, reason = "gemm takes pointers and strides")]
pub fn add_matmul<T: Real>(out: &mut [T], stride: usize, factor: T, a: MatRef<'_, T>, b: MatRef<'_, T>) {
    let ([m, k], [k_b, n]) = (a.dims, b.dims);
    assert_eq!(k, k_b, "inner sizes");
    assert_fits(out.len(), m, n, stride);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let signed = |s: usize| isize::try_from(s).expect("a stride is at most the length of a slice, or unused");
    // SAFETY: `MatRef::new` proved that every element of `a` and `b` lies within its slice (`t` only swaps
    // axes), `assert_fits` proves it for `out` with distinct elements; none of the sizes is zero; `out` is
    // borrowed mutably, so it overlaps neither operand; `Real` is f32 and f64 only, which gemm knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            signed(stride),
            true,
            a.data.as_ptr(),
            signed(a.strides[1]),
            signed(a.strides[0]),
            b.data.as_ptr(),
            signed(b.strides[1]),
            signed(b.strides[0]),
            T::ONE,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, seeded};

    struct Case {
        m: usize,
        k: usize,
        n: usize,
        /// Additional values between rows of `a`, `b` and `out`.
        gap: usize,
        transposed: [bool; 2],
    }

    /// Operands that end with their last value: the product in `T`, as f32.
    fn product<T: Real + Into<f64>>(case: &Case, from: fn(f32) -> T, operands: [&[f32]; 3]) -> Vec<f32> {
        let Case { m, k, n, gap, transposed: [ta, tb] } = *case;
        let [a, b, mut out] = operands.map(|values| values.iter().copied().map(from).collect::<Vec<T>>());
        let view = |data, rows, cols, transposed| {
            if transposed {
                MatRef::new(data, cols, rows, rows + gap).t()
            } else {
                MatRef::new(data, rows, cols, cols + gap)
            }
        };
        add_matmul(&mut out, n + gap, from(-0.5), view(&a, m, k, ta), view(&b, k, n, tb));
        out.into_iter().map(|value| value.into() as f32).collect()
    }

    fn at(data: &[f32], stride: usize, transposed: bool, i: usize, j: usize) -> f32 {
        if transposed { data[j * stride + i] } else { data[i * stride + j] }
    }

    #[test]
    fn products_equal_the_naive_reference() {
        let case = |m, k, n, gap, transposed| Case { m, k, n, gap, transposed };
        let cases = [
            case(1, 1, 1, 0, [false, false]),
            case(3, 5, 7, 2, [false, true]),
            case(17, 33, 9, 1, [true, false]),
            case(40, 64, 65, 0, [true, true]),
            case(2, 0, 3, 0, [false, false]),
            case(0, 4, 3, 0, [false, false]),
        ];
        for case in cases {
            let Case { m, k, n, gap, transposed: [ta, tb] } = case;
            let (a_rows, a_cols) = if ta { (k, m) } else { (m, k) };
            let (b_rows, b_cols) = if tb { (n, k) } else { (k, n) };
            let (a_stride, b_stride, stride) = (a_cols + gap, b_cols + gap, n + gap);
            let len = |rows: usize, cols: usize| (rows * (cols + gap)).saturating_sub(gap);
            let a = seeded(len(a_rows, a_cols), 1);
            let b = seeded(len(b_rows, b_cols), 2);
            let before = seeded(len(m, n), 3);
            let mut expected = before.clone();
            for i in 0..m {
                for j in 0..n {
                    for l in 0..k {
                        expected[i * stride + j] -=
                            0.5 * at(&a, a_stride, ta, i, l) * at(&b, b_stride, tb, l, j);
                    }
                }
            }
            let found = [
                product(&case, |value| value, [&a, &b, &before]),
                product(&case, f64::from, [&a, &b, &before]),
            ];
            for (found, width) in found.iter().zip([32, 64]) {
                assert_close(&format!("f{width} {m} {k} {n} {gap} {ta} {tb}"), found, &expected, 1e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows within the slice")]
    fn a_short_slice_is_refused() {
        MatRef::new(&[0.0f32; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "rows within the slice")]
    fn a_short_output_is_refused() {
        let a = [1.0f64; 4];
        add_matmul(&mut [0.0; 3], 2, 1.0, MatRef::new(&a, 2, 2, 2), MatRef::new(&a, 2, 2, 2));
    }
}
