//! AVX2 in halves of thirty-two bytes, with FMA, and AVX-VNNI if the processor has it. Without VNNI a dot product is
//! `maddubs`, which saturates its sums of two at 16 bits, and `madd` with ones.

#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use super::{Kernel, Simd, Spread, factors};

/// Only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        has.then_some(Self(()))
    }

    #[inline(always)]
    fn dot_half<const WIDE: bool>(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sums, codes, x);
            }
            let sum = if WIDE {
                // Two products of codes up to 255 would not fit the 16 bits of `maddubs`.
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let odd = _mm256_srai_epi16::<8>(x);
                _mm256_add_epi32(
                    _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), even),
                    _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), odd),
                )
            } else {
                // Two products of codes up to 127 are at most 2 · 127 · 128 = 32,512.
                _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1))
            };
            _mm256_add_epi32(sums, sum)
        }
    }
}

/// Applies an operation to both halves.
macro_rules! halves {
    ($i:ident => $op:expr) => {{
        let op = |$i: usize| $op;
        [op(0), op(1)]
    }};
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    const FMA: bool = true;

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> [__m256i; 2] {
        let halves = from.as_chunks::<32>().0;
        // SAFETY: `self` proves the features; each half has 32 readable bytes.
        halves!(i => unsafe { _mm256_loadu_si256(halves[i].as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_quarters(self, from: [&[u8; 16]; 4]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features; each array has 16 readable bytes.
        unsafe {
            let [a, b, c, d] = from.map(|from| _mm_loadu_si128(from.as_ptr().cast()));
            [_mm256_set_m128i(b, a), _mm256_set_m128i(d, c)]
        }
    }

    #[inline(always)]
    fn store(self, bytes: [__m256i; 2], to: &mut [u8; 64]) {
        for (half, to) in bytes.into_iter().zip(to.as_chunks_mut::<32>().0) {
            // SAFETY: `self` proves the features; each half has 32 writable bytes.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), half) }
        }
    }

    #[inline(always)]
    fn splat_four(self, from: [u8; 4]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        [unsafe { _mm256_set1_epi32(i32::from_ne_bytes(from)) }; 2]
    }

    #[inline(always)]
    fn nibbles(self, bytes: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [
                halves!(i => _mm256_and_si256(bytes[i], mask)),
                halves!(i => _mm256_and_si256(_mm256_srli_epi16::<4>(bytes[i]), mask)),
            ]
        }
    }

    #[inline(always)]
    fn spread(self, packed: [__m256i; 2], codes: &Spread) -> [__m256i; 2] {
        let (even, odd) = (self.load(&codes.even), self.load(&codes.odd));
        // A factor of 2^(16 - n) leaves what is n bits down in the upper half of a product.
        let down = factors(codes.below_even, 16);
        let up = factors(codes.below_odd, 8);
        // SAFETY: `self` proves the features; the arrays have 16 readable bytes.
        halves!(i => unsafe {
            let down = _mm256_broadcastsi128_si256(_mm_loadu_si128(down.as_ptr().cast()));
            let up = _mm256_broadcastsi128_si256(_mm_loadu_si128(up.as_ptr().cast()));
            let mask = i16::from(codes.mask);
            let even = _mm256_mulhi_epu16(_mm256_shuffle_epi8(packed[i], even[i]), down);
            let odd = _mm256_mullo_epi16(_mm256_shuffle_epi8(packed[i], odd[i]), up);
            _mm256_or_si256(
                _mm256_and_si256(even, _mm256_set1_epi16(mask)),
                _mm256_and_si256(odd, _mm256_set1_epi16(mask << 8)),
            )
        })
    }

    #[inline(always)]
    fn transpose_words(self, rows: &mut [[__m256i; 2]; 4]) {
        for half in 0..2 {
            let [a, b, c, d] = rows.map(|row| row[half]);
            // SAFETY: `self` proves the features.
            let columns = unsafe {
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                [
                    _mm256_unpacklo_epi64(ab, cd),
                    _mm256_unpackhi_epi64(ab, cd),
                    _mm256_unpacklo_epi64(ef, gh),
                    _mm256_unpackhi_epi64(ef, gh),
                ]
            };
            for (row, column) in rows.iter_mut().zip(columns) {
                row[half] = column;
            }
        }
    }

    #[inline(always)]
    fn transpose_quarters(self, rows: &mut [[__m256i; 2]; 4]) {
        let [a, b, c, d] = *rows;
        for half in 0..2 {
            // SAFETY: `self` proves the features.
            let [low, high] = unsafe {
                [
                    [
                        _mm256_permute2x128_si256::<0x20>(a[half], b[half]),
                        _mm256_permute2x128_si256::<0x20>(c[half], d[half]),
                    ],
                    [
                        _mm256_permute2x128_si256::<0x31>(a[half], b[half]),
                        _mm256_permute2x128_si256::<0x31>(c[half], d[half]),
                    ],
                ]
            };
            [rows[2 * half], rows[2 * half + 1]] = [low, high];
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: [__m256i; 2], codes: [__m256i; 2], x: [__m256i; 2]) -> [__m256i; 2] {
        halves!(i => self.dot_half::<WIDE>(sums[i], codes[i], x[i]))
    }

    #[inline(always)]
    fn times_256(self, ints: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_slli_epi32::<8>(ints[i]) })
    }

    #[inline(always)]
    fn add_ints(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_add_epi32(a[i], b[i]) })
    }

    #[inline(always)]
    fn to_floats(self, ints: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_cvtepi32_ps(ints[i]) })
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn splat_quarters(self, v: [f32; 4]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_set_m128(_mm_set1_ps(v[2 * i + 1]), _mm_set1_ps(v[2 * i])) })
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> [__m256; 2] {
        let halves = from.as_chunks::<8>().0;
        // SAFETY: `self` proves the features; each half has eight readable values.
        halves!(i => unsafe { _mm256_loadu_ps(halves[i].as_ptr()) })
    }

    #[inline(always)]
    fn widen_bf16(self, from: &[u8; 32]) -> [__m256; 2] {
        let halves = from.as_chunks::<16>().0;
        // SAFETY: `self` proves the features; each half has 16 readable bytes.
        halves!(i => unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves[i].as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn store_floats(self, floats: [__m256; 2], to: &mut [f32; 16]) {
        for (half, to) in floats.into_iter().zip(to.as_chunks_mut::<8>().0) {
            // SAFETY: `self` proves the features; each half has eight writable values.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), half) }
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_add_ps(a[i], b[i]) })
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_mul_ps(a[i], b[i]) })
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_fmadd_ps(a[i], b[i], c[i]) })
    }

    #[inline(always)]
    fn floats_to_bytes(self, floats: [__m256; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_castps_si256(floats[i]) })
    }

    #[inline(always)]
    fn bytes_to_floats(self, bytes: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_castsi256_ps(bytes[i]) })
    }

    #[inline(always)]
    fn abs(self, a: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a[i]) })
    }

    #[inline(always)]
    fn larger(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_max_ps(a[i], b[i]) })
    }

    #[inline(always)]
    fn nearest(self, a: [__m256; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe {
            _mm256_cvtps_epi32(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a[i]))
        })
    }

    #[inline(always)]
    fn store_ints(self, ints: [__m256i; 2], to: &mut [i32; 16]) {
        for (half, to) in ints.into_iter().zip(to.as_chunks_mut::<8>().0) {
            // SAFETY: `self` proves the features; each half has eight writable values.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), half) }
        }
    }

    #[inline(always)]
    fn upper_byte(self, ints: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the features.
        halves!(i => unsafe { _mm256_srai_epi32::<8>(_mm256_add_epi32(ints[i], _mm256_set1_epi32(128))) })
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        fn without<K: Kernel, S: Simd>(simd: S, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        #[target_feature(enable = "avx2,fma,avxvnni")]
        fn with<K: Kernel, S: Simd>(simd: S, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves the features.
        unsafe { if VNNI { with(self, kernel) } else { without(self, kernel) } }
    }
}
