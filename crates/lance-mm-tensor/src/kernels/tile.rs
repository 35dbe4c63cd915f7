//! A few rows times a packed panel of columns, in registers: the inner loop of f32 convolutions and attention.
//!
//! ```text
//!                 b (k, 32)      | 16 columns | 16 columns |       two loads for each value of K
//!   a, 12 rows    broadcast  x   |            |            |
//!   of k values                  |  12 x 2 registers of sums, 2 of b, 1 broadcast: 27 of 32 with AVX-512
//! ```
//!
//! Rows of `a` are read in place, with any stride: neither pixels under a filter nor keys are packed. AVX2 takes half a
//! panel at a time: 6 x 2 sums, 2 of b, 1 broadcast, 15 of its 16 registers.

use super::simd::{Kind, Simd};

/// Columns of a panel.
// Two registers of AVX-512: two multiplications for each broadcast.
pub(super) const PANEL: usize = 32;
/// Most rows of one call.
// As many as leave registers for operands; see above.
pub(super) const MAX_ROWS: usize = 12;

/// A left operand: rows of values with any strides.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    /// Values from the first of the first row on.
    pub(super) values: &'a [f32],
    /// Distance from one row to the next; rows may overlap.
    pub(super) row: usize,
    /// Distance from one value of a row to the next.
    pub(super) step: usize,
}

/// Rows of one call of [`add`]: as many as the registers hold.
pub(super) fn rows(simd: Simd) -> usize {
    match simd.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => MAX_ROWS,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => 6,
        Kind::Baseline => 4,
    }
}

/// `out += a · b` for `n` rows: `a` has rows of `k` values, `b` is `(k, PANEL)`, `out` has rows of `PANEL` values that
/// begin `out_stride` apart.
///
/// # Panics
/// When a slice is too short or there are more rows than [`rows`].
pub(super) fn add(simd: Simd, n: usize, a: Left<'_>, b: &[f32], out: &mut [f32], out_stride: usize) {
    let k = b.len() / PANEL;
    assert!((1..=rows(simd)).contains(&n), "rows of one call");
    assert!(out_stride >= PANEL, "rows of the result do not overlap");
    let last = |stride: usize, width: usize| (n - 1).checked_mul(stride)?.checked_add(width);
    let width = k.saturating_sub(1).checked_mul(a.step).and_then(|last| last.checked_add(k.min(1)));
    let end = width.and_then(|width| last(a.row, width));
    assert!(end.is_some_and(|end| end <= a.values.len()), "rows of a within its slice");
    assert!(last(out_stride, PANEL).is_some_and(|end| end <= out.len()), "rows of the result within it");
    match simd.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => x86::avx512(n, a, b, out, out_stride, simd),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => x86::avx2(n, a, b, out, out_stride, simd),
        Kind::Baseline => portable(n, a, b, out, out_stride),
    }
}

fn portable(rows: usize, a: Left<'_>, b: &[f32], out: &mut [f32], out_stride: usize) {
    for row in 0..rows {
        let mut sums = [0.0f32; PANEL];
        for (i, b) in b.as_chunks::<PANEL>().0.iter().enumerate() {
            let a = a.values[row * a.row + i * a.step];
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
        for (out, sum) in out[row * out_stride..].iter_mut().zip(sums) {
            *out += sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions read and write through pointers")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kind, Left, PANEL, Simd};

    /// Calls `$f::<ROWS>` for the number of rows at hand.
    macro_rules! by_rows {
        ($rows:expr, $f:ident, $args:tt, $($n:literal)*) => {
            match $rows {
                $($n => by_rows!(@ $f $n $args),)*
                _ => unreachable!("the caller checked the number of rows"),
            }
        };
        (@ $f:ident $n:literal ($($arg:expr),*)) => { $f::<$n>($($arg),*) };
    }

    pub(super) fn avx512(
        rows: usize,
        a: Left<'_>,
        b: &[f32],
        out: &mut [f32],
        out_stride: usize,
        simd: Simd,
    ) {
        assert_eq!(simd.kind(), Kind::Avx512, "a value that exists where AVX-512 was detected only");
        let k = b.len() / PANEL;
        let strides = [a.row, a.step];
        let (a, b, out) = (a.values.as_ptr(), b.as_ptr(), out.as_mut_ptr());
        // SAFETY: AVX-512 was detected. `add`, the only caller, asserted that `rows` rows of `k` values
        // lie in `a`, `k` rows of `PANEL` in `b` and `rows` rows of `PANEL` values
        // `out_stride` apart in `out`, which is borrowed mutably.
        unsafe {
            by_rows!(rows, tile512, (k, a, strides, b, out, out_stride), 1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    pub(super) fn avx2(rows: usize, a: Left<'_>, b: &[f32], out: &mut [f32], out_stride: usize, simd: Simd) {
        assert_eq!(simd.kind(), Kind::Avx2, "a value that exists where AVX2 and FMA were detected only");
        let k = b.len() / PANEL;
        let strides = [a.row, a.step];
        let (a, b, out) = (a.values.as_ptr(), b.as_ptr(), out.as_mut_ptr());
        for half in [0, PANEL / 2] {
            // SAFETY: AVX2 and FMA were detected; the extents as for `avx512`, here for the left and the right
            // half of every row of `PANEL` values of `b` and `out`.
            unsafe {
                by_rows!(rows, tile256, (k, a, strides, b.add(half), out.add(half), out_stride), 1 2 3 4 5 6);
            }
        }
    }

    /// # Safety
    /// AVX-512; `ROWS` rows, `a_row` apart, of `k` readable values, `a_step` apart, at `a`, `k` rows of 32 at `b`, `ROWS` rows
    /// of 32 writable ones `out_stride` apart at `out`.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile512<const ROWS: usize>(
        k: usize,
        a: *const f32,
        [a_row, a_step]: [usize; 2],
        b: *const f32,
        out: *mut f32,
        out_stride: usize,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for i in 0..k {
            // SAFETY: `i` is below `k` and `row` below `ROWS`, within what the caller promised.
            unsafe {
                let b = [_mm512_loadu_ps(b.add(i * PANEL)), _mm512_loadu_ps(b.add(i * PANEL + 16))];
                for row in 0..ROWS {
                    let a = _mm512_set1_ps(*a.add(row * a_row + i * a_step));
                    sums[row][0] = _mm512_fmadd_ps(a, b[0], sums[row][0]);
                    sums[row][1] = _mm512_fmadd_ps(a, b[1], sums[row][1]);
                }
            }
        }
        for row in 0..ROWS {
            for half in 0..2 {
                // SAFETY: row `row` of `out` has 32 values.
                unsafe {
                    let out = out.add(row * out_stride + 16 * half);
                    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sums[row][half]));
                }
            }
        }
    }

    /// # Safety
    /// As [`tile512`], with AVX2 and FMA, of `b` and `out` 16 values a row.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile256<const ROWS: usize>(
        k: usize,
        a: *const f32,
        [a_row, a_step]: [usize; 2],
        b: *const f32,
        out: *mut f32,
        out_stride: usize,
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        for i in 0..k {
            // SAFETY: `i` is below `k` and `row` below `ROWS`, within what the caller promised.
            unsafe {
                let b = [_mm256_loadu_ps(b.add(i * PANEL)), _mm256_loadu_ps(b.add(i * PANEL + 8))];
                for row in 0..ROWS {
                    let a = _mm256_set1_ps(*a.add(row * a_row + i * a_step));
                    sums[row][0] = _mm256_fmadd_ps(a, b[0], sums[row][0]);
                    sums[row][1] = _mm256_fmadd_ps(a, b[1], sums[row][1]);
                }
            }
        }
        for row in 0..ROWS {
            for half in 0..2 {
                // SAFETY: row `row` of `out` has 16 values.
                unsafe {
                    let out = out.add(row * out_stride + 8 * half);
                    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sums[row][half]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, seeded};

    fn naive(rows: usize, a: Left<'_>, b: &[f32], out: &mut [f32], out_stride: usize) {
        for row in 0..rows {
            for column in 0..PANEL {
                let products = (0..b.len() / PANEL).map(|i| {
                    f64::from(a.values[row * a.row + i * a.step]) * f64::from(b[i * PANEL + column])
                });
                let out = &mut out[row * out_stride + column];
                *out = (f64::from(*out) + products.sum::<f64>()) as f32;
            }
        }
    }

    #[test]
    fn every_instruction_set_equals_the_naive_reference() {
        for simd in Simd::available() {
            for n in 1..=rows(simd) {
                // Rows that overlap, lie side by side, lie apart, and lie in columns.
                for (k, row, step, out_stride) in [
                    (0usize, 1, 1, PANEL),
                    (1, 1, 1, PANEL),
                    (7, 2, 1, PANEL + 1),
                    (64, 70, 1, 50),
                    (9, 1, 14, PANEL),
                ] {
                    let values = seeded((n - 1) * row + k.saturating_sub(1) * step + k.min(1), 1);
                    let a = Left { values: &values, row, step };
                    let b = seeded(k * PANEL, 2);
                    let mut out = seeded((n - 1) * out_stride + PANEL, 3);
                    let mut expected = out.clone();
                    add(simd, n, a, &b, &mut out, out_stride);
                    naive(n, a, &b, &mut expected, out_stride);
                    assert_close(&format!("{simd:?} {n} {k}"), &out, &expected, 5e-6);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows of a within its slice")]
    fn short_slices_are_refused() {
        let a = Left { values: &[0.0; 5], row: 3, step: 1 };
        add(Simd::detect(), 2, a, &[0.0; 3 * PANEL], &mut [0.0; 2 * PANEL], PANEL);
    }
}
