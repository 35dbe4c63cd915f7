//! Activations as integers, in the order in which the codes of a weight come out of its words.
//!
//! ```text
//! Order::Rows       | token 0: line 0, line 1, .. zeros | token 1: line 0, ..     whole chunks of 16 lines
//! Order::Lines(n)   | line 0: token 0, .. token n-1 | line 1: token 0, ..         zeros for missing tokens
//!
//! line, for bytes   | x0 x1 x2 x3 .. x127 |                   one scale and one sum a group
//! line, for nibbles | x0 x2 .. x126 | x1 x3 .. x127 |         even columns meet low nibbles, odd ones high nibbles
//! bytes of a line   | high bytes of the line | low bytes |    q = 256 · high + low, low being signed
//! ```
//!
//! The low bytes of most groups are zeros: see [`HIDDEN`].

use rayon::prelude::*;

use super::CHUNK;
use crate::kernels::affine_matrix::{Codes, LINE};
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Square of the largest value of a group, in mean squares of the group, from which a second byte is used.
// One byte has 127 steps to the largest value; what is far below it would be rounded away. Of groups of 128 normally
// distributed values one in 400 has a larger one. With it the plainly rounded nano model is 4.6e-5 nats from its logits
// with activations in f32, and 0.029 without any second byte (AVX2, 24 questions).
const HIDDEN: f32 = 18.0;

/// Rounded activations: `x ≈ scale · q` with one scale for each group of the weight. `q` has two signed bytes: ±32,639
/// where the largest value of a group hides the others, else multiples of 256 up to ±127 · 256. The values of a group
/// decide, and nothing else.
pub(super) struct Activations {
    /// Tokens.
    pub(super) n: usize,
    /// Lines of [`LINE`] values of a token, the last filled up with zeros.
    pub(super) lines: usize,
    /// Groups in a line.
    pub(super) per_line: usize,
    order: Order,
    /// In [`Order::Rows`], lines from one token to the next: whole chunks. In [`Order::Lines`], tokens from one line to the
    /// next.
    stride: usize,
    /// Memory of [`bytes`](Self::bytes), which begin after `skipped` ones: lines begin where cache lines do.
    stored: Vec<u8>,
    skipped: usize,
    /// Scales, `per_line` for each line.
    pub(super) scales: Vec<f32>,
    /// Whether a group has low bytes other than zero, in the order of `scales`.
    pub(super) fine: Vec<bool>,
    /// Sums of each group, in the order of `scales`.
    // Sums of rounded values: the error of rounding then meets the weight, `scale · code + bias`, not the code alone.
    pub(super) sums: Vec<f32>,
}

/// Bytes of a cache line, and of a load.
// A load that lies in two cache lines takes twice as long.
const ALIGNMENT: usize = 64;

/// Lines of a token that are read together in [`Order::Lines`].
// Memory is read best in order: four lines are 2 kB of f32, half a page.
const TOGETHER: usize = 4;

/// Order of the lines of several tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// All lines of a token, then those of the next.
    Rows,
    /// Line 0 of all tokens, then line 1; this many tokens, of which the last may be zeros.
    Lines(usize),
}

impl Activations {
    /// Rounds `n` tokens of whole groups of `group`.
    pub(super) fn new(isa: Isa, x: &[f32], n: usize, group: usize, codes: Codes, order: Order) -> Self {
        let k = x.len() / n;
        let (lines, per_line) = (k.div_ceil(LINE), LINE / group);
        // A task rounds a whole token, or some lines of all tokens.
        let (pieces, stride, at_once) = match order {
            Order::Rows => (n, lines.next_multiple_of(CHUNK), 1),
            Order::Lines(rows) => (lines, rows, TOGETHER),
        };
        let count = pieces * stride;
        let mut stored = vec![0; count * 2 * LINE + ALIGNMENT];
        let skipped = stored.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let bytes = stored[skipped..].as_chunks_mut::<LINE>().0.as_chunks_mut::<2>().0;
        let mut scales = vec![0.0; count * per_line];
        let mut sums = scales.clone();
        let mut fine = vec![false; count * per_line];
        let pieces = bytes
            .par_chunks_mut(at_once * stride)
            .zip(scales.par_chunks_mut(at_once * stride * per_line))
            .zip(sums.par_chunks_mut(at_once * stride * per_line))
            .zip(fine.par_chunks_mut(at_once * stride * per_line));
        // One or two tokens are rounded before another thread has begun.
        let least = if n <= 2 { usize::MAX } else { 1 };
        pieces.enumerate().with_min_len(least).for_each(|(i, (((bytes, scales), sums), fine))| {
            // Tokens and lines of the task, and their distances in it.
            let (rows, of_piece, apart) = match order {
                Order::Rows => (i..i + 1, 0..lines, [0, 1]),
                Order::Lines(_) => (0..n, i * TOGETHER..lines.min((i + 1) * TOGETHER), [1, stride]),
            };
            for row in rows {
                for (l, line) in of_piece.clone().enumerate() {
                    let at = row * apart[0] + l * apart[1];
                    let x = &x[row * k..][..k];
                    let x = &x[line * LINE..k.min((line + 1) * LINE)];
                    let groups = at * per_line..(at + 1) * per_line;
                    let (scales, sums) = (&mut scales[groups.clone()], &mut sums[groups.clone()]);
                    let fine = &mut fine[groups];
                    isa.run(Round { x, codes, bytes: &mut bytes[at], scales, sums, fine });
                }
            }
        });
        Self { n, lines, per_line, order, stride, stored, skipped, scales, fine, sums }
    }

    /// Bytes of all lines, high bytes first: `q = 256 · bytes[0] + bytes[1]`.
    #[inline(always)]
    pub(super) fn bytes(&self) -> &[[[u8; LINE]; 2]] {
        self.stored[self.skipped..].as_chunks().0.as_chunks().0
    }

    /// Index of line `line` of token `row`.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, line: usize) -> usize {
        match self.order {
            Order::Rows => row * self.stride + line,
            Order::Lines(_) => line * self.stride + row,
        }
    }
}

/// Rounds up to [`LINE`] values, group by group; the rest of the line becomes zeros.
struct Round<'a> {
    x: &'a [f32],
    codes: Codes,
    bytes: &'a mut [[u8; LINE]; 2],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    fine: &'a mut [bool],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, codes, bytes, scales, sums, fine } = self;
        let mut filled = [0.0; LINE];
        let values: &[f32; LINE] = match x.as_array() {
            Some(whole) => whole,
            None => {
                filled[..x.len()].copy_from_slice(x);
                &filled
            }
        };
        let values: &[[f32; 16]; SIXTEENS] = values.as_chunks().0.as_array().expect("a line");
        let mut q = [simd.zero_ints(); SIXTEENS];
        let per_group = SIXTEENS / scales.len();
        for (g, ((scale, sum), fine)) in scales.iter_mut().zip(sums).zip(fine).enumerate() {
            let group = g * per_group..(g + 1) * per_group;
            let (mut largest, mut poison) = (simd.splat(0.0), simd.splat(0.0));
            let mut squares = simd.splat(0.0);
            for i in group.clone() {
                let size = simd.abs(simd.load_floats(&values[i]));
                largest = simd.larger(size, largest);
                squares = simd.add(squares, simd.mul(size, size));
                poison = simd.add(poison, simd.mul(size, simd.splat(0.0)));
            }
            let largest = folded(simd, largest, |a, b| if b > a { b } else { a });
            let poison = folded(simd, poison, |a, b| a + b);
            let squares = folded(simd, squares, |a, b| a + b);
            // Below 1e-30, steps / largest would overflow.
            let some = largest > 1e-30 && largest.is_finite();
            // Not finite where a square is not: two bytes then.
            let coarse = largest * largest * (16 * per_group) as f32 <= HIDDEN * squares;
            *fine = some && !coarse;
            let steps = if *fine { 127.0 * 256.0 + 127.0 } else { 127.0 };
            let inverse = if some { steps / largest } else { 0.0 };
            let mut total = simd.zero_ints();
            for i in group {
                let nearest = simd.nearest(simd.mul(simd.load_floats(&values[i]), simd.splat(inverse)));
                q[i] = if *fine { nearest } else { simd.times_256(nearest) };
                total = simd.add_ints(total, q[i]);
            }
            let mut lanes = [0; 16];
            simd.store_ints(total, &mut lanes);
            let total = lanes.into_iter().fold(0, i32::wrapping_add);
            let steps = if *fine { steps } else { steps * 256.0 };
            *scale = if some { largest / steps } else { 0.0 };
            // Poison is zero, unless a value is not finite: then it makes the output NaN.
            *sum = *scale * total as f32 + poison;
        }
        for (t, bytes) in bytes.iter_mut().enumerate() {
            let mut part = q;
            if t == 0 {
                // The lower byte is signed, so the upper one takes what rounding it leaves.
                for i in 0..SIXTEENS {
                    part[i] = simd.upper_byte(q[i]);
                }
            }
            let [a, b, c, d, e, f, g, h] = part;
            let mut halves = [simd.low_bytes([a, b, c, d]), simd.low_bytes([e, f, g, h])];
            if codes == Codes::Nibbles {
                halves = simd.even_and_odd(halves);
            }
            for (half, bytes) in halves.into_iter().zip(bytes.as_chunks_mut().0) {
                simd.store(half, bytes);
            }
        }
    }
}

/// Registers of sixteen values in a line.
const SIXTEENS: usize = LINE / 16;

/// Joins all lanes, halves onto halves.
#[inline(always)]
fn folded<S: Simd>(simd: S, values: S::Floats, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    simd.store_floats(values, &mut lanes);
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}
