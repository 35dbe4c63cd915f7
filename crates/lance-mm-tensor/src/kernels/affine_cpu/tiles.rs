//! More than eight tokens on AMX: weights become bf16 as they are packed, each the nearest to `scale · code + bias`.
//!
//! ```text
//! a line of 4-bit codes, 64 bytes       words of 16 bits: c3 c2 c1 c0 | c7 c6 c5 c4 | ..
//! shifted by 0, 4, 8, 12 bits           the low five bits of each word index a table
//! table of a group                      v0 v1 .. v15 | v0 v1 .. v15        bf16, scale · i + bias, twice
//!
//! step j of four                        values 4·i + j of the line: 32 bf16 values, a row of a left operand
//! ```
//!
//! The fifth bit belongs to the next code, so that the table holds each value twice. The order of values in a step does
//! not matter to a dot product as long as activations have it too ([`Order::EveryFourth`]).

#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;
use std::ops::Range;

use crate::dtype::FloatType;
use crate::kernels::affine_matrix::{Affine, LINE, copy_line, row_bytes, widen};
use crate::kernels::amx::{AmxBf16, Rows32, SIDE};
use crate::kernels::amx_matmul::{Order, Output, Panels, amx_matmul};
use crate::kernels::avx512_bf16::Avx512Bf16;
use crate::kernels::operands::Addends;
use crate::kernels::vector::{Avx512, Simd};

/// `x · wᵀ` with `x` rounded to bf16, plus bias and residual.
pub(super) fn matmul(simd: Avx512, amx: AmxBf16, x: &[f32], w: &Affine<'_>, add: Addends<'_>) -> Vec<f32> {
    amx_matmul::<1, _>(amx, x, &Output::Sums { w: &Packing::new(w, simd, amx.convert), add })
}

/// Implements [`matmul_swiglu`](crate::kernels::matmul::matmul_swiglu); `None` if the two are packed in different orders.
pub(super) fn matmul_swiglu(
    simd: Avx512,
    amx: AmxBf16,
    x: &[f32],
    gate: &Affine<'_>,
    up: &Affine<'_>,
    biases: [Option<&[f32]>; 2],
) -> Option<Vec<f32>> {
    let [gate, up] = [gate, up].map(|w| Packing::new(w, simd, amx.convert));
    (gate.order() == up.order())
        .then(|| amx_matmul::<1, _>(amx, x, &Output::Swiglu { w: [&gate, &up], biases }))
}

struct Packing<'a> {
    w: Affine<'a>,
    simd: Avx512,
    _proof: Avx512Bf16,
}

impl<'a> Packing<'a> {
    fn new(w: &Affine<'a>, simd: Avx512, proof: Avx512Bf16) -> Self {
        Self { w: *w, simd, _proof: proof }
    }
}

impl Panels for Packing<'_> {
    fn dims(&self) -> [usize; 2] {
        [self.w.rows, self.w.cols]
    }

    fn order(&self) -> Order {
        // Shifts bring each of the four codes of sixteen bits to where it is looked up.
        if self.w.bits == 4 { Order::EveryFourth } else { Order::Natural }
    }

    fn pack(&self, first: usize, next: usize, steps: Range<usize>, half: usize, out: &mut [[Rows32; 2]]) {
        let w = &self.w;
        let part = Part { rows: first.min(w.rows)..(first + SIDE).min(w.rows), next, half };
        // All rows over some lines before the next lines: the tiles that are written stay in the first-level cache.
        for (i, out) in out.chunks_mut(4 * LINES).enumerate() {
            let line = steps.start / 4 + LINES * i;
            // SAFETY: `_proof` was made where these instructions are.
            unsafe { pack(self.simd, w, &part, line, out) };
        }
    }
}

/// Rows that become a half of a left operand, and the first row packed next.
struct Part {
    rows: Range<usize>,
    next: usize,
    half: usize,
}

impl Part {
    /// Distance in bytes to the scales, or biases, of the rows packed next; a row has `factors` bytes.
    fn ahead(&self, factors: usize) -> usize {
        (self.next - self.rows.start) * factors
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(simd: Avx512, w: &Affine<'_>, part: &Part, line: usize, out: &mut [[Rows32; 2]]) {
    match (w.bits, w.group) {
        (4, 128) => nibbles::<1>(w, part, line, out.as_chunks_mut().0),
        (4, 64) => nibbles::<2>(w, part, line, out.as_chunks_mut().0),
        (4, _) => nibbles::<4>(w, part, line, out.as_chunks_mut().0),
        (2, _) => bytes::<32>(simd, w, part, line, out),
        (3, _) => bytes::<48>(simd, w, part, line, out),
        (5, _) => bytes::<80>(simd, w, part, line, out),
        (6, _) => bytes::<96>(simd, w, part, line, out),
        _ => bytes::<LINE>(simd, w, part, line, out),
    }
}

/// Lines of a row that are packed together.
// They have 4, 8 or 16 groups, whose scales one register holds.
const LINES: usize = 4;

/// Packs lines of four-bit codes, `PER` groups in each, in four steps a line: step `j` has the values `4·i + j`, each
/// looked up among the sixteen of its group.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn nibbles<const PER: usize>(w: &Affine<'_>, part: &Part, line: usize, out: &mut [[[Rows32; 2]; 4]]) {
    let numbers = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
    let size = w.dtype.size();
    let (width, factors) = (w.cols / 2, w.cols / w.group * size);
    // Prefetched meanwhile: the next rows, from their first line to their last, since memory is fastest in order.
    let next = w.words.as_ptr().wrapping_add(part.next * width + 64 * SIDE * line);
    let ahead = part.ahead(factors);
    for (i, row) in part.rows.clone().enumerate() {
        let words = w.row(row);
        let at = row * factors + line * PER * size;
        let (mut scales, mut biases) = ([0.0; 16], [0.0; 16]);
        sixteen(w.dtype, w.scales, at, ahead, &mut scales);
        sixteen(w.dtype, w.biases, at, ahead, &mut biases);
        for (l, out) in out.iter_mut().enumerate() {
            let mut rest = [0; 64];
            let codes = match words.get(64 * (line + l)..).and_then(|words| words.first_chunk()) {
                Some(whole) => whole,
                None => {
                    copy_line(words, line + l, &mut rest);
                    &rest
                }
            };
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * (LINES * i + l)).cast());
            // SAFETY: the array holds 64 bytes; an unaligned load.
            let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
            let mut tables = [_mm512_setzero_si512(); PER];
            for g in 0..PER {
                let [scale, bias] = [scales[PER * l + g], biases[PER * l + g]];
                let values = _mm512_fmadd_ps(numbers, _mm512_set1_ps(scale), _mm512_set1_ps(bias));
                // SAFETY: both are 32 bytes of plain data.
                let sixteen: __m256i = unsafe { std::mem::transmute(_mm512_cvtneps_pbh(values)) };
                tables[g] = _mm512_broadcast_i64x4(sixteen);
            }
            let shifted = [
                codes,
                _mm512_srli_epi16::<4>(codes),
                _mm512_srli_epi16::<8>(codes),
                _mm512_srli_epi16::<12>(codes),
            ];
            for j in 0..4 {
                let mut values = _mm512_permutexvar_epi16(shifted[j], tables[0]);
                for g in 1..PER {
                    // The group's share of the 32 places of each step, and those after it, which later groups overwrite.
                    let places = u32::MAX << (g * 32 / PER);
                    values = _mm512_mask_permutexvar_epi16(values, places, shifted[j], tables[g]);
                }
                let place = &mut out[j][part.half].0[i];
                // SAFETY: the array holds 64 bytes; an unaligned store.
                unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), values) };
            }
        }
    }
}

/// Widens sixteen scales, or biases, from byte `at` on, zeros past the end; prefetches those `ahead` bytes further.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen(dtype: FloatType, stored: &[u8], at: usize, ahead: usize, out: &mut [f32; 16]) {
    let stored = stored.get(at..).unwrap_or_default();
    _mm_prefetch::<_MM_HINT_T1>(stored.as_ptr().wrapping_add(ahead).cast());
    match stored.first_chunk::<32>() {
        Some(sixteen) if dtype == FloatType::BF16 => {
            // SAFETY: the arrays hold 32 bytes and 64; an unaligned load and store.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(sixteen.as_ptr().cast()));
                _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_slli_epi32::<16>(wide));
            }
        }
        _ => *out = widen(dtype, stored),
    }
}

/// Packs lines of codes of other widths, `WIDTH` bytes each, values in order.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn bytes<const WIDTH: usize>(
    simd: Avx512,
    w: &Affine<'_>,
    part: &Part,
    line: usize,
    out: &mut [[Rows32; 2]],
) {
    let size = w.dtype.size();
    let factors = w.cols / w.group * size;
    let ahead = part.ahead(factors);
    for (i, row) in part.rows.clone().enumerate() {
        let at = row * factors + line * (LINE / w.group) * size;
        let (mut scales, mut biases) = ([0.0; 16], [0.0; 16]);
        sixteen(w.dtype, w.scales, at, ahead, &mut scales);
        sixteen(w.dtype, w.biases, at, ahead, &mut biases);
        for (l, out) in out.chunks_mut(4).enumerate() {
            let mut codes = [0; LINE];
            let halves = row_bytes::<_, WIDTH>(simd, w.row(row), line + l);
            for (half, codes) in halves.into_iter().zip(codes.as_chunks_mut().0) {
                simd.store(half, codes);
            }
            for (j, (out, codes)) in out.iter_mut().zip(codes.as_chunks::<32>().0).enumerate() {
                let group = (l * LINE + 32 * j) / w.group;
                let [scale, bias] = [_mm512_set1_ps(scales[group]), _mm512_set1_ps(biases[group])];
                let mut halves = [_mm512_setzero_ps(); 2];
                for (half, codes) in halves.iter_mut().zip(codes.as_chunks::<16>().0) {
                    // SAFETY: the array holds 16 bytes; an unaligned load.
                    let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
                    *half = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), scale, bias);
                }
                let words = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
                // SAFETY: both are 64 bytes of plain data.
                out[part.half].0[i] = unsafe { std::mem::transmute::<__m512bh, [u16; 32]>(words) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::affine::AffineWeight;
    use crate::scheme::Scheme;
    use crate::testing::seeded;

    #[test]
    fn packed_rows_are_the_rows_rounded() {
        let Some((simd, proof)) = Avx512::detect().zip(Avx512Bf16::detect()) else {
            eprintln!("this processor has no bf16 products");
            return;
        };
        // Codes of every width, groups of every size, rows that end within a line, lines past those packed together.
        for (bits, group, cols) in [
            (2, 32, 32),
            (3, 64, 192),
            (4, 32, 96),
            (4, 64, 320),
            (4, 128, 640),
            (5, 128, 128),
            (6, 32, 544),
            (8, 64, 576),
        ] {
            for dtype in [FloatType::BF16, FloatType::F16, FloatType::F32] {
                let scheme = Scheme::affine(bits, group).unwrap();
                let values = seeded(21 * cols, 2);
                let w = AffineWeight::quantize("w", &values, cols, scheme, dtype).unwrap();
                let packing = Packing::new(&w.integer().unwrap(), simd, proof);
                let steps = cols.div_ceil(LINE) * 4;
                let mut row = vec![0.0; cols];
                for first in [0, SIDE] {
                    let mut out = vec![[Rows32::default(); 2]; steps];
                    packing.pack(first, first + SIDE, 0..steps, 1, &mut out);
                    for (i, r) in (first..21).take(SIDE).enumerate() {
                        w.read_row(r, &mut row);
                        for (k, value) in row.iter().enumerate() {
                            let (step, place) = match packing.order() {
                                Order::Natural => (k / 32, k % 32),
                                Order::EveryFourth => (k / LINE * 4 + k % 4, k % LINE / 4),
                            };
                            let found = bf16::from_bits(out[step][1].0[i][place]).to_f32();
                            let error = (found - value).abs();
                            assert!(
                                error <= value.abs() * 0.004 + 1e-6,
                                "{bits} {group} {cols} {dtype:?}, row {r} at {k}: {found}, expected {value}"
                            );
                        }
                    }
                }
            }
        }
    }
}
