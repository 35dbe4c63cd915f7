//! Loops that the compiler vectorizes for the widest instruction set of the processor.
//!
//! A loop is generic code, compiled once for each set and chosen at run time. Values lie in slices as they are; a loop that
//! must not wait for its own sums keeps as many of them as lanes, in an array.

/// A loop over slices, written so that the compiler can vectorize it.
pub(super) trait Loop {
    type Output;

    /// The loop, to be inlined; `FMA` says whether [`mul_add`] is one instruction.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// An instruction set of this processor. Only [`available`](Self::available) makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Simd(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The instructions that the target always has.
    Baseline,
}

impl Simd {
    /// The widest set.
    pub(super) fn detect() -> Self {
        Self::available().next().expect("every processor has the baseline")
    }

    /// All sets of this processor, the widest first; the baseline is always the last.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let sets = [
            is_x86_feature_detected!("avx512f").then_some(Kind::Avx512),
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Kind::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let sets = [None];
        sets.into_iter().flatten().chain([Kind::Baseline]).map(Self)
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }

    pub(super) fn run<L: Loop>(self, what: L) -> L::Output {
        match self.0 {
            // SAFETY: only `available` makes this kind, after it found the features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { avx512(what) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2(what) },
            Kind::Baseline => what.run::<{ cfg!(target_arch = "aarch64") }>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512<L: Loop>(what: L) -> L::Output {
    what.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<L: Loop>(what: L) -> L::Output {
    what.run::<true>()
}

/// `a · b + c`, in one rounding if that is one instruction.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for `x` up to 80, within 2e-7 of its value; 0 below e^-87. A sum of powers on ±ln(2)/2 and an exponent
/// put in place as bits (Cephes, `expf`), so that it runs in all lanes of a register. `FMA` as for [`mul_add`].
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // 1.5 · 2^23: added to a small number, it leaves the nearest integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, mul_add::<FMA>(n, -0.693_359_4, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = mul_add::<FMA>(p, r, c);
    }
    p = mul_add::<FMA>(p, r * r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { p * f32::from_bits(exponent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_their_bound() {
        for i in -100_000..=870_000 {
            let x = -(i as f32) * 1e-4;
            let expected = f64::from(x).exp();
            for found in [exp::<false>(x), exp::<true>(x)] {
                let error = (f64::from(found) - expected).abs() / expected;
                assert!(error < 2e-7, "{x}: {error}");
            }
        }
        assert_eq!([0.0, -88.0, f32::NEG_INFINITY].map(exp::<false>), [1.0, 0.0, 0.0]);
        assert_eq!([0.0, -88.0, f32::NEG_INFINITY].map(exp::<true>), [1.0, 0.0, 0.0]);
        assert!(exp::<false>(f32::NAN).is_nan() && exp::<true>(f32::NAN).is_nan());
    }
}
