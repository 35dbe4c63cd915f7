//! Some rows of activations: sixteen rows of the weight lie side by side, one in each lane, so that sums are scaled for
//! all of them at once, and every line of codes is used for all activations as soon as it has been turned.

use super::activations::Activations;
use super::{Affine, FEW, LINE, unpack_line};
use crate::kernels::columns::Part;
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Weight rows in the lanes of a register.
pub(super) const LANES: usize = 16;
/// Weight rows that are multiplied at once: enough sums at a time that none waits for the one before it.
pub(super) const ROWS: usize = 2 * LANES;

/// `out[i · R + r] = w[r] · x[i]` for some columns of the output; `w` has four bits, `x` at most [`FEW`] rows.
pub(super) fn rows(isa: Isa, w: &Affine<'_>, x: &Activations<1>, columns: &mut Part<'_>) {
    assert!((1..=FEW).contains(&x.n), "a few rows of activations");
    macro_rules! run {
        ($($per:literal)*) => {
            match x.per_line {
                // With half of the rows low and high codes have sums of their own: enough of them not to wait for each other.
                $($per if x.n <= FEW / 2 => isa.run(Panels::<{ FEW / 2 }, 2, $per> { w, x, columns }),
                $per => isa.run(Panels::<FEW, 1, $per> { w, x, columns }),)*
                _ => unreachable!("groups are 32, 64 or 128"),
            }
        };
    }
    run!(1 2 4)
}

/// Up to `N` rows of activations with `SUMS` running sums for each, `PER` groups in a line.
struct Panels<'a, 'c, const N: usize, const SUMS: usize, const PER: usize> {
    w: &'a Affine<'a>,
    x: &'a Activations<1>,
    columns: &'a mut Part<'c>,
}

impl<const N: usize, const SUMS: usize, const PER: usize> Kernel for Panels<'_, '_, N, SUMS, PER> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, columns } = self;
        let range = columns.range();
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
                    add_line::<S, N, SUMS, PER>(simd, &rows, x, line, &of_rows, line - start, &mut out);
                }
            }
            let rows = first..(first + ROWS).min(range.end);
            for (i, out) in out.iter().enumerate().take(x.n) {
                columns.row(i, rows.clone()).copy_from_slice(&out.as_flattened()[..rows.len()]);
            }
        }
    }
}

/// Adds the scaled products of a line of codes, of which the first group has the factors `PER · at`.
#[inline(always)]
fn add_line<S: Simd, const N: usize, const SUMS: usize, const PER: usize>(
    simd: S,
    rows: &[Sixteen<'_>; 2],
    x: &Activations<1>,
    line: usize,
    factors: &[[[[f32; LANES]; 16]; 2]; 2],
    at: usize,
    out: &mut [[[f32; LANES]; 2]; N],
) {
    let codes = [rows[0].line(simd, line), rows[1].line(simd, line)];
    let bytes = x.bytes();
    let mut places = [0; N];
    let mut fours = [&[[0; 4]; LINE / 4]; N];
    for i in 0..N {
        // Past the last row it stands in.
        places[i] = x.at(i.min(x.n - 1), line);
        fours[i] = bytes[places[i]][0].as_chunks::<4>().0.as_array().expect("a line");
    }
    for g in 0..PER {
        let mut sums = [[[simd.zero_ints(); SUMS]; 2]; N];
        for j in g * 16 / PER..(g + 1) * 16 / PER {
            // The same line of the rows after these, little by little: only so many can be under way.
            rows[0].prefetch(simd, line, ROWS + j);
            rows[1].prefetch(simd, line, ROWS + j);
            // Activations of even codes lie before those of odd ones.
            let [low, high] = [simd.nibbles(codes[0][j]), simd.nibbles(codes[1][j])];
            for half in 0..2 {
                for i in 0..N {
                    let x = simd.splat_four(fours[i][16 * half + j]);
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
                let place = places[i] * PER + g;
                let (x_scale, x_sum) = (simd.splat(x.scales[place]), simd.splat(x.sums[place]));
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
