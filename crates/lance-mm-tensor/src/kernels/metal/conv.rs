//! Convolutions of frames, channels last; kernels in `conv.metal`.
//!
//! ```text
//! a threadgroup    32 positions x 32 filters, in 4 SIMD groups of 16 x 16, each 2 x 2 fragments of 8 x 8;
//!                  32 values under the filters at a time, and as many of the filters, in threadgroup memory (9 kB)
//! ```
//!
//! Pixels are read in place: large convolutions of candle on Metal, which copy what lies under the filters, give wrong
//! values.

use candle_core::Tensor;

use super::{KernelArg, KernelPlan, KernelSource, apply, size, type_name};
use crate::dtype::FloatType;
use crate::error::{Error, Result};

pub(super) static SOURCE: KernelSource = KernelSource { name: "conv", text: include_str!("conv.metal") };

/// Positions, and filters, of one tile.
// Four SIMD groups of 2 x 2 fragments.
const TILE: usize = 32;
/// Frames that a kernel has slots for.
// The longest temporal kernel of the networks.
const FRAMES: usize = 3;

/// Shapes of one call.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    /// Rows, columns and channels of a frame.
    pub frame: [usize; 3],
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Stride, zero padding before the first pixel, and factor of nearest-neighbour upsampling.
    pub window: [usize; 3],
    /// Rows and columns of positions.
    pub positions: [usize; 2],
    /// Filters.
    pub filters: usize,
    /// Values of a filter, over all temporal taps.
    pub filter: usize,
    /// Frames given: 1 to 3, and no more than temporal taps.
    pub frames: usize,
    /// Dtype of the filters.
    pub float: FloatType,
}

/// Plans one frame of the output, f32 `(positions, filters)`: inputs are filters `(filters, filter)`, biases f32, and frames
/// f32 of one shape, the newest first.
///
/// # Panics
/// When there are no frames, or more than three.
pub fn conv(shape: &ConvShape) -> KernelPlan {
    assert!((1..=FRAMES).contains(&shape.frames), "one to three frames");
    let [rows, columns] = shape.positions;
    let positions = rows * columns;
    let mut args = vec![KernelArg::Input(0), KernelArg::Input(1)];
    args.extend(
        (0..FRAMES).map(|i| if i < shape.frames { KernelArg::Input(2 + i) } else { KernelArg::Unused }),
    );
    args.push(KernelArg::Output(positions * shape.filters, FloatType::F32));
    args.extend(shape.frame.into_iter().chain(shape.kernel).chain(shape.window).map(size));
    args.extend([columns, positions, shape.filters, shape.filter].map(size));
    KernelPlan {
        source: &SOURCE,
        kernel: format!("conv_{}", type_name(shape.float)),
        constants: vec![u16::try_from(shape.frames).expect("checked above")],
        groups: [shape.filters.div_ceil(TILE), positions.div_ceil(TILE), 1],
        threads: [128, 1, 1],
        args,
    }
}

/// Runs a convolution whose shapes were checked, `frames` newest first.
///
/// # Errors
/// More than three frames; frames or outputs of more values than 32 bits count.
pub(crate) fn convolve(
    shape: &ConvShape,
    filters: &Tensor,
    bias: &Tensor,
    frames: &[Tensor],
) -> Result<Tensor> {
    let values = |n: &[usize]| n.iter().try_fold(1u32, |n, m| n.checked_mul(u32::try_from(*m).ok()?));
    let [rows, columns] = shape.positions;
    let fits = values(&shape.frame).and(values(&[rows, columns, shape.filters]));
    if fits.is_none() || frames.len() > FRAMES {
        let expected = format!("at most {FRAMES} frames of fewer than 2^32 values");
        let found = format!("{} of {:?}, {} filters", frames.len(), shape.frame, shape.filters);
        return Err(Error::input("convolution on this device", expected, found));
    }
    let inputs: Vec<&Tensor> = [filters, bias].into_iter().chain(frames).collect();
    apply(&conv(shape), &inputs, &[rows, columns, shape.filters])
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests {
    use super::super::runner::{ORDERS, run};
    use super::super::values::{decode, encode, rounded};
    use super::*;
    use crate::testing::{assert_close, seeded};

    struct Case {
        plan: KernelPlan,
        inputs: Vec<Vec<u8>>,
        expected: Vec<f32>,
    }

    /// Frames `frame` under filters of `taps` frames, of which `there` exist.
    fn case(
        frame: [usize; 3],
        kernel: [usize; 2],
        [stride, pad_before, pad_after, upsample]: [usize; 4],
        [taps, there, filters]: [usize; 3],
        float: FloatType,
    ) -> Case {
        let [h, w, c] = frame;
        let area = kernel[0] * kernel[1] * c;
        let positions =
            [0, 1].map(|i| (frame[i] * upsample + pad_before + pad_after - kernel[i]) / stride + 1);
        let weight = rounded(&seeded(filters * taps * area, 1), float);
        let bias = seeded(filters, 2);
        let frames: Vec<Vec<f32>> = (0..there).map(|i| seeded(h * w * c, 3 + i as u64)).collect();
        let mut expected = vec![];
        for (y, x) in (0..positions[0]).flat_map(|y| (0..positions[1]).map(move |x| (y, x))) {
            for r in 0..filters {
                let mut sum = f64::from(bias[r]);
                for (age, frame) in frames.iter().enumerate() {
                    for (ky, kx) in (0..kernel[0]).flat_map(|y| (0..kernel[1]).map(move |x| (y, x))) {
                        let (py, px) = (y * stride + ky, x * stride + kx);
                        if py < pad_before || px < pad_before {
                            continue;
                        }
                        let (py, px) = ((py - pad_before) / upsample, (px - pad_before) / upsample);
                        if py >= h || px >= w {
                            continue;
                        }
                        let k = (taps - 1 - age) * area + (ky * kernel[1] + kx) * c;
                        for i in 0..c {
                            let value = weight[r * taps * area + k + i];
                            sum += f64::from(value) * f64::from(frame[(py * w + px) * c + i]);
                        }
                    }
                }
                expected.push(sum as f32);
            }
        }
        let shape = ConvShape {
            frame,
            kernel,
            window: [stride, pad_before, upsample],
            positions,
            filters,
            filter: taps * area,
            frames: there,
            float,
        };
        let mut inputs = vec![encode(&weight, float), encode(&bias, FloatType::F32)];
        inputs.extend(frames.iter().map(|frame| encode(frame, FloatType::F32)));
        Case { plan: conv(&shape), inputs, expected }
    }

    #[test]
    fn frames_equal_the_f64_reference() {
        for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            for (name, case) in [
                ("three frames", case([5, 7, 6], [3, 3], [1, 1, 1, 1], [3, 3, 33], float)),
                ("the first frame", case([4, 4, 3], [3, 3], [1, 1, 1, 1], [3, 1, 5], float)),
                ("halved", case([8, 6, 4], [3, 3], [2, 0, 1, 1], [1, 1, 8], float)),
                ("doubled", case([3, 4, 5], [3, 3], [1, 1, 1, 2], [1, 1, 7], float)),
                ("points of two frames", case([3, 5, 40], [1, 1], [1, 0, 0, 1], [3, 2, 34], float)),
            ] {
                for order in ORDERS {
                    let found = run(&case.plan, &case.inputs, order).unwrap();
                    let name = format!("{name} {float:?}");
                    assert_close(&name, &decode(&found, FloatType::F32), &case.expected, 2e-5);
                }
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
            let case = case([3, 3, 6], [3, 3], [1, 1, 1, 1], [3, 2, 5], FloatType::F32);
            check_races(&case.plan, &case.inputs).unwrap();
        }

        #[test]
        fn broken_copies_are_caught() {
            let case = case([4, 4, 4], [3, 3], [1, 1, 1, 1], [1, 1, 4], FloatType::F32);
            let broken = |from: &str, to: &str, build| {
                assert!(SOURCE.text.contains(from), "the source has {from:?}");
                let text = SOURCE.text.replace(from, to);
                let run = run_source(&text, &case.plan, &case.inputs, 0, build);
                run.map_err(|e| format!("{e:#}"))
            };
            let outside = broken("if (r < H && c < W)", "if (c < W)", Build::Plain).unwrap_err();
            assert!(outside.contains("outside buffer"), "{outside}");
            let barrier = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    for (uint kk";
            let raced = broken(barrier, "    for (uint kk", Build::RaceCheck).unwrap_err();
            assert!(raced.contains("data race"), "{raced}");
            let wrong = broken("column >= BORDER)", "column > BORDER)", Build::Plain).unwrap();
            let (error, _) = crate::testing::max_error(&decode(&wrong, FloatType::F32), &case.expected);
            assert!(error.is_nan() || error > 1e-3, "{error}");
        }
    }
}
