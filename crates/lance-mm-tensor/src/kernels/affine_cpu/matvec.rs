//! One or two rows of activations: each line of codes is used for both as it is read.

use super::activations::Activations;
use super::simd::{Isa, Kernel, Simd, sum};
use super::{Affine, CHUNK, Codes, LINE};

/// Bytes of codes that are asked for ahead of their use: four pages, so that their addresses are looked up in time
/// too.
const AHEAD: usize = 16 * 1024;

/// `out[r · n + i] = w[first + r] · x[i]` for as many rows of the weight as there is room for.
pub(super) fn rows(isa: Isa, w: &Affine<'_>, x: &Activations<2>, first: usize, out: &mut [f32]) {
    match x.n {
        1 => rows_of::<1>(isa, w, x, first, out),
        2 => rows_of::<2>(isa, w, x, first, out),
        n => unreachable!("{n} rows are not few"),
    }
}

fn rows_of<const N: usize>(isa: Isa, w: &Affine<'_>, x: &Activations<2>, first: usize, out: &mut [f32]) {
    macro_rules! run {
        ($($per:literal)*) => {
            match (w.codes(), x.per_line) {
                $((Codes::Nibbles, $per) => isa.run(Rows::<N, $per, 64> { w, x, first, out }),
                (Codes::Bytes, $per) => isa.run(Rows::<N, $per, LINE> { w, x, first, out }),)*
                _ => unreachable!("groups are 32, 64 or 128"),
            }
        };
    }
    run!(1 2 4)
}

/// `N` rows of activations, `PER` groups in a line of `WIDTH` bytes: 64 of nibbles or 128 of bytes.
struct Rows<'a, const N: usize, const PER: usize, const WIDTH: usize> {
    w: &'a Affine<'a>,
    x: &'a Activations<2>,
    first: usize,
    out: &'a mut [f32],
}

impl<const N: usize, const PER: usize, const WIDTH: usize> Kernel for Rows<'_, N, PER, WIDTH> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut buffer = [[0; WIDTH]; CHUNK];
        for (r, out) in self.out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            row::<S, N, PER, WIDTH>(simd, self.w, self.x, self.first + r, &mut buffer, out);
        }
    }
}

/// One row of the weight with `N` rows of activations.
#[inline(always)]
fn row<S: Simd, const N: usize, const PER: usize, const WIDTH: usize>(
    simd: S,
    w: &Affine<'_>,
    x: &Activations<2>,
    row: usize,
    buffer: &mut [[u8; WIDTH]; CHUNK],
    out: &mut [f32; N],
) {
    let mut sums = [simd.splat(0.0); N];
    for first in (0..x.lines).step_by(CHUNK) {
        let count = CHUNK.min(x.lines - first);
        let codes = w.chunk(w.row(row), first, buffer);
        for n in 0..N {
            let lines = x.at(n, first)..x.at(n, first) + CHUNK;
            let groups = lines.start * PER..lines.end * PER;
            let bytes = x.bytes[lines].as_array().expect("whole chunks");
            let x_scales: &[[f32; 16]; PER] =
                x.scales[groups.clone()].as_chunks().0.as_array().expect("whole chunks");
            let x_sums: &[[f32; 16]; PER] = x.sums[groups].as_chunks().0.as_array().expect("whole chunks");
            let mut factors = [[0.0; 16]; PER];
            for i in 0..PER {
                let groups = first * PER + 16 * i;
                let factor = w.widen(simd, w.scales, row, groups);
                let factor = simd.mul(factor, simd.load_floats(&x_scales[i]));
                simd.store_floats(factor, &mut factors[i]);
                let bias = w.widen(simd, w.biases, row, groups);
                sums[n] = simd.add(sums[n], simd.mul(bias, simd.load_floats(&x_sums[i])));
            }
            chunk::<S, PER, WIDTH>(simd, codes, &factors, bytes, count, &mut sums[n]);
        }
    }
    for n in 0..N {
        let mut lanes = [0.0; 16];
        simd.store_floats(sums[n], &mut lanes);
        out[n] = sum(lanes);
    }
}

/// Adds scaled products of `count` lines with a row of activations.
#[inline(always)]
fn chunk<S: Simd, const PER: usize, const WIDTH: usize>(
    simd: S,
    codes: &[[u8; WIDTH]; CHUNK],
    factors: &[[f32; 16]; PER],
    x: &[[[u8; LINE]; 2]; CHUNK],
    count: usize,
    sum: &mut S::Floats,
) {
    let nibbles = WIDTH < LINE;
    let factors = factors.as_flattened().as_chunks::<PER>().0;
    for l in 0..count.min(CHUNK) {
        let (high, low) = (halves(&x[l][0]), halves(&x[l][1]));
        for i in (0..WIDTH).step_by(64) {
            simd.prefetch(codes[l].as_ptr().wrapping_add(AHEAD + i));
        }
        let bytes = codes[l].as_chunks::<64>().0;
        let codes = match nibbles {
            true => simd.nibbles(simd.load(&bytes[0])),
            false => [simd.load(&bytes[0]), simd.load(&bytes[1])],
        };
        let factor = &factors[l];
        let zero = simd.zero_ints();
        if nibbles || PER == 1 {
            let upper = dot::<S, WIDTH>(simd, zero, codes[0], high[0]);
            let upper = simd.times_256(dot::<S, WIDTH>(simd, upper, codes[1], high[1]));
            let whole = dot::<S, WIDTH>(simd, upper, codes[0], low[0]);
            let whole = simd.to_floats(dot::<S, WIDTH>(simd, whole, codes[1], low[1]));
            let factor = match PER {
                1 => simd.splat(factor[0]),
                _ => simd.splat_quarters([factor[0], factor[PER / 4], factor[PER / 2], factor[3 * PER / 4]]),
            };
            *sum = simd.add(*sum, simd.mul(whole, factor));
        } else {
            for half in 0..2 {
                let upper = simd.times_256(dot::<S, WIDTH>(simd, zero, codes[half], high[half]));
                let whole = dot::<S, WIDTH>(simd, upper, codes[half], low[half]);
                let [a, b] = [factor[half * PER / 2], factor[half * PER / 2 + PER / 4]];
                let product = simd.mul(simd.to_floats(whole), simd.splat_quarters([a, a, b, b]));
                *sum = simd.add(*sum, product);
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd, const WIDTH: usize>(simd: S, sums: S::Ints, codes: S::Bytes, x: &[u8; 64]) -> S::Ints {
    match WIDTH < LINE {
        true => simd.dot::<false>(sums, codes, simd.load(x)),
        false => simd.dot::<true>(sums, codes, simd.load(x)),
    }
}

#[inline(always)]
fn halves(line: &[u8; LINE]) -> [&[u8; 64]; 2] {
    let halves = line.as_chunks::<64>().0;
    [&halves[0], &halves[1]]
}
