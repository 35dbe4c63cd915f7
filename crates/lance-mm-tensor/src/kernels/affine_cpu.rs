//! Products with matrices in MLX's affine format, straight from their packed words: activations are rounded
//! to whole numbers, multiplied with the codes in integers, and scaled once a group:
//! `y = Σ scale · (Σ code · x) + bias · Σ x`.

mod activations;
mod matmul;
mod matvec;
mod simd;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::sync::OnceLock;

use rayon::prelude::*;

use super::biased;
use crate::dense::FloatType;
use activations::{Activations, Order};
use simd::{Isa, Simd};

/// Codes that are read together.
const LINE: usize = 128;
/// Lines whose scales are widened together.
const CHUNK: usize = 16;
/// Up to this many rows of activations are multiplied as the words are read; more want a tile of codes
/// rearranged for reuse.
const FEW: usize = 2;
/// Up to this many rows reading the weights takes longer than multiplying, and a second byte of precision
/// costs nothing.
const PRECISE: usize = 16;

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
enum Codes {
    /// As four bits: even codes in the low half of each byte, odd ones in the high half.
    Nibbles,
    /// As bytes, one after another.
    Bytes,
}

impl Codes {
    /// The values of a line in the order of its codes: all even ones, then all odd ones, or as they are.
    #[inline(always)]
    fn in_order(self, q: &[i32; LINE]) -> [i32; LINE] {
        let mut out = *q;
        if self == Self::Nibbles {
            for i in 0..LINE / 2 {
                (out[i], out[LINE / 2 + i]) = (q[2 * i], q[2 * i + 1]);
            }
        }
        out
    }
}

impl<'a> Affine<'a> {
    fn codes(&self) -> Codes {
        if self.bits == 4 { Codes::Nibbles } else { Codes::Bytes }
    }

    /// Words of one row.
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [u8] {
        let width = self.cols * self.bits / 8;
        &self.words[row * width..][..width]
    }

    /// Sixteen scales, or biases, from a group on, counted over all rows. Those past the row's end are finite.
    #[inline(always)]
    fn widen<S: Simd>(&self, simd: S, stored: &[u8], group: usize) -> S::Floats {
        let stored = stored.get(group * self.dtype.size()..).unwrap_or_default();
        match (self.dtype, stored.first_chunk()) {
            (FloatType::BF16, Some(sixteen)) => simd.widen_bf16(sixteen),
            _ => simd.load_floats(&widen(self.dtype, stored)),
        }
    }
}

/// Up to sixteen values, then zeros.
#[inline(never)]
fn widen(dtype: FloatType, stored: &[u8]) -> [f32; 16] {
    let mut out = [0.0; 16];
    let count = out.len().min(stored.len() / dtype.size());
    dtype.widen(&stored[..count * dtype.size()], &mut out[..count]);
    out
}

/// `x` `(n, K)` times the transpose of `w` `(R, K)`, plus `bias` `(R)` if there is one: `(n, R)`, summed in f32.
///
/// # Panics
/// When `x` is not `n` rows of `K`, or the bias not of `R`.
pub(crate) fn affine_matmul(x: &[f32], n: usize, w: &Affine<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "a bias for each row of the weight");
    static ISA: OnceLock<Isa> = OnceLock::new();
    let isa = ISA.get_or_init(|| Isa::available().next().expect("the portable set is always there"));
    matmul_with(*isa, x, n, w, bias)
}

fn matmul_with(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    assert_eq!(x.len(), n * w.cols, "x is n rows of K");
    let y = match n {
        0 => Vec::new(),
        1..=FEW => few(isa, x, n, w),
        _ => match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_, filled) => return tiles::matmul(filled, x, w, bias),
            _ if n <= PRECISE => many::<2>(isa, x, n, w),
            _ => many::<1>(isa, x, n, w),
        },
    };
    biased(y, bias)
}

fn few(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>) -> Vec<f32> {
    let x = Activations::new(isa, x, n, w.group, w.codes(), Order::Rows);
    let mut by_row = vec![0.0; w.rows * n];
    let piece = w.rows.div_ceil(rayon::current_num_threads() * 4).max(8);
    by_row.par_chunks_mut(piece * n).enumerate().with_max_len(1).for_each(|(i, out)| {
        matvec::rows(isa, w, &x, i * piece, out);
    });
    match n {
        1 => by_row,
        _ => (0..n).flat_map(|i| by_row[i..].iter().step_by(n).copied()).collect(),
    }
}

fn many<const T: usize>(isa: Isa, x: &[f32], n: usize, w: &Affine<'_>) -> Vec<f32> {
    let mut out = vec![0.0; n * w.rows];
    for (x, out) in x.chunks(matmul::BLOCK * w.cols).zip(out.chunks_mut(matmul::BLOCK * w.rows)) {
        let n = x.len() / w.cols;
        let x = Activations::<T>::new(isa, x, n, w.group, w.codes(), Order::Lines);
        matmul::rows(isa, w, &x, out);
    }
    out
}

/// Codes of one line, as they are or as bytes; zeros past the end of the row.
#[inline(never)]
fn unpack_line(words: &[u8], bits: usize, line: usize, out: &mut [u8]) {
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

#[cfg(test)]
mod tests;
