//! One or two tokens: each line of codes is read once, and multiplied by both.
//!
//! ```text
//! a row of the weight     | line 0 | line 1 | .. | line 15 |  chunk: scales and biases widened in registers of sixteen
//! a line of nibbles       64 bytes -> even codes (64 lanes of bytes), odd codes (64 lanes)
//! of other widths         16 bytes for each bit -> codes 0 .. 63, codes 64 .. 127, a byte each
//! of activations          high bytes of even columns, of odd ones; low bytes of even columns, of odd ones
//!
//! i32 lane i              256 · (Σ code · high) + Σ code · low     eight columns of one group
//! f32 lane i              += i32 lane i · scale · x scale          all lines of the row; lanes are added up at its end
//! ```
//!
//! A chunk holds a register of bias terms too: `Σ bias · sum of x` needs one multiplication for sixteen groups.

use super::CHUNK;
use super::activations::Activations;
use crate::dtype::FloatType;
use crate::kernels::affine_matrix::{Affine, LINE, copy_line, line_bytes, widen};
use crate::kernels::vector::{Isa, Kernel, Simd, sum};

/// Distance of prefetched codes, in bytes.
// Two pages, so that addresses are translated in time too. A token on Zen 4: 43.3 ms at 8 kB, 44.1 at 16, 47.9 at 4; on
// Zen 5 4 to 32 kB are the same.
const AHEAD: usize = 8 * 1024;

/// `out[r · n + i] = w[first + r] · x[i]` for as many rows of the weight as fit in `out`.
pub(super) fn rows(isa: Isa, w: &Affine<'_>, x: &Activations, first: usize, out: &mut [f32]) {
    match x.n {
        1 => rows_of::<1>(isa, w, x, first, out),
        2 => rows_of::<2>(isa, w, x, first, out),
        n => unreachable!("{n} tokens are not one or two"),
    }
}

fn rows_of<const N: usize>(isa: Isa, w: &Affine<'_>, x: &Activations, first: usize, out: &mut [f32]) {
    macro_rules! run {
        ($($per:literal)*) => {
            match (w.bits, x.per_line) {
                $((2, $per) => isa.run(Rows::<N, $per, 32> { w, x, first, out }),
                (3, $per) => isa.run(Rows::<N, $per, 48> { w, x, first, out }),
                (4, $per) => isa.run(Rows::<N, $per, 64> { w, x, first, out }),
                (5, $per) => isa.run(Rows::<N, $per, 80> { w, x, first, out }),
                (6, $per) => isa.run(Rows::<N, $per, 96> { w, x, first, out }),
                (8, $per) => isa.run(Rows::<N, $per, LINE> { w, x, first, out }),)*
                _ => unreachable!("bits are 2, 3, 4, 5, 6 or 8, groups 32, 64 or 128"),
            }
        };
    }
    run!(1 2 4)
}

/// `N` tokens, `PER` groups in a line of `WIDTH` bytes, sixteen for each bit of a code.
struct Rows<'a, const N: usize, const PER: usize, const WIDTH: usize> {
    w: &'a Affine<'a>,
    x: &'a Activations,
    first: usize,
    out: &'a mut [f32],
}

impl<const N: usize, const PER: usize, const WIDTH: usize> Kernel for Rows<'_, N, PER, WIDTH> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, first, out } = self;
        let x = std::array::from_fn(|n| Row::<PER>::new(x, n));
        let groups = w.cols / w.group;
        // Distance of the scales of the rows whose codes are prefetched.
        let mut unpacked = Unpacked::<PER, WIDTH>::default();
        let ahead = (AHEAD / w.row(0).len().max(1) + 1) * groups * w.dtype.size();
        for (row, out) in (first..).zip(out.as_chunks_mut::<N>().0) {
            let [scales, biases] = [w.scales, w.biases].map(|stored| {
                let stored = stored.get(row * groups * w.dtype.size()..).unwrap_or_default();
                simd.prefetch(stored.as_ptr().wrapping_add(ahead));
                stored
            });
            *out = match Stored::<_, PER, WIDTH>::in_place(w, row, scales, biases, x[0].bytes.len()) {
                Some(stored) => stored.products(simd, &x),
                None => unpacked.read(w, row, scales, biases).products(simd, &x),
            };
        }
    }
}

/// Activations of a token, chunk by chunk.
struct Row<'a, const PER: usize> {
    bytes: &'a [[[[u8; LINE]; 2]; CHUNK]],
    scales: &'a [[[f32; 16]; PER]],
    sums: &'a [[[f32; 16]; PER]],
}

impl<'a, const PER: usize> Row<'a, PER> {
    fn new(x: &'a Activations, n: usize) -> Self {
        let lines = x.at(n, 0)..x.at(n, x.lines.next_multiple_of(CHUNK));
        let groups = lines.start * PER..lines.end * PER;
        Self {
            bytes: x.bytes()[lines].as_chunks().0,
            scales: x.scales[groups.clone()].as_chunks().0.as_chunks().0,
            sums: x.sums[groups].as_chunks().0.as_chunks().0,
        }
    }
}

/// A row of the weight: its lines, and scales and biases for every chunk of them; those of the last chunk may reach past
/// the end of the row.
struct Stored<'a, F, const PER: usize, const WIDTH: usize> {
    codes: &'a [[u8; WIDTH]],
    scales: &'a [[F; PER]],
    biases: &'a [[F; PER]],
}

impl<'a, const PER: usize, const WIDTH: usize> Stored<'a, [u8; 32], PER, WIDTH> {
    /// Borrows a row of `chunks` chunks from the file; `None` if codes or factors are not stored in this form. `scales` and
    /// `biases` begin with those of the row.
    #[inline(always)]
    fn in_place(
        w: &Affine<'a>,
        row: usize,
        scales: &'a [u8],
        biases: &'a [u8],
        chunks: usize,
    ) -> Option<Self> {
        let (codes, rest) = w.row(row).as_chunks();
        let factors = |stored: &'a [u8]| stored.as_chunks().0.as_chunks().0.get(..chunks);
        let fits = rest.is_empty() && WIDTH * 8 == LINE * w.bits && w.dtype == FloatType::BF16;
        fits.then_some(Self { codes, scales: factors(scales)?, biases: factors(biases)? })
    }
}

/// A row of the weight, its last line filled up.
struct Unpacked<const PER: usize, const WIDTH: usize> {
    codes: Vec<[u8; WIDTH]>,
    scales: Vec<[[f32; 16]; PER]>,
    biases: Vec<[[f32; 16]; PER]>,
}

impl<const PER: usize, const WIDTH: usize> Default for Unpacked<PER, WIDTH> {
    fn default() -> Self {
        Self { codes: Vec::new(), scales: Vec::new(), biases: Vec::new() }
    }
}

impl<const PER: usize, const WIDTH: usize> Unpacked<PER, WIDTH> {
    #[inline(never)]
    fn read(
        &mut self,
        w: &Affine<'_>,
        row: usize,
        scales: &[u8],
        biases: &[u8],
    ) -> Stored<'_, [f32; 16], PER, WIDTH> {
        let lines = w.cols.div_ceil(LINE);
        self.codes.resize(lines, [0; WIDTH]);
        for (line, codes) in self.codes.iter_mut().enumerate() {
            copy_line(w.row(row), line, codes);
        }
        for (out, stored) in [(&mut self.scales, scales), (&mut self.biases, biases)] {
            out.resize(lines.div_ceil(CHUNK), [[0.0; 16]; PER]);
            for (i, out) in out.as_flattened_mut().iter_mut().enumerate() {
                *out = widen(w.dtype, stored.get(16 * i * w.dtype.size()..).unwrap_or_default());
            }
        }
        Stored { codes: &self.codes, scales: &self.scales, biases: &self.biases }
    }
}

/// Sixteen scales, or biases.
trait Factors {
    fn floats<S: Simd>(&self, simd: S) -> S::Floats;
}

/// bf16.
impl Factors for [u8; 32] {
    #[inline(always)]
    fn floats<S: Simd>(&self, simd: S) -> S::Floats {
        simd.widen_bf16(self)
    }
}

impl Factors for [f32; 16] {
    #[inline(always)]
    fn floats<S: Simd>(&self, simd: S) -> S::Floats {
        simd.load_floats(self)
    }
}

impl<F: Factors, const PER: usize, const WIDTH: usize> Stored<'_, F, PER, WIDTH> {
    /// Dot products with `N` tokens.
    #[inline(always)]
    fn products<S: Simd, const N: usize>(&self, simd: S, x: &[Row<'_, PER>; N]) -> [f32; N] {
        let mut sums = [simd.splat(0.0); N];
        let factors = self.scales.iter().zip(self.biases);
        for (c, (codes, (scales, biases))) in self.codes.chunks(CHUNK).zip(factors).enumerate() {
            for n in 0..N {
                let mut factors = [[0.0; 16]; PER];
                for i in 0..PER {
                    let scale = simd.mul(scales[i].floats(simd), simd.load_floats(&x[n].scales[c][i]));
                    simd.store_floats(scale, &mut factors[i]);
                    let bias = simd.mul(biases[i].floats(simd), simd.load_floats(&x[n].sums[c][i]));
                    sums[n] = simd.add(sums[n], bias);
                }
                sums[n] = chunk::<S, PER, WIDTH>(simd, codes, &factors, &x[n].bytes[c], sums[n]);
            }
        }
        let mut out = [0.0; N];
        for n in 0..N {
            let mut lanes = [0.0; 16];
            simd.store_floats(sums[n], &mut lanes);
            out[n] = sum(lanes);
        }
        out
    }
}

/// Adds the scaled dot products of a chunk's lines with a token to `sum`.
#[inline(always)]
fn chunk<S: Simd, const PER: usize, const WIDTH: usize>(
    simd: S,
    codes: &[[u8; WIDTH]],
    factors: &[[f32; 16]; PER],
    x: &[[[u8; LINE]; 2]],
    mut sum: S::Floats,
) -> S::Floats {
    let nibbles = WIDTH == 64;
    let zero = simd.zero_ints();
    for ((codes, x), factor) in codes.iter().zip(x).zip(factors.as_flattened().as_chunks::<PER>().0) {
        let (high, low) = (halves(&x[0]), halves(&x[1]));
        for i in (0..WIDTH).step_by(64) {
            simd.prefetch(codes.as_ptr().wrapping_add(AHEAD + i));
        }
        let codes = match codes.as_chunks::<64>().0 {
            [line] if nibbles => simd.nibbles(simd.load(line)),
            _ => line_bytes(simd, codes),
        };
        if nibbles || PER == 1 {
            let upper = dot::<S, WIDTH>(simd, zero, codes[0], high[0]);
            let upper = simd.times_256(dot::<S, WIDTH>(simd, upper, codes[1], high[1]));
            let whole = dot::<S, WIDTH>(simd, upper, codes[0], low[0]);
            let whole = simd.to_floats(dot::<S, WIDTH>(simd, whole, codes[1], low[1]));
            let factor = match PER {
                1 => simd.splat(factor[0]),
                _ => simd.splat_quarters([factor[0], factor[PER / 4], factor[PER / 2], factor[3 * PER / 4]]),
            };
            sum = simd.add(sum, simd.mul(whole, factor));
        } else {
            for half in 0..2 {
                let upper = simd.times_256(dot::<S, WIDTH>(simd, zero, codes[half], high[half]));
                let whole = dot::<S, WIDTH>(simd, upper, codes[half], low[half]);
                let [a, b] = [factor[half * PER / 2], factor[half * PER / 2 + PER / 4]];
                let product = simd.mul(simd.to_floats(whole), simd.splat_quarters([a, a, b, b]));
                sum = simd.add(sum, product);
            }
        }
    }
    sum
}

#[inline(always)]
fn dot<S: Simd, const WIDTH: usize>(simd: S, sums: S::Ints, codes: S::Bytes, x: &[u8; 64]) -> S::Ints {
    if WIDTH < LINE {
        simd.dot::<false>(sums, codes, simd.load(x))
    } else {
        simd.dot::<true>(sums, codes, simd.load(x))
    }
}

#[inline(always)]
fn halves(line: &[u8; LINE]) -> [&[u8; 64]; 2] {
    let halves = line.as_chunks::<64>().0;
    [&halves[0], &halves[1]]
}
