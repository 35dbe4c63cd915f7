//! Pointwise operations: SwiGLU, four neighbouring values a thread; kernels in `pointwise.metal`.

use super::{KernelArg, KernelPlan, KernelSource, size, type_name};
use crate::dtype::FloatType;

pub(super) static SOURCE: KernelSource =
    KernelSource { name: "pointwise", text: include_str!("pointwise.metal") };

/// Values of one threadgroup.
// 256 threads of four values; not measured.
const GROUP: usize = 1024;

/// Plans `silu(gate) · up`: inputs are gate and up, `n` values of dtype `x` each, and so is the output.
pub fn swiglu(n: usize, x: FloatType) -> KernelPlan {
    KernelPlan {
        source: &SOURCE,
        kernel: format!("swiglu_{}", type_name(x)),
        constants: vec![],
        groups: [n.div_ceil(GROUP), 1, 1],
        threads: [GROUP / 4, 1, 1],
        args: vec![KernelArg::Input(0), KernelArg::Input(1), KernelArg::Output(n, x), size(n)],
    }
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests {
    use super::super::runner::{ORDERS, run};
    use super::super::values::{decode, encode, rounded, rounding};
    use super::*;
    use crate::dtype::FloatType::{BF16, F16, F32};
    use crate::testing::seeded;

    fn inputs(n: usize, x: FloatType) -> [Vec<f32>; 2] {
        let mut gate: Vec<f32> = seeded(n, 1).iter().map(|x| x * 30.0).collect();
        let large = if x == F16 { 6e4 } else { 1e30 };
        for (place, value) in gate.iter_mut().zip([0.0, -0.0, 88.0, -88.0, large, -large]) {
            *place = value;
        }
        [gate, seeded(n, 2)].map(|values| rounded(&values, x))
    }

    #[test]
    fn gated_values_equal_the_f64_reference() {
        for (n, x_type) in [(6, F32), (1024, F32), (2050, F32), (1030, F16), (1030, BF16)] {
            let [gate, up] = inputs(n, x_type);
            for order in ORDERS {
                let inputs = [encode(&gate, x_type), encode(&up, x_type)];
                let bytes = run(&swiglu(n, x_type), &inputs, order).unwrap();
                for ((x, up), found) in gate.iter().zip(&up).zip(decode(&bytes, x_type)) {
                    let (x, up) = (f64::from(*x), f64::from(*up));
                    let expected = x / (1.0 + (-x).exp()) * up;
                    let error = (f64::from(found) - expected).abs();
                    let bound = 5e-7 * expected.abs() + 1e-35 + rounding(expected, x_type);
                    assert!(error <= bound, "{x_type:?} {x} {up}: {found}, not {expected}");
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
        fn lanes_stay_apart_and_within_their_values() {
            let [gate, up] = inputs(1030, F32).map(|v| encode(&v, F32));
            check_races(&swiglu(1030, F32), &[gate.clone(), up.clone()]).unwrap();
            let broken = SOURCE.text.replace("min(first + 4, N)", "first + 4");
            assert_ne!(broken, SOURCE.text);
            let outside = run_source(&broken, &swiglu(1030, F32), &[gate, up], 0, Build::Plain);
            assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));
        }
    }
}
