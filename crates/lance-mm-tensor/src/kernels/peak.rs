//! Loops that only multiply, in registers, or only read: the limits that no kernel on this machine can beat.
//!
//! ```text
//! a multiplication loop    one register of a, one of b, 16 registers of sums; AMX: 2 operand tiles, 4 tiles of sums
//! a reading loop           64 sums of 8-byte words, so that additions never wait
//! ```
//!
//! Every loop returns its result, so that it can be checked and is not optimized away.

use std::hint::black_box;

/// Independent running sums of a loop.
// At least the latency of an instruction times the number that start a cycle: 4 · 2 for FMA on current x86-64, 5 · 2 for
// VNNI.
pub(crate) const CHAINS: usize = 16;

/// A loop of int8 or bf16 multiplications: `run(a, b, rounds)` is `rounds · CHAINS · (a · b)`.
pub(crate) struct PeakLoop<A, B, Sum> {
    /// The instruction set.
    pub(crate) name: &'static str,
    pub(crate) run: fn(&A, &B, u32) -> Sum,
}

/// Values of `a` up to 127, so that sums of pairs fit 16 bits.
pub(crate) type Int8Loop = PeakLoop<[u8; 64], [i8; 64], i32>;
/// Bits of bf16 values.
pub(crate) type Bf16Loop = PeakLoop<[u16; 32], [u16; 32], f32>;

/// Int8 loops of this processor, the fastest first; the last one runs everywhere.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(clippy::vec_init_then_push, reason = "other processors have more")
)]
pub(crate) fn int8_loops() -> Vec<Int8Loop> {
    let mut loops = Vec::new();
    #[cfg(target_arch = "x86_64")]
    x86::add_int8(&mut loops);
    loops.push(PeakLoop { name: "portable", run: int8_portable });
    loops
}

/// Bf16 loops of this processor, the fastest first; the last one runs everywhere. Processors without bf16 products widen,
/// and multiply f32.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(clippy::vec_init_then_push, reason = "other processors have more")
)]
pub(crate) fn bf16_loops() -> Vec<Bf16Loop> {
    let mut loops = Vec::new();
    #[cfg(target_arch = "x86_64")]
    x86::add_bf16(&mut loops);
    loops.push(PeakLoop { name: "portable", run: bf16_portable });
    loops
}

/// Eight bytes at any address.
pub(crate) type Word = [u8; 8];

/// Returns a function that reads all words once and returns their wrapping sum.
pub(crate) fn reader() -> fn(&[Word]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(reader) = x86::reader() {
        return reader;
    }
    sum
}

fn int8_portable(a: &[u8; 64], b: &[i8; 64], rounds: u32) -> i32 {
    let mut sums = [0i32; 64];
    for _ in 0..rounds as usize * CHAINS {
        let (a, b) = (black_box(a), black_box(b));
        for i in 0..64 {
            sums[i] = sums[i].wrapping_add(i32::from(i16::from(a[i]) * i16::from(b[i])));
        }
    }
    sums.into_iter().fold(0, i32::wrapping_add)
}

fn bf16_portable(a: &[u16; 32], b: &[u16; 32], rounds: u32) -> f32 {
    let (a, b) = (widened(a), widened(b));
    let mut sums = [0.0f32; 32];
    for _ in 0..rounds as usize * CHAINS {
        let (a, b) = (black_box(&a), black_box(&b));
        for i in 0..32 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum()
}

fn widened(bits: &[u16; 32]) -> [f32; 32] {
    bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
}

#[inline(always)]
fn sum(words: &[Word]) -> u64 {
    const LANES: usize = 64;
    let mut sums = [0u64; LANES];
    let (chunks, rest) = words.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] = sums[i].wrapping_add(u64::from_ne_bytes(chunk[i]));
        }
    }
    let rest = rest.iter().map(|word| u64::from_ne_bytes(*word));
    sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "instructions of a CPU that was asked for them")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{Bf16Loop, CHAINS, Int8Loop, PeakLoop, Word, bf16_portable, int8_portable, sum, widened};
    use crate::kernels::amx::{Amx, SIDE, Tiles};

    pub(super) fn add_int8(loops: &mut Vec<Int8Loop>) {
        if Amx::detect().is_some() {
            loops.push(PeakLoop { name: "AMX TDPBSUD", run: tiles_int8 });
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the CPU has the features the function is compiled for.
            loops.push(PeakLoop { name: "AVX-512 VPDPBUSD", run: |a, b, n| unsafe { vnni(a, b, n) } });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            loops.push(PeakLoop { name: "AVX2 VPMADDUBSW", run: |a, b, n| unsafe { maddubs(a, b, n) } });
        }
    }

    pub(super) fn add_bf16(loops: &mut Vec<Bf16Loop>) {
        if Amx::detect().is_some() {
            loops.push(PeakLoop { name: "AMX TDPBF16PS", run: tiles_bf16 });
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the CPU has the features the function is compiled for.
            loops.push(PeakLoop { name: "AVX-512 VDPBF16PS", run: |a, b, n| unsafe { dpbf16(a, b, n) } });
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above.
            loops.push(PeakLoop { name: "AVX-512 FMA of f32", run: |a, b, n| unsafe { fma512(a, b, n) } });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            loops.push(PeakLoop { name: "AVX2 FMA of f32", run: |a, b, n| unsafe { fma256(a, b, n) } });
        }
    }

    pub(super) fn reader() -> Option<fn(&[Word]) -> u64> {
        #[target_feature(enable = "avx512f")]
        fn sum_512(words: &[Word]) -> u64 {
            sum(words)
        }
        #[target_feature(enable = "avx2")]
        fn sum_256(words: &[Word]) -> u64 {
            sum(words)
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has the features the function is compiled for.
            return Some(|words| unsafe { sum_512(words) });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return Some(|words| unsafe { sum_256(words) });
        }
        None
    }

    /// Rounds of [`CHAINS`] products that four products of tiles make.
    const TILE_ROUNDS: u32 = (4 * SIDE * SIDE / CHAINS) as u32;

    /// Every row of one tile is `b`, every column of the other `a`.
    fn tiles_int8(a: &[u8; 64], b: &[i8; 64], rounds: u32) -> i32 {
        let amx = Amx::detect().expect("the loop is listed where there are tiles");
        let rows = [b.map(i8::cast_unsigned); SIDE];
        let columns = std::array::from_fn(|i| std::array::from_fn(|j| a[4 * i + j % 4]));
        let sums = Tiles::new(amx).repeat_int8(&rows, &columns, rounds / TILE_ROUNDS);
        let sums = sums.0.as_flattened().as_flattened().as_flattened();
        let rest = int8_portable(a, b, rounds % TILE_ROUNDS);
        sums.iter().fold(rest, |all, sum| all.wrapping_add(*sum))
    }

    /// As [`tiles_int8`].
    fn tiles_bf16(a: &[u16; 32], b: &[u16; 32], rounds: u32) -> f32 {
        let amx = Amx::detect().expect("the loop is listed where there are tiles");
        let byte = |x: &[u16; 32], i: usize| x[i / 2].to_le_bytes()[i % 2];
        let rows = [std::array::from_fn(|i| byte(b, i)); SIDE];
        let columns = std::array::from_fn(|i| std::array::from_fn(|j| byte(a, 4 * i + j % 4)));
        let sums = Tiles::new(amx).repeat_bf16(&rows, &columns, rounds / TILE_ROUNDS);
        let sums = sums.0.as_flattened().as_flattened().as_flattened();
        sums.iter().sum::<f32>() + bf16_portable(a, b, rounds % TILE_ROUNDS)
    }

    /// Sums start apart, else the compiler would keep one of them.
    const STARTS: i32 = (CHAINS * (CHAINS - 1) / 2) as i32;

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn vnni(a: &[u8; 64], b: &[i8; 64], rounds: u32) -> i32 {
        // SAFETY: both arrays are 64 bytes, and the loads need no alignment.
        let (a, b) =
            unsafe { (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast())) };
        let mut sums: [__m512i; CHAINS] = std::array::from_fn(|i| _mm512_set1_epi32(i as i32));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        let total = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_add_epi32(all, sum));
        _mm512_reduce_add_epi32(total).wrapping_sub(16 * STARTS)
    }

    #[target_feature(enable = "avx2")]
    fn maddubs(a: &[u8; 64], b: &[i8; 64], rounds: u32) -> i32 {
        let at = |i: usize| {
            // SAFETY: `i` is 0 or 32, 32 bytes before the end of either array at least.
            unsafe {
                let load = |start: *const u8| _mm256_loadu_si256(start.add(i).cast());
                (load(a.as_ptr()), load(b.as_ptr().cast()))
            }
        };
        let (parts, ones) = ([at(0), at(32)], _mm256_set1_epi16(1));
        // Eight pairs of sums: sixteen registers have to hold operands too.
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..rounds {
            for _ in 0..CHAINS / sums.len() {
                for sum in &mut sums {
                    for (mut a, b) in parts {
                        // SAFETY: an empty instruction, after which the compiler cannot know `a`: a product
                        // that it knew would be computed once for all rounds.
                        unsafe {
                            asm!("/* {0} */", inout(ymm_reg) a, options(nomem, nostack, preserves_flags))
                        };
                        let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones);
                        *sum = _mm256_add_epi32(*sum, pairs);
                    }
                }
            }
        }
        let mut lanes = [0i32; 8];
        let total = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_add_epi32(all, sum));
        // SAFETY: `lanes` is 32 bytes, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), total) };
        lanes.into_iter().fold(0, i32::wrapping_add)
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dpbf16(a: &[u16; 32], b: &[u16; 32], rounds: u32) -> f32 {
        // SAFETY: `__m512bh` is 64 bytes without a rule on their values, as are the arrays.
        let bits = |x: &[u16; 32]| unsafe { std::mem::transmute::<[u16; 32], __m512bh>(*x) };
        let (a, b) = (bits(a), bits(b));
        let mut sums: [__m512; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        total(sums) - 16.0 * STARTS as f32
    }

    #[target_feature(enable = "avx512f")]
    fn fma512(a: &[u16; 32], b: &[u16; 32], rounds: u32) -> f32 {
        let (a, b) = (widened(a), widened(b));
        // SAFETY: 16 and 16 of the 32 values of each array, and the loads need no alignment.
        let load =
            |x: &[f32; 32]| unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] };
        let (a, b) = (load(&a), load(&b));
        let mut sums: [__m512; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        for _ in 0..rounds {
            for sum in &mut sums {
                for i in 0..2 {
                    *sum = _mm512_fmadd_ps(a[i], b[i], *sum);
                }
            }
        }
        total(sums) - 16.0 * STARTS as f32
    }

    #[target_feature(enable = "avx512f")]
    fn total(sums: [__m512; CHAINS]) -> f32 {
        _mm512_reduce_add_ps(sums.into_iter().fold(_mm512_setzero_ps(), |all, sum| _mm512_add_ps(all, sum)))
    }

    #[target_feature(enable = "avx2,fma")]
    fn fma256(a: &[u16; 32], b: &[u16; 32], rounds: u32) -> f32 {
        let (a, b) = (widened(a), widened(b));
        // SAFETY: `i` is at most 3: eight values from 8 · i on lie within the array.
        let at = |x: &[f32; 32], i: usize| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) };
        let parts: [(__m256, __m256); 2] = std::array::from_fn(|i| (at(&a, i), at(&b, i)));
        let rest: [(__m256, __m256); 2] = std::array::from_fn(|i| (at(&a, 2 + i), at(&b, 2 + i)));
        let mut sums: [__m256; 8] = std::array::from_fn(|i| _mm256_set1_ps(i as f32));
        for _ in 0..rounds {
            for _ in 0..CHAINS / sums.len() {
                for (a, b) in parts.into_iter().chain(rest) {
                    for sum in &mut sums {
                        *sum = _mm256_fmadd_ps(a, b, *sum);
                    }
                }
            }
        }
        let mut lanes = [0.0f32; 8];
        let all = sums.into_iter().fold(_mm256_setzero_ps(), |all, sum| _mm256_add_ps(all, sum));
        // SAFETY: `lanes` is 32 bytes, and the store needs no alignment.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), all) };
        lanes.iter().sum::<f32>() - 8.0 * 28.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_compute_products() {
        let a: Box<[u8; 64]> = Box::new(std::array::from_fn(|i| (i * 37 % 128) as u8));
        let b: Box<[i8; 64]> = Box::new(std::array::from_fn(|i| (i as i32 * 91 % 255 - 127) as i8));
        let dot: i32 = a.iter().zip(b.iter()).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
        for rounds in [0, 1, 5, 64, 130] {
            let expected = dot * rounds as i32 * CHAINS as i32;
            for PeakLoop { name, run } in int8_loops() {
                assert_eq!(run(&a, &b, rounds), expected, "{name}, {rounds} rounds");
            }
        }
    }

    #[test]
    fn loops_compute_products_of_bf16() {
        // Small whole numbers: exact in bf16, their sums in f32.
        let value = |i: usize, step: usize| (i * step % 7) as f32 - 3.0;
        let bits = |step| Box::new(std::array::from_fn(|i| (value(i, step).to_bits() >> 16) as u16));
        let dot: f32 = (0..32).map(|i| value(i, 3) * value(i, 5)).sum();
        for rounds in [0, 1, 5, 64, 130] {
            for PeakLoop { name, run } in bf16_loops() {
                let expected = dot * rounds as f32 * CHAINS as f32;
                assert_eq!(run(&bits(3), &bits(5), rounds), expected, "{name}, {rounds} rounds");
            }
        }
    }

    #[test]
    fn every_word_is_read() {
        for n in [0, 1, 63, 64, 1000] {
            let words: Vec<u64> = (0..n).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            let expected = words.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word));
            let words: Vec<Word> = words.into_iter().map(u64::to_ne_bytes).collect();
            assert_eq!(reader()(&words), expected, "{n}");
        }
    }
}
