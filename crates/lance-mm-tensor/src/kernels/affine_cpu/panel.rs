//! Three to eight tokens: sixteen rows of the weight lie side by side, one in each lane, so that sums are scaled for all of
//! them at once, and codes are used for all tokens as soon as they are transposed.
//!
//! ```text
//! a quarter of a line: 16 bytes, 32 codes of each of sixteen rows, in four loads of four rows
//!
//!   r0  r4  r8  r12                         word 0 of r0 .. r15      columns 0 .. 7 of sixteen rows
//!   r1  r5  r9  r13    transpose words      word 1 of r0 .. r15      columns 8 .. 15
//!   r2  r6  r10 r14   --------------->      word 2 of r0 .. r15      columns 16 .. 23
//!   r3  r7  r11 r15                         word 3 of r0 .. r15      columns 24 .. 31
//!
//! of each: low nibbles are columns 0 2 4 6, high nibbles 1 3 5 7; a dot product with four activations, the same in all
//! lanes, adds to i32 lane r the product of row r
//! ```
//!
//! A whole line transposed through memory took longer: a store of 64 bytes holds up two multiplications on Zen 4.

use std::ops::Range;

use super::FEW;
use super::activations::{Activations, Order};
use crate::kernels::affine_matrix::{Affine, LINE, copy_line};
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Weight rows in the lanes of a register.
// A register has sixteen lanes of four bytes.
pub(super) const LANES: usize = 16;
/// Weight rows that are multiplied at once.
// With eight tokens 16 sums are under way, so that none waits for the one before it.
pub(super) const ROWS: usize = 2 * LANES;

/// Rounds up to [`FEW`] tokens for `w`, and for matrices read in the same way.
pub(super) fn activations(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>) -> Activations {
    assert!((1..=FEW).contains(&n), "a few tokens");
    Activations::new(isa, x, n, w.group, w.codes(), Order::Lines(n.next_multiple_of(FEW / 2)))
}

/// Multiplies the rows `range` of `w`, which has four bits, by all of `x`: `write` gets token `i`, the range of a panel's
/// columns, and their values.
pub(super) fn rows(
    isa: Isa,
    w: &Affine<'_>,
    x: &Activations,
    range: Range<usize>,
    write: impl FnMut(usize, Range<usize>, &[f32]),
) {
    macro_rules! run {
        ($($per:literal)*) => {
            match x.per_line {
                // With half the tokens, low and high codes have sums of their own, so that again none waits.
                $($per if x.n <= FEW / 2 => isa.run(Panels::<{ FEW / 2 }, 2, $per, _> { w, x, range, write }),
                $per => isa.run(Panels::<FEW, 1, $per, _> { w, x, range, write }),)*
                _ => unreachable!("groups are 32, 64 or 128"),
            }
        };
    }
    run!(1 2 4)
}

/// Up to `N` tokens with `SUMS` running sums for each, `PER` groups in a line.
struct Panels<'a, const N: usize, const SUMS: usize, const PER: usize, F> {
    w: &'a Affine<'a>,
    x: &'a Activations,
    range: Range<usize>,
    write: F,
}

impl<const N: usize, const SUMS: usize, const PER: usize, F> Kernel for Panels<'_, N, SUMS, PER, F>
where
    F: FnMut(usize, Range<usize>, &[f32]),
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, range, mut write } = self;
        let x_bytes: &[[[[u8; LINE]; 2]; N]] = x.bytes().as_chunks().0;
        let x_scales: &[[[f32; PER]; N]] = x.scales.as_chunks().0.as_chunks().0;
        let x_sums: &[[[f32; PER]; N]] = x.sums.as_chunks().0.as_chunks().0;
        let x_fine: &[[[bool; PER]; N]] = x.fine.as_chunks().0.as_chunks().0;
        for first in range.clone().step_by(ROWS) {
            let rows = [Sixteen::new(w, first), Sixteen::new(w, first + LANES)];
            let mut out = [[[0.0; LANES]; 2]; N];
            for start in (0..x.lines).step_by(LANES / PER) {
                let mut of_rows = [[[[0.0; LANES]; 16]; 2]; 2];
                for m in 0..2 {
                    of_rows[m][0] = factors(simd, w, w.scales, first + LANES * m, start * PER);
                    of_rows[m][1] = factors(simd, w, w.biases, first + LANES * m, start * PER);
                }
                for line in start..(start + LANES / PER).min(x.lines) {
                    let x_line = XLine {
                        bytes: &x_bytes[line],
                        scales: &x_scales[line],
                        sums: &x_sums[line],
                        fine: &x_fine[line],
                    };
                    // As many bytes of the next rows, in memory order, in which memory is fastest. With the transpose in
                    // registers this took a step of eight sequences from 119.4 to 112.0 ms (two threads).
                    let next = rows[0].after(ROWS).wrapping_add(ROWS * line);
                    let lines = [rows[0].line(line), rows[1].line(line)];
                    add_line::<S, N, SUMS, PER>(
                        simd,
                        &lines,
                        next,
                        &x_line,
                        &of_rows,
                        line - start,
                        &mut out,
                    );
                }
            }
            let rows = first..(first + ROWS).min(range.end);
            for (i, out) in out.iter().enumerate().take(x.n) {
                write(i, rows.clone(), &out.as_flattened()[..rows.len()]);
            }
        }
    }
}

/// A line of activations: their bytes, and the scales and sums of its groups.
struct XLine<'a, const N: usize, const PER: usize> {
    bytes: &'a [[[u8; LINE]; 2]; N],
    scales: &'a [[f32; PER]; N],
    sums: &'a [[f32; PER]; N],
    fine: &'a [[bool; PER]; N],
}

/// Adds the scaled dot products of a line of codes, whose group `g` has the factors `PER · at + g`; prefetches as many
/// lines from `next` on.
#[inline(always)]
fn add_line<S: Simd, const N: usize, const SUMS: usize, const PER: usize>(
    simd: S,
    lines: &[[&Line; LANES]; 2],
    next: *const Line,
    x: &XLine<'_, N, PER>,
    factors: &[[[[f32; LANES]; 16]; 2]; 2],
    at: usize,
    out: &mut [[[f32; LANES]; 2]; N],
) {
    for g in 0..PER {
        let mut sums = [[[simd.zero_ints(); SUMS]; 2]; N];
        let quarters = g * 4 / PER..(g + 1) * 4 / PER;
        add_bytes::<S, N, SUMS>(simd, lines, next, quarters.clone(), x.bytes, 0, &mut sums);
        for sum in sums.as_flattened_mut().as_flattened_mut() {
            *sum = simd.times_256(*sum);
        }
        if x.fine.iter().any(|fine| fine[g]) {
            add_bytes::<S, N, SUMS>(simd, lines, next, quarters, x.bytes, 1, &mut sums);
        }
        for m in 0..2 {
            let [scales, biases] = &factors[m];
            let (scales, biases) =
                (simd.load_floats(&scales[at * PER + g]), simd.load_floats(&biases[at * PER + g]));
            for i in 0..N {
                let mut whole = sums[i][m][0];
                for s in 1..SUMS {
                    whole = simd.add_ints(whole, sums[i][m][s]);
                }
                let (x_scale, x_sum) = (simd.splat(x.scales[i][g]), simd.splat(x.sums[i][g]));
                add_scaled(simd, whole, [x_scale, x_sum], [scales, biases], &mut out[i][m]);
            }
        }
    }
}

/// Adds the products of some quarters of a line with the high bytes of `N` tokens, or the low ones.
#[inline(always)]
fn add_bytes<S: Simd, const N: usize, const SUMS: usize>(
    simd: S,
    lines: &[[&Line; LANES]; 2],
    next: *const Line,
    quarters: Range<usize>,
    x: &[[[u8; LINE]; 2]; N],
    byte: usize,
    sums: &mut [[[S::Ints; SUMS]; 2]; N],
) {
    for quarter in quarters {
        let codes = [transposed(simd, &lines[0], quarter), transposed(simd, &lines[1], quarter)];
        // Written out: a loop would keep transposed codes in memory.
        macro_rules! eights {
            ($($k:literal)*) => {
                $({
                    let j = 4 * quarter + $k;
                    // Spread out: a core has only so many cache lines under way.
                    simd.prefetch(next.wrapping_add(2 * j).cast());
                    simd.prefetch(next.wrapping_add(2 * j + 1).cast());
                    // Activations of even codes lie before those of odd ones.
                    let [low, high] = [simd.nibbles(codes[0][$k]), simd.nibbles(codes[1][$k])];
                    for half in 0..2 {
                        for i in 0..N {
                            let x = simd.splat_four(x[i][byte].as_chunks().0[16 * half + j]);
                            let [a, b] = &mut sums[i];
                            a[half % SUMS] = simd.dot::<false>(a[half % SUMS], low[half], x);
                            b[half % SUMS] = simd.dot::<false>(b[half % SUMS], high[half], x);
                        }
                    }
                })*
            };
        }
        eights!(0 1 2 3);
    }
}

/// `out += scale · x_scale · whole + bias · x_sum` with sixteen rows of the weight.
#[inline(always)]
pub(super) fn add_scaled<S: Simd>(
    simd: S,
    whole: S::Ints,
    [x_scale, x_sum]: [S::Floats; 2],
    [scale, bias]: [S::Floats; 2],
    out: &mut [f32; LANES],
) {
    let product = simd.mul(simd.mul(simd.to_floats(whole), x_scale), scale);
    let y = simd.add(simd.load_floats(out), product);
    simd.store_floats(simd.add(y, simd.mul(x_sum, bias)), out);
}

/// Scales, or biases, of sixteen groups of sixteen rows from group `group` of row `first` on, by group. Rows past the end
/// repeat the last one; groups past the end have any value.
#[inline(always)]
pub(super) fn factors<S: Simd>(
    simd: S,
    w: &Affine<'_>,
    stored: &[u8],
    first: usize,
    group: usize,
) -> [[f32; LANES]; 16] {
    let groups = w.cols / w.group;
    let mut rows = [simd.load(&[0; 64]); 16];
    for (r, out) in rows.iter_mut().enumerate() {
        let row = (first + r).min(w.rows - 1);
        *out = simd.floats_to_bytes(w.widen(simd, stored, row * groups + group));
    }
    simd.transpose(&mut rows);
    let mut out = [[0.0; LANES]; 16];
    for (out, column) in out.iter_mut().zip(rows) {
        simd.store_floats(simd.bytes_to_floats(column), out);
    }
    out
}

/// A line of four-bit codes, in quarters.
pub(super) type Line = [[u8; LINE / 8]; 4];

/// Sixteen rows of four-bit codes; rows past the end repeat the last one.
pub(super) struct Sixteen<'a> {
    /// Their whole lines.
    lines: [&'a [Line]; LANES],
    /// The line after these, with zeros past the end of the row.
    rest: [Line; LANES],
}

impl<'a> Sixteen<'a> {
    #[inline(always)]
    pub(super) fn new(w: &Affine<'a>, first: usize) -> Self {
        let (mut lines, mut rest) = ([&[][..]; LANES], [Line::default(); LANES]);
        for r in 0..LANES {
            let row = w.row((first + r).min(w.rows - 1));
            lines[r] = row.as_chunks().0.as_chunks().0;
            if !row.len().is_multiple_of(LINE / 2) {
                copy_line(row, lines[r].len(), rest[r].as_flattened_mut());
            }
        }
        Self { lines, rest }
    }

    /// A line of all rows.
    #[inline(always)]
    pub(super) fn line(&self, line: usize) -> [&Line; LANES] {
        let mut lines = [&self.rest[0]; LANES];
        for r in 0..LANES {
            lines[r] = self.lines[r].get(line).unwrap_or(&self.rest[r]);
        }
        lines
    }

    /// The address of row `rows`, counted from these on, if rows were whole lines.
    #[inline(always)]
    fn after(&self, rows: usize) -> *const Line {
        self.lines[0].as_ptr().wrapping_add(rows * self.lines[0].len())
    }

    /// Prefetches a line of row `r`, counted from these rows on.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S, line: usize, r: usize) {
        let row = self.lines[r % LANES];
        simd.prefetch(row.as_ptr().wrapping_add(r / LANES * LANES * row.len() + line).cast());
    }
}

/// Transposes a quarter of a line of sixteen rows: four registers of eight codes of every row.
#[inline(always)]
pub(super) fn transposed<S: Simd>(simd: S, lines: &[&Line; LANES], quarter: usize) -> [S::Bytes; 4] {
    let part = |r: usize| &lines[r][quarter];
    let mut codes = [simd.load(&[0; 64]); 4];
    for r in 0..4 {
        codes[r] = simd.load_quarters([part(r), part(4 + r), part(8 + r), part(12 + r)]);
    }
    simd.transpose_words(&mut codes);
    codes
}
