//! NEON with the dot product of Armv8.2: every Apple Silicon, most servers. Four registers of sixteen bytes; `sdot` takes
//! signed bytes only, so that wide codes are moved by 128 and put right again.

#![expect(unsafe_code, reason = "intrinsics")]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::{Kernel, Simd, Spread};

/// Only [`detect`](Self::detect) makes one.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }

    /// `sums + Σ a · b` of four signed bytes each. The intrinsic is not stable yet.
    #[inline(always)]
    fn sdot(self, sums: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
        let mut out = sums;
        // SAFETY: `self` proves that the machine has the instruction, which touches its three registers only.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {out:v}.4s, {a:v}.16b, {b:v}.16b",
                out = inout(vreg) out,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        out
    }
}

/// Applies an operation to all quarters.
macro_rules! quarters {
    ($i:ident => $op:expr) => {{
        let op = |$i: usize| $op;
        [op(0), op(1), op(2), op(3)]
    }};
}

impl Simd for Neon {
    type Bytes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    const FMA: bool = true;

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> [uint8x16_t; 4] {
        let quarters = from.as_chunks::<16>().0;
        // SAFETY: `self` proves the features; each quarter has 16 readable bytes.
        quarters!(i => unsafe { vld1q_u8(quarters[i].as_ptr()) })
    }

    #[inline(always)]
    fn load_quarters(self, from: [&[u8; 16]; 4]) -> [uint8x16_t; 4] {
        // SAFETY: `self` proves the features; each array has 16 readable bytes.
        from.map(|from| unsafe { vld1q_u8(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, bytes: [uint8x16_t; 4], to: &mut [u8; 64]) {
        for (quarter, to) in bytes.into_iter().zip(to.as_chunks_mut::<16>().0) {
            // SAFETY: `self` proves the features; each quarter has 16 writable bytes.
            unsafe { vst1q_u8(to.as_mut_ptr(), quarter) }
        }
    }

    #[inline(always)]
    fn splat_four(self, from: [u8; 4]) -> [uint8x16_t; 4] {
        // SAFETY: `self` proves the features.
        [unsafe { vreinterpretq_u8_u32(vdupq_n_u32(u32::from_ne_bytes(from))) }; 4]
    }

    #[inline(always)]
    fn nibbles(self, bytes: [uint8x16_t; 4]) -> [[uint8x16_t; 4]; 2] {
        // SAFETY: `self` proves the features.
        unsafe {
            let mask = vdupq_n_u8(15);
            [quarters!(i => vandq_u8(bytes[i], mask)), quarters!(i => vshrq_n_u8::<4>(bytes[i]))]
        }
    }

    #[inline(always)]
    fn spread(self, packed: [uint8x16_t; 4], codes: &Spread) -> [uint8x16_t; 4] {
        let (even, odd) = (self.load(&codes.even), self.load(&codes.odd));
        let (mut down, mut up) = ([0i16; 8], [0i16; 8]);
        for i in 0..8 {
            (down[i], up[i]) = (-(codes.below_even[i] as i16), 8 - codes.below_odd[i] as i16);
        }
        // SAFETY: `self` proves the features; the arrays have eight readable values.
        unsafe {
            let (down, up) = (vld1q_s16(down.as_ptr()), vld1q_s16(up.as_ptr()));
            let mask = u16::from(codes.mask);
            let (low, high) = (vdupq_n_u16(mask), vdupq_n_u16(mask << 8));
            quarters!(i => {
                let even = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(packed[i], even[i])), down);
                let odd = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(packed[i], odd[i])), up);
                vreinterpretq_u8_u16(vorrq_u16(vandq_u16(even, low), vandq_u16(odd, high)))
            })
        }
    }

    #[inline(always)]
    fn transpose_words(self, rows: &mut [[uint8x16_t; 4]; 4]) {
        for quarter in 0..4 {
            // SAFETY: `self` proves the features.
            let columns = unsafe {
                let [a, b, c, d] = rows.map(|row| vreinterpretq_u32_u8(row[quarter]));
                let pairs = |a, b| {
                    let (even, odd) = (vtrn1q_u32(a, b), vtrn2q_u32(a, b));
                    [vreinterpretq_u64_u32(even), vreinterpretq_u64_u32(odd)]
                };
                let ([ab, ef], [cd, gh]) = (pairs(a, b), pairs(c, d));
                [vtrn1q_u64(ab, cd), vtrn1q_u64(ef, gh), vtrn2q_u64(ab, cd), vtrn2q_u64(ef, gh)]
                    .map(|column| vreinterpretq_u8_u64(column))
            };
            for (row, column) in rows.iter_mut().zip(columns) {
                row[quarter] = column;
            }
        }
    }

    #[inline(always)]
    fn transpose_quarters(self, rows: &mut [[uint8x16_t; 4]; 4]) {
        let old = *rows;
        for i in 0..4 {
            for j in 0..4 {
                rows[i][j] = old[j][i];
            }
        }
    }

    #[inline(always)]
    fn zero_ints(self) -> [int32x4_t; 4] {
        // SAFETY: `self` proves the features.
        [unsafe { vdupq_n_s32(0) }; 4]
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(
        self,
        sums: [int32x4_t; 4],
        codes: [uint8x16_t; 4],
        x: [uint8x16_t; 4],
    ) -> [int32x4_t; 4] {
        // SAFETY: `self` proves the features.
        let [bias, half] = unsafe { [vdupq_n_u8(128), vdupq_n_u8(64)] };
        quarters!(i => if WIDE {
            // Codes less 128 are signed bytes; 64 twice gives back what that took away.
            // SAFETY: `self` proves the features.
            let less = unsafe { veorq_u8(codes[i], bias) };
            self.sdot(self.sdot(self.sdot(sums[i], less, x[i]), half, x[i]), half, x[i])
        } else {
            self.sdot(sums[i], codes[i], x[i])
        })
    }

    #[inline(always)]
    fn times_256(self, ints: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vshlq_n_s32::<8>(ints[i]) })
    }

    #[inline(always)]
    fn add_ints(self, a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vaddq_s32(a[i], b[i]) })
    }

    #[inline(always)]
    fn to_floats(self, ints: [int32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vcvtq_f32_s32(ints[i]) })
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        [unsafe { vdupq_n_f32(value) }; 4]
    }

    #[inline(always)]
    fn splat_quarters(self, values: [f32; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vdupq_n_f32(values[i]) })
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> [float32x4_t; 4] {
        let quarters = from.as_chunks::<4>().0;
        // SAFETY: `self` proves the features; each quarter has four readable values.
        quarters!(i => unsafe { vld1q_f32(quarters[i].as_ptr()) })
    }

    #[inline(always)]
    fn widen_bf16(self, from: &[u8; 32]) -> [float32x4_t; 4] {
        let quarters = from.as_chunks::<8>().0;
        // SAFETY: `self` proves the features; each quarter has eight readable bytes.
        quarters!(i => unsafe {
            let wide = vmovl_u16(vreinterpret_u16_u8(vld1_u8(quarters[i].as_ptr())));
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(wide))
        })
    }

    #[inline(always)]
    fn store_floats(self, floats: [float32x4_t; 4], to: &mut [f32; 16]) {
        for (quarter, to) in floats.into_iter().zip(to.as_chunks_mut::<4>().0) {
            // SAFETY: `self` proves the features; each quarter has four writable values.
            unsafe { vst1q_f32(to.as_mut_ptr(), quarter) }
        }
    }

    #[inline(always)]
    fn add(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vaddq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn mul(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vmulq_f32(a[i], b[i]) })
    }

    #[inline(always)]
    fn mul_add(self, a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }

    #[inline(always)]
    fn floats_to_bytes(self, floats: [float32x4_t; 4]) -> [uint8x16_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vreinterpretq_u8_f32(floats[i]) })
    }

    #[inline(always)]
    fn bytes_to_floats(self, bytes: [uint8x16_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vreinterpretq_f32_u8(bytes[i]) })
    }

    #[inline(always)]
    fn abs(self, a: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vabsq_f32(a[i]) })
    }

    #[inline(always)]
    fn larger(self, a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }

    #[inline(always)]
    fn nearest(self, a: [float32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vcvtnq_s32_f32(a[i]) })
    }

    #[inline(always)]
    fn store_ints(self, ints: [int32x4_t; 4], to: &mut [i32; 16]) {
        for (quarter, to) in ints.into_iter().zip(to.as_chunks_mut::<4>().0) {
            // SAFETY: `self` proves the features; each quarter has four writable values.
            unsafe { vst1q_s32(to.as_mut_ptr(), quarter) }
        }
    }

    #[inline(always)]
    fn upper_byte(self, ints: [int32x4_t; 4]) -> [int32x4_t; 4] {
        // SAFETY: `self` proves the features.
        quarters!(i => unsafe { vshrq_n_s32::<8>(vaddq_s32(ints[i], vdupq_n_s32(128))) })
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch does not fault, whatever the address.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn inner<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(self, kernel) }
    }
}
