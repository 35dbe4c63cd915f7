//! A borrowed matrix in MLX's affine format, and its codes line by line.
//!
//! ```text
//! words of a row, lowest bits first; a line is 128 codes, which are 4, 2 or 1 whole groups:
//!
//!   4 bits    c0 c1 | c2 c3 | .. | c126 c127     64 bytes: even codes in low nibbles, odd codes in high ones
//!   3 bits    c0 c1 c2 .. c7 | ..                48 bytes: eight codes are three bytes; unpacked to 128 bytes
//!
//! scales      g0 g1 g2 ..                        a value of bf16, f16 or f32 for each group of the row
//! biases      g0 g1 g2 ..                        the same
//! ```

use super::vector::{Simd, Spread};
use crate::dtype::FloatType;

/// Codes that are read together.
// The largest group, so that a line has whole groups; its nibbles are one register of 64 bytes.
pub(super) const LINE: usize = 128;

/// A borrowed packed matrix.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    pub(crate) words: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
    pub(crate) dtype: FloatType,
    pub(crate) bits: usize,
    pub(crate) group: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// Form in which kernels get the codes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// Four bits each: even codes in the low half of each byte, odd ones in the high half.
    Nibbles,
    /// A byte each, in order.
    Bytes,
}

impl<'a> Affine<'a> {
    pub(super) fn codes(&self) -> Codes {
        if self.bits == 4 { Codes::Nibbles } else { Codes::Bytes }
    }

    /// The packed words of one row.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        &self.words[row * self.row_bytes()..][..self.row_bytes()]
    }

    #[inline(always)]
    pub(super) fn row_bytes(&self) -> usize {
        self.cols * self.bits / 8
    }

    /// Whether activations rounded for one matrix serve the other.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        (self.cols, self.group, self.codes()) == (other.cols, other.group, other.codes())
    }

    /// Widens sixteen scales, or biases, from `group` on, counted over all rows. Values past the end of the row are finite.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(&self, simd: S, stored: &[u8], group: usize) -> S::Floats {
        let stored = stored.get(group * self.dtype.size()..).unwrap_or_default();
        match (self.dtype, stored.first_chunk()) {
            (FloatType::BF16, Some(sixteen)) => simd.widen_bf16(sixteen),
            _ => simd.load_floats(&widen(self.dtype, stored)),
        }
    }
}

/// The codes of a stored line of `WIDTH` bytes, other than of four bits, in order, a byte each.
#[inline(always)]
pub(super) fn line_bytes<S: Simd, const WIDTH: usize>(simd: S, line: &[u8; WIDTH]) -> [S::Bytes; 2] {
    if WIDTH == LINE {
        let halves = line.as_chunks::<64>().0;
        return [simd.load(&halves[0]), simd.load(&halves[1])];
    }
    let [low, high] = const { &[line_half(WIDTH, 0), line_half(WIDTH, 1)] };
    [
        simd.spread(simd.load_quarters([0, 1, 2, 3].map(|q| quarter(line, q))), low),
        simd.spread(simd.load_quarters([4, 5, 6, 7].map(|q| quarter(line, q))), high),
    ]
}

/// The codes of a line of a row, other than of four bits, in order, a byte each; zeros past the end of the row. Lines
/// have `WIDTH` bytes.
#[inline(always)]
pub(super) fn row_bytes<S: Simd, const WIDTH: usize>(simd: S, words: &[u8], line: usize) -> [S::Bytes; 2] {
    let mut rest = [0; WIDTH];
    let stored = match words.get(line * WIDTH..).and_then(|words| words.first_chunk()) {
        Some(whole) => whole,
        None => {
            copy_line(words, line, &mut rest);
            &rest
        }
    };
    line_bytes(simd, stored)
}

/// First byte of the load of quarter `q` of eight. The last ones begin early, so that they end with the line.
const fn quarter_start(width: usize, q: usize) -> usize {
    let (own, last) = (q * width / 8, width - 16);
    if own < last { own } else { last }
}

/// Places of the codes of half a line in its loads.
const fn line_half(width: usize, half: usize) -> Spread {
    let (mut starts, mut i) = ([0; 4], 0);
    while i < 4 {
        let q = 4 * half + i;
        starts[i] = q * width / 8 - quarter_start(width, q);
        i += 1;
    }
    Spread::new(width * 8 / LINE, starts)
}

#[inline(always)]
fn quarter<const WIDTH: usize>(line: &[u8; WIDTH], q: usize) -> &[u8; 16] {
    line[quarter_start(WIDTH, q)..].first_chunk().expect("a line of 32 bytes and more")
}

/// Widens up to sixteen values; the rest are zeros.
#[inline(never)]
pub(super) fn widen(dtype: FloatType, stored: &[u8]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let count = out.len().min(stored.len() / dtype.size());
    dtype.widen(&stored[..count * dtype.size()], &mut out[..count]);
    out
}

/// Copies the packed codes of a line of `out.len()` bytes; zeros past the end of the row.
#[inline(never)]
pub(super) fn copy_line(words: &[u8], line: usize, out: &mut [u8]) {
    let words = words.get(line * out.len()..).unwrap_or_default();
    let (codes, rest) = out.split_at_mut(words.len().min(out.len()));
    codes.copy_from_slice(&words[..codes.len()]);
    rest.fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affine::pack_codes;
    use crate::kernels::vector::{Isa, Kernel};

    struct Bytes<'a, const WIDTH: usize>(&'a [u8; WIDTH]);

    impl<const WIDTH: usize> Kernel for Bytes<'_, WIDTH> {
        type Output = [[u8; 64]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut out = [[0; 64]; 2];
            let [low, high] = line_bytes(simd, self.0);
            simd.store(low, &mut out[0]);
            simd.store(high, &mut out[1]);
            out
        }
    }

    /// Every code alone in a line of the others' complement, so that no bit of a neighbour stays unseen.
    fn check<const WIDTH: usize>() {
        let bits = WIDTH / 16;
        let largest = (1u32 << bits) - 1;
        for i in 0..LINE {
            let code = (i as u32 * 7 + 1) & largest;
            let mut codes = [(!code & largest) as u8; LINE];
            codes[i] = code as u8;
            let words = pack_codes(&codes, bits);
            let line: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            for isa in Isa::available() {
                let found = isa.run(Bytes::<WIDTH>(line.first_chunk().unwrap()));
                assert_eq!(found.as_flattened(), codes, "{isa:?}, {bits} bits, code {i}");
            }
        }
    }

    #[test]
    fn lines_are_unpacked_as_they_were_packed() {
        check::<32>();
        check::<48>();
        check::<80>();
        check::<96>();
        check::<128>();
    }
}
