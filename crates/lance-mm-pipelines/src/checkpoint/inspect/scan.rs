//! Passes over the bytes of tensors: a fingerprint, and a search for values that are not finite.

use rayon::prelude::*;

/// Bytes hashed and searched at once; a multiple of every element size.
const CHUNK: usize = 1 << 20;

/// A 64-bit hash over words: `h = (h ^ w) · 0x9e3779b97f4a7c15; h ^= h >> 32`. Tells checkpoints apart; no
/// protection against someone who wants two to look alike.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self::new()
    }
}

impl Hash {
    /// The hash of nothing.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a word.
    pub fn word(&mut self, word: u64) {
        let h = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ (h >> 32);
    }

    /// Adds the length, then little-endian words, the last one filled up with zeros.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last));
        }
    }

    /// The hash of all that was added.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// Findings of a pass over a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Hash of the hashes of its chunks of 1 MiB.
    pub(super) hash: u64,
    /// Index of the first element that is infinite or no number.
    pub(super) non_finite: Option<usize>,
}

/// Reads a tensor's bytes once, in parallel. `dtype` is the file's name of the element type; elements that
/// are no floats are always finite.
pub(super) fn scan(bytes: &[u8], dtype: &str) -> Scan {
    let chunks: Vec<(u64, Option<usize>)> = bytes
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut hash = Hash::new();
            hash.bytes(chunk);
            (hash.finish(), non_finite(chunk, dtype))
        })
        .collect();
    let mut hash = Hash::new();
    chunks.iter().for_each(|(chunk, _)| hash.word(*chunk));
    let per_chunk = CHUNK / if dtype == "F32" { 4 } else { 2 };
    let first = chunks.iter().enumerate().find_map(|(i, (_, found))| found.map(|at| i * per_chunk + at));
    Scan { hash: hash.finish(), non_finite: first }
}

/// Index of the first element whose exponent bits are all set.
fn non_finite(bytes: &[u8], dtype: &str) -> Option<usize> {
    let half = |exponent: u16| first(bytes, |b| u16::from_le_bytes(b) & exponent == exponent);
    match dtype {
        "F32" => first(bytes, |b| !f32::from_le_bytes(b).is_finite()),
        "F16" => half(0x7c00),
        "BF16" => half(0x7f80),
        _ => None,
    }
}

fn first<const N: usize>(bytes: &[u8], test: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let elements = bytes.as_chunks::<N>().0;
    // Without a way out of the loop it is vectorized; almost every chunk is clean.
    let any = elements.iter().fold(false, |any, element| any | test(*element));
    if any { elements.iter().position(|element| test(*element)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_formula() {
        let mut hash = Hash::new();
        hash.bytes(&[1, 0, 0, 0, 0, 0, 0, 0, 2]);
        let mut h = 0xcbf2_9ce4_8422_2325u64;
        for word in [9u64, 1, 2] {
            h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^= h >> 32;
        }
        assert_eq!(hash.finish(), h);
    }

    #[test]
    fn every_byte_and_the_length_count() {
        let mut bytes = vec![0u8; CHUNK + 13];
        let clean = scan(&bytes, "U8").hash;
        for at in [0, CHUNK - 1, CHUNK, CHUNK + 12] {
            bytes[at] ^= 0x80;
            assert_ne!(scan(&bytes, "U8").hash, clean, "{at}");
            bytes[at] ^= 0x80;
        }
        // Two sign bits that flip do not cancel.
        (bytes[7], bytes[15]) = (0x80, 0x80);
        assert_ne!(scan(&bytes, "U8").hash, clean);
        assert_ne!(scan(&[0; 8], "U8").hash, scan(&[0; 7], "U8").hash);
    }

    #[test]
    fn the_first_value_that_is_not_finite() {
        let mut values = vec![1.0f32; 600_000];
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(scan(&bytes(&values), "F32").non_finite, None);
        values[599_999] = f32::NAN;
        values[300_000] = f32::NEG_INFINITY;
        assert_eq!(scan(&bytes(&values), "F32").non_finite, Some(300_000));
        assert_eq!(scan(&[0, 0x3c, 0, 0x7c], "F16").non_finite, Some(1));
        assert_eq!(scan(&[0x80, 0xff, 0, 0], "BF16").non_finite, Some(0));
        assert_eq!(scan(&[0xff; 16], "U32").non_finite, None);
    }
}
