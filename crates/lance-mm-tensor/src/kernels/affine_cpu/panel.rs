//! Some rows of activations: sixteen rows of the weight lie side by side, one in each lane, so that sums are scaled for
//! all of them at once, and every line of codes is used for all activations as soon as it has been turned.

use std::ops::Range;

use super::activations::{Activations, Order};
use super::{Affine, FEW, LINE, unpack_line};
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Weight rows in the lanes of a register.
pub(super) const LANES: usize = 16;
/// Weight rows that are multiplied at once: enough sums at a time that none waits for the one before it.
pub(super) const ROWS: usize = 2 * LANES;

/// Lines from one that is used to the one that is asked for meanwhile: far enough for memory, and near enough for what comes
/// to be still there when its turn comes.
const AHEAD: usize = 6;

/// Up to [`FEW`] rows of activations for products with `w`, and with what is read as it is.
pub(super) fn activations(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>) -> Activations<1> {
    assert!((1..=FEW).contains(&n), "a few rows of activations");
    Activations::new(isa, x, n, w.group, w.codes(), Order::Lines(n.next_multiple_of(FEW / 2)))
}

/// Products of the rows `range` of `w`, which has four bits, with all of `x`: `write` gets row `i` of the output from its first
/// column of a panel on.
pub(super) fn rows(
    isa: Isa,
    w: &Affine<'_>,
    x: &Activations<1>,
    range: Range<usize>,
    write: impl FnMut(usize, Range<usize>, &[f32]),
) {
    macro_rules! run {
        ($($per:literal)*) => {
            match x.per_line {
                // With half of the rows low and high codes have sums of their own: enough of them not to wait for each other.
                $($per if x.n <= FEW / 2 => isa.run(Panels::<{ FEW / 2 }, 2, $per, _> { w, x, range, write }),
                $per => isa.run(Panels::<FEW, 1, $per, _> { w, x, range, write }),)*
                _ => unreachable!("groups are 32, 64 or 128"),
            }
        };
    }
    run!(1 2 4)
}

/// Up to `N` rows of activations with `SUMS` running sums for each, `PER` groups in a line.
struct Panels<'a, const N: usize, const SUMS: usize, const PER: usize, F> {
    w: &'a Affine<'a>,
    x: &'a Activations<1>,
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
        let x_bytes: &[[[u8; LINE]; N]] = x.bytes().as_flattened().as_chunks().0;
        let x_scales: &[[[f32; PER]; N]] = x.scales.as_chunks().0.as_chunks().0;
        let x_sums: &[[[f32; PER]; N]] = x.sums.as_chunks().0.as_chunks().0;
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
                    let x = XLine { bytes: &x_bytes[line], scales: &x_scales[line], sums: &x_sums[line] };
                    // After the last lines of these rows come the first ones of the next.
                    let ahead = match line + AHEAD {
                        ahead if ahead < x_bytes.len() => (ahead, 0),
                        past => (past - x_bytes.len(), ROWS),
                    };
                    let at = line - start;
                    add_line::<S, N, SUMS, PER>(simd, &rows, (line, ahead), &x, &of_rows, at, &mut out);
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
    bytes: &'a [[u8; LINE]; N],
    scales: &'a [[f32; PER]; N],
    sums: &'a [[f32; PER]; N],
}

/// Adds the scaled products of a line of codes, of which group `g` has the factors `PER · at + g`; asks for the line
/// `ahead.0` of the rows from row `ahead.1` on, counted from these.
#[inline(always)]
fn add_line<S: Simd, const N: usize, const SUMS: usize, const PER: usize>(
    simd: S,
    rows: &[Sixteen<'_>; 2],
    (line, ahead): (usize, (usize, usize)),
    x: &XLine<'_, N, PER>,
    factors: &[[[[f32; LANES]; 16]; 2]; 2],
    at: usize,
    out: &mut [[[f32; LANES]; 2]; N],
) {
    let codes = [rows[0].line(simd, line), rows[1].line(simd, line)];
    for g in 0..PER {
        let mut sums = [[[simd.zero_ints(); SUMS]; 2]; N];
        for j in g * 16 / PER..(g + 1) * 16 / PER {
            // Little by little: only so many can be under way.
            rows[0].prefetch(simd, ahead.0, ahead.1 + j);
            rows[1].prefetch(simd, ahead.0, ahead.1 + j);
            // Activations of even codes lie before those of odd ones.
            let [low, high] = [simd.nibbles(codes[0][j]), simd.nibbles(codes[1][j])];
            for half in 0..2 {
                for i in 0..N {
                    let x = simd.splat_four(x.bytes[i].as_chunks().0[16 * half + j]);
                    let [a, b] = &mut sums[i];
                    a[half % SUMS] = simd.dot::<false>(a[half % SUMS], low[half], x);
                    b[half % SUMS] = simd.dot::<false>(b[half % SUMS], high[half], x);
                }
            }
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
/// repeat the last one; groups past the end are any numbers.
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

/// Sixteen rows of four-bit codes; rows past the end repeat the last one.
pub(super) struct Sixteen<'a> {
    rows: [&'a [u8]; LANES],
    /// Their whole lines.
    lines: [&'a [[u8; LINE / 2]]; LANES],
}

impl<'a> Sixteen<'a> {
    #[inline(always)]
    pub(super) fn new(w: &Affine<'a>, first: usize) -> Self {
        let (mut rows, mut lines): ([&[u8]; _], [&[_]; _]) = ([&[]; LANES], [&[]; LANES]);
        for r in 0..LANES {
            rows[r] = w.row((first + r).min(w.rows - 1));
            lines[r] = rows[r].as_chunks().0;
        }
        Self { rows, lines }
    }

    /// Asks for a line of row `r`, counted from these rows on.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, simd: S, line: usize, r: usize) {
        let row = self.rows[r % LANES].as_ptr();
        simd.prefetch(row.wrapping_add(r / LANES * LANES * self.rows[0].len() + line * LINE / 2));
    }

    /// One line of all rows, eight codes of every row together.
    #[inline(always)]
    pub(super) fn line<S: Simd>(&self, simd: S, line: usize) -> [S::Bytes; 16] {
        let mut out = [simd.load(&[0; 64]); 16];
        if line < self.lines[0].len() {
            for r in 0..LANES {
                out[r] = simd.load(&self.lines[r][line]);
            }
        } else {
            for r in 0..LANES {
                let mut rest = [0; LINE / 2];
                unpack_line(self.rows[r], 4, line, &mut rest);
                out[r] = simd.load(&rest);
            }
        }
        simd.transpose(&mut out);
        out
    }
}
