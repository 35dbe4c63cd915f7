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

use super::vector::Simd;
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

/// Widens up to sixteen values; the rest are zeros.
#[inline(never)]
pub(super) fn widen(dtype: FloatType, stored: &[u8]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let count = out.len().min(stored.len() / dtype.size());
    dtype.widen(&stored[..count * dtype.size()], &mut out[..count]);
    out
}

/// Copies the codes of one line, packed or as bytes, by the length of `out`; zeros past the end of the row.
#[inline(never)]
pub(super) fn unpack_line(words: &[u8], bits: usize, line: usize, out: &mut [u8]) {
    let width = LINE * bits / 8;
    let words = words.get(line * width..).unwrap_or_default();
    let words = &words[..words.len().min(width)];
    if out.len() == width {
        out[..words.len()].copy_from_slice(words);
        out[words.len()..].fill(0);
        return;
    }
    let mask = (1u64 << bits) - 1;
    let (eights, rest) = out.split_at_mut(words.len() / bits * 8);
    for (packed, out) in words.chunks_exact(bits).zip(eights.as_chunks_mut::<8>().0) {
        let mut word = [0; 8];
        word[..bits].copy_from_slice(packed);
        let word = u64::from_le_bytes(word);
        for (i, o) in out.iter_mut().enumerate() {
            *o = (word >> (i * bits) & mask) as u8;
        }
    }
    rest.fill(0);
}
