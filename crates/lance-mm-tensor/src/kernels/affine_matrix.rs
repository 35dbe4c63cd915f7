//! A matrix in MLX's affine format where it lies, and its codes line by line.

use super::vector::Simd;
use crate::dtype::FloatType;

/// Codes that are read together.
pub(super) const LINE: usize = 128;

/// A packed matrix where it lies.
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

/// How the codes of a line reach the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// As four bits: even codes in the low half of each byte, odd ones in the high half.
    Nibbles,
    /// As bytes, one after another.
    Bytes,
}

impl<'a> Affine<'a> {
    pub(super) fn codes(&self) -> Codes {
        if self.bits == 4 { Codes::Nibbles } else { Codes::Bytes }
    }

    /// Words of one row.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [u8] {
        &self.words[row * self.row_bytes()..][..self.row_bytes()]
    }

    #[inline(always)]
    pub(super) fn row_bytes(&self) -> usize {
        self.cols * self.bits / 8
    }

    /// Whether activations that are rounded for one are for the other.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        (self.cols, self.group, self.codes()) == (other.cols, other.group, other.codes())
    }

    /// Sixteen scales, or biases, from a group on, counted over all rows. Those past the row's end are finite.
    #[inline(always)]
    pub(super) fn widen<S: Simd>(&self, simd: S, stored: &[u8], group: usize) -> S::Floats {
        let stored = stored.get(group * self.dtype.size()..).unwrap_or_default();
        match (self.dtype, stored.first_chunk()) {
            (FloatType::BF16, Some(sixteen)) => simd.widen_bf16(sixteen),
            _ => simd.load_floats(&widen(self.dtype, stored)),
        }
    }
}

/// Up to sixteen values, then zeros.
#[inline(never)]
pub(super) fn widen(dtype: FloatType, stored: &[u8]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let count = out.len().min(stored.len() / dtype.size());
    dtype.widen(&stored[..count * dtype.size()], &mut out[..count]);
    out
}

/// Codes of one line, as they are or as bytes; zeros past the end of the row.
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
