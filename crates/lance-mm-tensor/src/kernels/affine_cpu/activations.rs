//! Rows of activations as whole numbers, in the order in which the codes of a weight come out of its words.

use rayon::prelude::*;

use super::{CHUNK, Codes, LINE};
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Rounded rows: `x ≈ scale · q` with one scale for each group of the weight. `q` is one signed byte, 127 steps
/// to either side of zero, or two, 32,639 steps: `T` of them.
pub(super) struct Activations<const T: usize> {
    /// Rows.
    pub(super) n: usize,
    /// Lines of [`LINE`] values in a row, the last filled up with zeros.
    pub(super) lines: usize,
    /// Groups in a line.
    pub(super) per_line: usize,
    order: Order,
    /// Lines from one row to the next, in [`Order::Rows`]: whole chunks; rows from one line to the next, in
    /// [`Order::Lines`].
    stride: usize,
    /// What [`bytes`](Self::bytes) are read from, after `skipped` ones: lines begin where cache lines do.
    stored: Vec<u8>,
    skipped: usize,
    /// Scales, `per_line` for each line.
    pub(super) scales: Vec<f32>,
    /// Sums of each group, as `scales`: of the rounded values, so that an error of rounding is multiplied with the
    /// weight and not with the code alone.
    pub(super) sums: Vec<f32>,
}

/// Bytes of a cache line, and of a load: one that lies in two cache lines takes twice as long.
const ALIGNMENT: usize = 64;

/// Which lines are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Those of one row.
    Rows,
    /// Those of all rows at one place.
    Lines,
}

impl<const T: usize> Activations<T> {
    /// Rounds `n` rows of whole groups of `group`.
    pub(super) fn new(isa: Isa, x: &[f32], n: usize, group: usize, codes: Codes, order: Order) -> Self {
        let k = x.len() / n;
        let (lines, per_line) = (k.div_ceil(LINE), LINE / group);
        // A piece is a whole row, or one line of all rows.
        let (pieces, stride) = match order {
            Order::Rows => (n, lines.next_multiple_of(CHUNK)),
            Order::Lines => (lines, n),
        };
        let count = pieces * stride;
        let mut stored = vec![0; count * T * LINE + ALIGNMENT];
        let skipped = stored.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let bytes = stored[skipped..].as_chunks_mut::<LINE>().0.as_chunks_mut::<T>().0;
        let mut scales = vec![0.0; count * per_line];
        let mut sums = scales.clone();
        let pieces = bytes
            .par_chunks_mut(stride)
            .zip(scales.par_chunks_mut(stride * per_line))
            .zip(sums.par_chunks_mut(stride * per_line));
        let round = |(i, ((bytes, scales), sums)): (usize, ((&mut [_], &mut [_]), &mut [_]))| {
            let groups = scales.chunks_mut(per_line).zip(sums.chunks_mut(per_line));
            for (j, (bytes, (scales, sums))) in bytes.iter_mut().zip(groups).enumerate() {
                let (row, line) = if order == Order::Rows { (i, j) } else { (j, i) };
                if line < lines && row < n {
                    let x = &x[row * k..][..k];
                    let x = &x[line * LINE..k.min((line + 1) * LINE)];
                    isa.run(Round { x, codes, bytes, scales, sums });
                }
            }
        };
        // Few rows are rounded before another thread has woken up.
        let at_once = if n < 16 { usize::MAX } else { 1 };
        pieces.enumerate().with_min_len(at_once).for_each(round);
        Self { n, lines, per_line, order, stride, stored, skipped, scales, sums }
    }

    /// Bytes of all lines, those of higher value first: `q = bytes[0]` or `q = 256 · bytes[0] + bytes[1]`.
    #[inline(always)]
    pub(super) fn bytes(&self) -> &[[[u8; LINE]; T]] {
        self.stored[self.skipped..].as_chunks().0.as_chunks().0
    }

    /// Where the line `line` of row `row` lies.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, line: usize) -> usize {
        match self.order {
            Order::Rows => row * self.stride + line,
            Order::Lines => line * self.stride + row,
        }
    }
}

/// Rounds up to [`LINE`] values, group by group; the rest of the line counts as zero. Plain Rust, for the compiler
/// to use the vectors of the instruction set.
struct Round<'a, const T: usize> {
    x: &'a [f32],
    codes: Codes,
    bytes: &'a mut [[u8; LINE]; T],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<const T: usize> Kernel for Round<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { x, codes, bytes, scales, sums } = self;
        round_line(x, codes, bytes, scales, sums);
    }
}

#[inline(always)]
fn round_line<const T: usize>(
    x: &[f32],
    codes: Codes,
    bytes: &mut [[u8; LINE]; T],
    scales: &mut [f32],
    sums: &mut [f32],
) {
    let steps = const {
        match T {
            1 => 127.0,
            2 => 127.0 * 256.0 + 127.0,
            _ => panic!("one or two bytes"),
        }
    };
    let mut filled = [0.0; LINE];
    let values: &[f32; LINE] = match x.as_array() {
        Some(whole) => whole,
        None => {
            filled[..x.len()].copy_from_slice(x);
            &filled
        }
    };
    let group = LINE / scales.len();
    let mut q = [0i32; LINE];
    for (g, values) in values.chunks_exact(group).enumerate() {
        let (mut largest, mut poison) = ([0.0f32; 16], [0.0f32; 16]);
        for sixteen in values.as_chunks::<16>().0 {
            for i in 0..16 {
                let size = sixteen[i].abs();
                largest[i] = if size > largest[i] { size } else { largest[i] };
                poison[i] += size * 0.0;
            }
        }
        // Halves onto halves: few steps, one after another.
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                let other = largest[i + width];
                largest[i] = if other > largest[i] { other } else { largest[i] };
                poison[i] += poison[i + width];
            }
        }
        let (largest, poison) = (largest[0], poison[0]);
        // Below 1e-30, steps / largest would overflow.
        let some = largest > 1e-30 && largest.is_finite();
        let (scale, inverse) = if some { (largest / steps, steps / largest) } else { (0.0, 0.0) };
        scales[g] = scale;
        let mut total = 0i32;
        for (q, v) in q[g * group..].iter_mut().zip(values) {
            // Adding 1.5 · 2^23 leaves the whole number, ties to even, in the low bits.
            const WHOLE: f32 = 12_582_912.0;
            *q = (v * inverse + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()).cast_signed();
            total = q.wrapping_add(total);
        }
        // Zero, unless a value is not finite: then the whole product is not a number.
        sums[g] = scale * total as f32 + poison;
    }
    let q = codes.in_order(&q);
    for (t, bytes) in bytes.iter_mut().enumerate() {
        let lowest = t + 1 == T;
        for (byte, q) in bytes.iter_mut().zip(&q) {
            // The lower byte is signed, so the upper one takes what rounding it leaves.
            *byte = if lowest { *q } else { q.wrapping_add(128) >> 8 } as u8;
        }
    }
}
