//! Packing and unpacking of codes, and the quantizer of one group.

use crate::dtype::FloatType;
use crate::scheme::Scheme;

/// Unpacks one row of codes as f32. Codes follow one another in the bits of a row, lowest first, so that eight codes of
/// `bits` bits are exactly `bits` bytes, for every width.
pub(crate) fn unpack_row(bytes: &[u8], bits: usize, out: &mut [f32]) {
    assert_eq!(bytes.len() * 8, out.len() * bits, "a row is whole words");
    match bits {
        2 => unpack::<2>(bytes, out),
        3 => unpack::<3>(bytes, out),
        4 => unpack::<4>(bytes, out),
        5 => unpack::<5>(bytes, out),
        6 => unpack::<6>(bytes, out),
        8 => unpack::<8>(bytes, out),
        _ => unreachable!("Scheme holds legal widths only"),
    }
}

fn unpack<const B: usize>(bytes: &[u8], out: &mut [f32]) {
    let mask = (1u64 << B) - 1;
    for (bytes, out) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<8>().0) {
        let mut word = [0; 8];
        word[..B].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, o) in out.iter_mut().enumerate() {
            *o = ((word >> (i * B)) & mask) as f32;
        }
    }
}

/// Words, scales and biases of the rows quantized so far, as the file stores them.
pub(crate) struct Packed {
    pub(crate) words: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    pub(crate) biases: Vec<u8>,
    scheme: Scheme,
    dtype: FloatType,
}

impl Packed {
    pub(crate) fn with_capacity(rows: usize, cols: usize, scheme: Scheme, dtype: FloatType) -> Self {
        let groups = rows * (cols / scheme.group_size()) * dtype.size();
        Self {
            words: Vec::with_capacity(rows * scheme.words(cols) * 4),
            scales: Vec::with_capacity(groups),
            biases: Vec::with_capacity(groups),
            scheme,
            dtype,
        }
    }

    /// Quantizes and appends one row of whole groups.
    pub(crate) fn push_row(&mut self, row: &[f32]) {
        let mut codes = vec![0; self.scheme.group_size()];
        for group in row.chunks_exact(self.scheme.group_size()) {
            let (scale, bias) = quantize_group(group, self.scheme.bits(), &mut codes);
            self.dtype.push(scale, &mut self.scales);
            self.dtype.push(bias, &mut self.biases);
            self.push_codes(&codes);
        }
    }

    fn push_codes(&mut self, codes: &[u8]) {
        push_codes(codes, self.scheme.bits(), &mut self.words);
    }
}

/// Packs eight codes at a time, which fill whole bytes.
fn push_codes(codes: &[u8], bits: usize, out: &mut Vec<u8>) {
    for eight in codes.chunks_exact(8) {
        let word =
            eight.iter().enumerate().fold(0u64, |word, (i, code)| word | u64::from(*code) << (i * bits));
        out.extend_from_slice(&word.to_le_bytes()[..bits]);
    }
}

/// Packs codes of rows of whole groups into words, as [`AffineWeight`](crate::AffineWeight) stores them.
///
/// # Panics
/// When the codes are not a multiple of 32, or one does not fit into `bits`.
pub fn pack_codes(codes: &[u8], bits: usize) -> Vec<u32> {
    assert!(
        codes.len().is_multiple_of(32) && (1..=8).contains(&bits),
        "whole groups of codes of up to 8 bits"
    );
    assert!(codes.iter().all(|code| usize::from(*code) < 1 << bits), "codes of {bits} bits");
    let mut bytes = Vec::with_capacity(codes.len() / 8 * bits);
    push_codes(codes, bits, &mut bytes);
    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Quantizes one group as MLX's CPU `mx.quantize` does, in f32 with one rounding an operation: writes codes, returns
/// scale and bias. The end of the range with the larger magnitude is exact, and the scale is stretched until zero is a
/// code.
///
/// `values` are finite; scale and bias are not rounded to the dtype they will be stored in.
///
/// # Panics
/// When there is not one code for each value.
pub fn quantize_group(values: &[f32], bits: usize, codes: &mut [u8]) -> (f32, f32) {
    const EPS: f32 = 1e-7;
    assert_eq!(codes.len(), values.len(), "one code for each value");
    let n = ((1u32 << bits) - 1) as f32;
    let (lo, hi) = range(values);
    let negative = lo.abs() > hi.abs();
    let step = ((hi - lo) / n).max(EPS);
    let step = if negative { step } else { -step };
    let edge = if negative { lo } else { hi };
    let zero = (edge / step).round_ties_even();
    let (scale, bias) = if zero != 0.0 { (edge / zero, edge) } else { (step, 0.0) };
    for (code, value) in codes.iter_mut().zip(values) {
        // n is whole, so clamping first gives the same code; adding and subtracting 1.5 · 2^23 rounds what is
        // left half to even.
        const WHOLE: f32 = 12_582_912.0;
        *code = (((value - bias) / scale).clamp(0.0, n) + WHOLE - WHOLE) as u8;
    }
    (scale, bias)
}

/// Smallest and largest value. Eight chains let the compiler use vectors.
fn range(values: &[f32]) -> (f32, f32) {
    let less = |a: f32, b: f32| if b < a { b } else { a };
    let more = |a: f32, b: f32| if b > a { b } else { a };
    let (mut lo, mut hi) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
    let (eights, tail) = values.as_chunks::<8>();
    for eight in eights {
        for i in 0..8 {
            lo[i] = less(lo[i], eight[i]);
            hi[i] = more(hi[i], eight[i]);
        }
    }
    let lo = lo.iter().chain(tail).copied().fold(f32::INFINITY, less);
    (lo, hi.iter().chain(tail).copied().fold(f32::NEG_INFINITY, more))
}
