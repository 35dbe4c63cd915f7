//! RMS norms of tokens, and of heads together with rotary; kernels in `norm.metal`.
//!
//! ```text
//! rms_norm      a threadgroup: one token, eight values a thread
//! norm_rope     a SIMD group: one head; reads (T, H, D), writes (H, T, D), as attention reads it
//! pixel_norm    a SIMD group: one pixel
//! ```
//!
//! A head is normalized and rotated in one dispatch, in one pass over its values.

use std::ops::Range;

use super::{KernelArg, KernelPlan, KernelSource, size, type_name};
use crate::dtype::FloatType;

pub(super) static SOURCE: KernelSource = KernelSource { name: "norm", text: include_str!("norm.metal") };

/// SIMD groups of a threadgroup, each with a head or a pixel.
// 128 threads; not measured.
const HEADS: usize = 4;

/// Plans an RMS norm of tokens: input 0 is x `(n, D)` of dtype `x`, input 1 the weight f32 `(D)`; output `(n, D)`.
pub fn rms_norm(n: usize, dim: usize, eps: f32, x: FloatType) -> KernelPlan {
    KernelPlan {
        source: &SOURCE,
        kernel: format!("rms_norm_{}", type_name(x)),
        constants: vec![],
        groups: [n, 1, 1],
        // Eight values a thread, in whole SIMD groups.
        threads: [dim.div_ceil(8).next_multiple_of(32).clamp(32, 256), 1, 1],
        args: vec![
            KernelArg::Input(0),
            KernelArg::Input(1),
            KernelArg::Output(n * dim, x),
            size(dim),
            KernelArg::F32(eps),
        ],
    }
}

/// The norm of heads before rotary.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    /// The epsilon added to the mean of squares.
    pub eps: f32,
    /// Tokens that the second weight is for.
    pub others: Option<Range<usize>>,
}

/// Plans rotary of heads, laid out for attention: inputs are x `(n, H, D)` of dtype `x`, cosines and sines f32 `(n, D/2)`;
/// output `(H, n, D)`. With `norm` each head is normalized first: input 3 is the weight, f32 `(D)`, and input 4 that of the
/// tokens `others`.
pub fn norm_rope([n, heads, dim]: [usize; 3], norm: Option<&HeadNorm>, x: FloatType) -> KernelPlan {
    let others = norm.and_then(|norm| norm.others.clone());
    let n_weights = usize::from(norm.is_some()) + usize::from(others.is_some());
    // Weights come last among the inputs, so that they can be left out.
    let weight = |i: usize| if i < n_weights { KernelArg::Input(3 + i) } else { KernelArg::Unused };
    let mut args = vec![KernelArg::Input(0), weight(0), weight(1), KernelArg::Input(1), KernelArg::Input(2)];
    args.extend([KernelArg::Output(n * heads * dim, x), size(n), size(heads), size(dim)]);
    args.push(KernelArg::F32(norm.map_or(0.0, |norm| norm.eps)));
    let others = others.unwrap_or(0..0);
    args.extend([size(others.start), size(others.end)]);
    KernelPlan {
        source: &SOURCE,
        kernel: format!("norm_rope_{}", type_name(x)),
        constants: vec![n_weights as u16],
        groups: [(n * heads).div_ceil(HEADS), 1, 1],
        threads: [32 * HEADS, 1, 1],
        args,
    }
}

/// Plans an L2 norm of pixels: inputs are x f32 `(n, C)` and factors f32 `(C)`; output f32 `(n, C)`, with `silu` after SiLU.
pub fn pixel_norm(n: usize, channels: usize, silu: bool) -> KernelPlan {
    KernelPlan {
        source: &SOURCE,
        kernel: "pixel_norm".to_owned(),
        // The first constant belongs to heads.
        constants: vec![0, u16::from(silu)],
        groups: [n.div_ceil(HEADS), 1, 1],
        threads: [32 * HEADS, 1, 1],
        args: vec![
            KernelArg::Input(0),
            KernelArg::Input(1),
            KernelArg::Output(n * channels, FloatType::F32),
            size(n),
            size(channels),
        ],
    }
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests {
    use super::super::runner::{ORDERS, run};
    use super::super::values::{decode, encode, rounded};
    use super::*;
    use crate::testing::{assert_close, seeded};

    const EPS: f32 = 1e-6;

    fn norm(x: &[f32], w: &[f32]) -> Vec<f64> {
        let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + f64::from(EPS)).sqrt();
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * r * f64::from(*w)).collect()
    }

    /// One unit in the last place of values up to 4, and of f32 sums.
    fn tolerance(x: FloatType) -> f32 {
        match x {
            FloatType::F32 => 4e-6,
            FloatType::F16 => 4.0 / 2048.0,
            FloatType::BF16 => 4.0 / 256.0,
        }
    }

    #[test]
    fn rows_are_normed() {
        for (n, dim, x_type) in [
            (1, 2048, FloatType::F32),
            (3, 72, FloatType::F16),
            (2, 5, FloatType::F32),
            (2, 1280, FloatType::BF16),
        ] {
            let x = rounded(&seeded(n * dim, 1), x_type);
            let w = seeded(dim, 2);
            let expected: Vec<f32> = x.chunks(dim).flat_map(|x| norm(x, &w)).map(|v| v as f32).collect();
            let plan = rms_norm(n, dim, EPS, x_type);
            let inputs = [encode(&x, x_type), encode(&w, FloatType::F32)];
            for order in ORDERS {
                let y = decode(&run(&plan, &inputs, order).unwrap(), x_type);
                assert_close(&format!("{n} {dim} {x_type:?}"), &y, &expected, tolerance(x_type));
            }
        }
    }

    #[test]
    fn pixels_are_divided_by_their_length() {
        for (n, channels, silu) in [(5, 70, false), (9, 6, true)] {
            let mut x = seeded(n * channels, 6);
            x[..channels].fill(0.0);
            let gamma = seeded(channels, 7);
            let pixel = |x: &[f32]| -> Vec<f32> {
                let length = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                let normed = |(x, g): (&f32, &f32)| {
                    let v = f64::from(*x) / length * (channels as f64).sqrt() * f64::from(*g);
                    if silu { v / (1.0 + (-v).exp()) } else { v }
                };
                x.iter().zip(&gamma).map(|pair| normed(pair) as f32).collect()
            };
            let expected: Vec<f32> = x.chunks(channels).flat_map(pixel).collect();
            let inputs = [encode(&x, FloatType::F32), encode(&gamma, FloatType::F32)];
            for order in ORDERS {
                let y = run(&pixel_norm(n, channels, silu), &inputs, order).unwrap();
                assert_close(&format!("{n} {channels}"), &decode(&y, FloatType::F32), &expected, 4e-6);
            }
        }
    }

    struct Heads {
        plan: KernelPlan,
        inputs: Vec<Vec<u8>>,
        expected: Vec<f32>,
    }

    fn head_norm(others: Option<Range<usize>>) -> Option<HeadNorm> {
        Some(HeadNorm { eps: EPS, others })
    }

    fn heads([n, h, d]: [usize; 3], by: Option<HeadNorm>, x_type: FloatType) -> Heads {
        let x = rounded(&seeded(n * h * d, 3), x_type);
        let (w, other) = (seeded(d, 4), seeded(d, 6));
        let others = by.as_ref().and_then(|by| by.others.clone());
        let angles: Vec<f32> = seeded(n * d / 2, 5).iter().map(|a| a * 1000.0).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let mut expected = vec![0.0; x.len()];
        for t in 0..n {
            for head in 0..h {
                let x = &x[(t * h + head) * d..][..d];
                let w = if others.as_ref().is_some_and(|rows| rows.contains(&t)) { &other } else { &w };
                let x = if by.is_some() { norm(x, w) } else { x.iter().map(|v| f64::from(*v)).collect() };
                for j in 0..d / 2 {
                    let (c, s) = (f64::from(cos[t * d / 2 + j]), f64::from(sin[t * d / 2 + j]));
                    let (a, b) = (x[j], x[j + d / 2]);
                    expected[(head * n + t) * d + j] = (a * c - b * s) as f32;
                    expected[(head * n + t) * d + j + d / 2] = (b * c + a * s) as f32;
                }
            }
        }
        let f32s = |v: &[f32]| encode(v, FloatType::F32);
        let mut inputs = vec![encode(&x, x_type), f32s(&cos), f32s(&sin), f32s(&w)];
        inputs.extend(others.is_some().then(|| f32s(&other)));
        Heads { plan: norm_rope([n, h, d], by.as_ref(), x_type), inputs, expected }
    }

    #[test]
    fn heads_are_normed_turned_and_laid_out() {
        for (shape, by, x_type) in [
            ([1, 16, 128], head_norm(None), FloatType::F32),
            ([5, 2, 128], head_norm(None), FloatType::BF16),
            ([3, 3, 80], None, FloatType::F32),
            ([3, 3, 80], None, FloatType::F16),
            ([5, 3, 80], None, FloatType::BF16),
            ([7, 1, 6], head_norm(None), FloatType::F16),
            // Rows of another norm: in the middle, at the end.
            ([9, 3, 128], head_norm(Some(1..8)), FloatType::F32),
            ([6, 2, 16], head_norm(Some(2..6)), FloatType::BF16),
            ([6, 2, 128], head_norm(Some(0..5)), FloatType::F16),
        ] {
            let Heads { plan, inputs, expected } = heads(shape, by.clone(), x_type);
            for order in ORDERS {
                let y = decode(&run(&plan, &inputs, order).unwrap(), x_type);
                assert_close(&format!("{shape:?} {by:?} {x_type:?}"), &y, &expected, tolerance(x_type));
            }
        }
    }

    /// Faults that only the simulator sees.
    #[cfg(target_os = "linux")]
    mod faults {
        use super::super::super::runner::{Build, check_races, run_source};
        use super::*;

        #[test]
        fn lanes_do_not_race() {
            let row = [encode(&seeded(160, 1), FloatType::F32), encode(&seeded(80, 2), FloatType::F32)];
            check_races(&rms_norm(2, 80, EPS, FloatType::F32), &row).unwrap();
            check_races(&pixel_norm(2, 80, true), &row).unwrap();
            let heads = heads([3, 2, 16], head_norm(Some(1..2)), FloatType::F32);
            check_races(&heads.plan, &heads.inputs).unwrap();
        }
        #[test]
        fn broken_copies_are_caught() {
            let row = [encode(&seeded(1024, 1), FloatType::F32), encode(&seeded(512, 2), FloatType::F32)];
            let plan = rms_norm(2, 512, EPS, FloatType::F32);
            let barrier = "  threadgroup_barrier(mem_flags::mem_threadgroup);\n";
            assert!(SOURCE.text.contains(barrier));
            let raced = SOURCE.text.replace(barrier, "");
            let raced = run_source(&raced, &plan, &row, 0, Build::RaceCheck);
            assert!(format!("{:#}", raced.unwrap_err()).contains("data race"));

            let Heads { plan, inputs, .. } = heads([3, 1, 32], None, FloatType::F32);
            let outside = SOURCE.text.replace("if (head < N * H)", "if (head <= N * H)");
            assert_ne!(outside, SOURCE.text);
            let outside = run_source(&outside, &plan, &inputs, 0, Build::Plain);
            assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));

            let pixels = [encode(&seeded(160, 1), FloatType::F32), encode(&seeded(80, 2), FloatType::F32)];
            let outside = SOURCE.text.replace("if (p < P)", "if (p <= P)");
            assert_ne!(outside, SOURCE.text);
            let outside = run_source(&outside, &pixel_norm(2, 80, false), &pixels, 0, Build::Plain);
            assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));
        }
    }
}
