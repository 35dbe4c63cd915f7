//! One or two rows of activations: each line of codes is used for both as it is read.

use super::CHUNK;
use super::activations::Activations;
use crate::dtype::FloatType;
use crate::kernels::affine_matrix::{Affine, Codes, LINE, unpack_line, widen};
use crate::kernels::vector::{Isa, Kernel, Simd, sum};

/// Bytes of codes that are asked for ahead of their use: two pages, so that their addresses are looked up in time
/// too.
const AHEAD: usize = 8 * 1024;

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
        let Self { w, x, first, out } = self;
        let x = std::array::from_fn(|n| Row::<PER>::new(x, n));
        let groups = w.cols / w.group;
        // Scales of the rows whose codes are asked for.
        let mut unpacked = Unpacked::<PER, WIDTH>::default();
        let ahead = (AHEAD / w.row(0).len().max(1) + 1) * groups * w.dtype.size();
        for (row, out) in (first..).zip(out.as_chunks_mut::<N>().0) {
            let [scales, biases] = [w.scales, w.biases].map(|stored| {
                let stored = stored.get(row * groups * w.dtype.size()..).unwrap_or_default();
                simd.prefetch(stored.as_ptr().wrapping_add(ahead));
                stored
            });
            *out = match Stored::<_, PER, WIDTH>::where_it_lies(w, row, scales, biases, x[0].bytes.len()) {
                Some(stored) => stored.products(simd, &x),
                None => unpacked.read(w, row, scales, biases).products(simd, &x),
            };
        }
    }
}

/// A row of activations, chunk by chunk.
struct Row<'a, const PER: usize> {
    bytes: &'a [[[[u8; LINE]; 2]; CHUNK]],
    scales: &'a [[[f32; 16]; PER]],
    sums: &'a [[[f32; 16]; PER]],
}

impl<'a, const PER: usize> Row<'a, PER> {
    fn new(x: &'a Activations<2>, n: usize) -> Self {
        let lines = x.at(n, 0)..x.at(n, x.lines.next_multiple_of(CHUNK));
        let groups = lines.start * PER..lines.end * PER;
        Self {
            bytes: x.bytes()[lines].as_chunks().0,
            scales: x.scales[groups.clone()].as_chunks().0.as_chunks().0,
            sums: x.sums[groups].as_chunks().0.as_chunks().0,
        }
    }
}

/// A row of the weight: its lines, and for every chunk of them scales and biases; those of the last chunk may go on
/// past the end of the row.
struct Stored<'a, F, const PER: usize, const WIDTH: usize> {
    codes: &'a [[u8; WIDTH]],
    scales: &'a [[F; PER]],
    biases: &'a [[F; PER]],
}

impl<'a, const PER: usize, const WIDTH: usize> Stored<'a, [u8; 32], PER, WIDTH> {
    /// A row of `chunks` chunks in the file itself; `None` where its codes or their factors do not lie there in this
    /// form. `scales` and `biases` begin with those of the row.
    #[inline(always)]
    fn where_it_lies(
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

/// A row of the weight in the form that products read.
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
            unpack_line(w.row(row), w.bits, line, codes);
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

/// As bf16.
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
    /// With `N` rows of activations.
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

/// A sum, and the scaled products of lines of codes with as many of a row of activations.
#[inline(always)]
fn chunk<S: Simd, const PER: usize, const WIDTH: usize>(
    simd: S,
    codes: &[[u8; WIDTH]],
    factors: &[[f32; 16]; PER],
    x: &[[[u8; LINE]; 2]],
    mut sum: S::Floats,
) -> S::Floats {
    let nibbles = WIDTH < LINE;
    let zero = simd.zero_ints();
    for ((codes, x), factor) in codes.iter().zip(x).zip(factors.as_flattened().as_chunks::<PER>().0) {
        let (high, low) = (halves(&x[0]), halves(&x[1]));
        for i in (0..WIDTH).step_by(64) {
            simd.prefetch(codes.as_ptr().wrapping_add(AHEAD + i));
        }
        let bytes = codes.as_chunks::<64>().0;
        let codes = if nibbles {
            simd.nibbles(simd.load(&bytes[0]))
        } else {
            [simd.load(&bytes[0]), simd.load(&bytes[1])]
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
