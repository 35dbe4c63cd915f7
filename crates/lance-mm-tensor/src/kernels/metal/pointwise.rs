//! Value by value: the gate of an MLP; kernels in `pointwise.metal`.

use super::{Arg, Plan, Source, size};

pub(super) static SOURCE: Source = Source { name: "pointwise", text: include_str!("pointwise.metal") };

/// Values that one threadgroup handles.
const GROUP: usize = 1024;

/// `silu(gate) · up`: inputs are gate and up, `n` f32 values each, and so is the output.
pub fn swiglu(n: usize) -> Plan {
    Plan {
        source: &SOURCE,
        kernel: "swiglu".to_owned(),
        constants: vec![],
        groups: [n.div_ceil(GROUP), 1, 1],
        threads: [GROUP / 4, 1, 1],
        args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(n), size(n)],
    }
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests {
    use super::super::runner::{ORDERS, run};
    use super::super::values::{decode, encode};
    use super::*;
    use crate::dense::FloatType::F32;
    use crate::testing::seeded;

    fn inputs(n: usize) -> [Vec<f32>; 2] {
        let mut gate: Vec<f32> = seeded(n, 1).iter().map(|x| x * 30.0).collect();
        for (place, value) in gate.iter_mut().zip([0.0, -0.0, 88.0, -88.0, 1e30, -1e30]) {
            *place = value;
        }
        [gate, seeded(n, 2)]
    }

    #[test]
    fn gated_values_equal_the_f64_reference() {
        for n in [6, 1024, 2050] {
            let [gate, up] = inputs(n);
            for order in ORDERS {
                let bytes = run(&swiglu(n), &[encode(&gate, F32), encode(&up, F32)], F32, order).unwrap();
                for ((x, up), found) in gate.iter().zip(&up).zip(decode(&bytes, F32)) {
                    let (x, up) = (f64::from(*x), f64::from(*up));
                    let expected = x / (1.0 + (-x).exp()) * up;
                    let error = (f64::from(found) - expected).abs();
                    assert!(error <= 5e-7 * expected.abs() + 1e-35, "{x} {up}: {found}, not {expected}");
                }
            }
        }
    }

    /// What only the simulator sees.
    #[cfg(target_os = "linux")]
    mod faults {
        use super::super::super::runner::{Build, check_races, run_source};
        use super::*;

        #[test]
        fn lanes_stay_apart_and_within_their_values() {
            let [gate, up] = inputs(1030).map(|v| encode(&v, F32));
            check_races(&swiglu(1030), &[gate.clone(), up.clone()], F32).unwrap();
            let broken = SOURCE.text.replace("min(first + 4, N)", "first + 4");
            assert_ne!(broken, SOURCE.text);
            let outside = run_source(&broken, &swiglu(1030), &[gate, up], F32, 0, Build::Plain);
            assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));
        }
    }
}
