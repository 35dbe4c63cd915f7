//! AVX-512 with VNNI: Intel since Ice Lake, AMD since Zen 4. A register is 64 bytes; `VPDPBUSD` adds the products of four
//! unsigned and four signed bytes to each i32.

#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use super::{Kernel, Simd, Spread, factors};

/// Only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Avx512(());

impl Avx512 {
    pub(in super::super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const FMA: bool = true;

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> __m512i {
        // SAFETY: `self` proves the features; the array has 64 readable bytes.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_quarters(self, from: [&[u8; 16]; 4]) -> __m512i {
        // SAFETY: `self` proves the features; each array has 16 readable bytes.
        unsafe {
            let [a, b, c, d] = from.map(|from| _mm_loadu_si128(from.as_ptr().cast()));
            let (low, high) = (_mm256_set_m128i(b, a), _mm256_set_m128i(d, c));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    fn store(self, bytes: __m512i, to: &mut [u8; 64]) {
        // SAFETY: `self` proves the features; the array has 64 writable bytes.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) }
    }

    #[inline(always)]
    fn splat_four(self, from: [u8; 4]) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_epi32(i32::from_ne_bytes(from)) }
    }

    #[inline(always)]
    fn nibbles(self, bytes: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
        }
    }

    #[inline(always)]
    fn spread(self, packed: __m512i, codes: &Spread) -> __m512i {
        let (even, odd) = (self.load(&codes.even), self.load(&codes.odd));
        // A factor of 2^(16 - n) leaves what is n bits down in the upper half of a product.
        let down = factors(codes.below_even, 16);
        let up = factors(codes.below_odd, 8);
        // SAFETY: `self` proves the features; the arrays have 16 readable bytes.
        unsafe {
            let down = _mm512_broadcast_i32x4(_mm_loadu_si128(down.as_ptr().cast()));
            let up = _mm512_broadcast_i32x4(_mm_loadu_si128(up.as_ptr().cast()));
            let mask = i16::from(codes.mask);
            let even = _mm512_mulhi_epu16(_mm512_shuffle_epi8(packed, even), down);
            let odd = _mm512_mullo_epi16(_mm512_shuffle_epi8(packed, odd), up);
            _mm512_or_si512(
                _mm512_and_si512(even, _mm512_set1_epi16(mask)),
                _mm512_and_si512(odd, _mm512_set1_epi16(mask << 8)),
            )
        }
    }

    #[inline(always)]
    fn transpose_words(self, rows: &mut [__m512i; 4]) {
        let [a, b, c, d] = *rows;
        // SAFETY: `self` proves the features.
        *rows = unsafe {
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ef, gh),
                _mm512_unpackhi_epi64(ef, gh),
            ]
        }
    }

    #[inline(always)]
    fn transpose_quarters(self, rows: &mut [__m512i; 4]) {
        let [a, b, c, d] = *rows;
        // SAFETY: `self` proves the features.
        *rows = unsafe {
            let (ab, cd) =
                (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b01_00_01_00>(c, d));
            let (ef, gh) =
                (_mm512_shuffle_i32x4::<0b11_10_11_10>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
            [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ef, gh),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ef, gh),
            ]
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }

    #[inline(always)]
    fn times_256(self, ints: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_slli_epi32::<8>(ints) }
    }

    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn to_floats(self, ints: __m512i) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn splat_quarters(self, values: [f32; 4]) -> __m512 {
        // SAFETY: `self` proves the features; the array has four readable values.
        unsafe {
            let quarters = _mm512_castps128_ps512(_mm_loadu_ps(values.as_ptr()));
            let places = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
            _mm512_permutexvar_ps(places, quarters)
        }
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: `self` proves the features; the array has sixteen readable values.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn widen_bf16(self, from: &[u8; 32]) -> __m512 {
        // SAFETY: `self` proves the features; the array has 32 readable bytes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store_floats(self, floats: __m512, to: &mut [f32; 16]) {
        // SAFETY: `self` proves the features; the array has sixteen writable values.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn floats_to_bytes(self, floats: __m512) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_castps_si512(floats) }
    }

    #[inline(always)]
    fn bytes_to_floats(self, bytes: __m512i) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_castsi512_ps(bytes) }
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_abs_ps(a) }
    }

    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn nearest(self, a: __m512) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn store_ints(self, ints: __m512i, to: &mut [i32; 16]) {
        // SAFETY: `self` proves the features; the array has sixteen writable values.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), ints) }
    }

    #[inline(always)]
    fn upper_byte(self, ints: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_srai_epi32::<8>(_mm512_add_epi32(ints, _mm512_set1_epi32(128))) }
    }

    #[inline(always)]
    fn low_bytes(self, ints: [__m512i; 4]) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe {
            let out = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(ints[0]));
            let out = _mm512_inserti32x4::<1>(out, _mm512_cvtepi32_epi8(ints[1]));
            let out = _mm512_inserti32x4::<2>(out, _mm512_cvtepi32_epi8(ints[2]));
            _mm512_inserti32x4::<3>(out, _mm512_cvtepi32_epi8(ints[3]))
        }
    }

    #[inline(always)]
    fn even_and_odd(self, [a, b]: [__m512i; 2]) -> [__m512i; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            let even = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(a));
            let odd = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(a)));
            [
                _mm512_inserti64x4::<1>(even, _mm512_cvtepi16_epi8(b)),
                _mm512_inserti64x4::<1>(odd, _mm512_cvtepi16_epi8(_mm512_srli_epi16::<8>(b))),
            ]
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
        fn inner<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(self, kernel) }
    }
}
