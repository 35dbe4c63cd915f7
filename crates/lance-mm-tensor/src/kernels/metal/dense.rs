//! Matmuls with dense matrices, and lookups of their rows; kernels in `dense.metal`.
//!
//! ```text
//! matvec    a threadgroup: 8 rows of W x 4 tokens; a SIMD group has 4 rows, a lane 4 columns of every 128
//! matmul    a threadgroup: 32 rows of W x 32 tokens, in 4 SIMD groups of 16 x 16, each 2 x 2 fragments of 8 x 8;
//!           32 columns of x and of W at a time in threadgroup memory (9 kB)
//! ```

use super::{KernelArg, KernelPlan, KernelSource, size, type_name};
use crate::dtype::FloatType;

pub(super) static SOURCE: KernelSource = KernelSource { name: "dense", text: include_str!("dense.metal") };

/// Most tokens of the matrix-vector kernel.
// A bound, not measured: fragments of eight tokens would be half empty below it.
const MATVEC_ROWS: usize = 8;
/// Tokens that one pass of the matrix-vector kernel keeps in registers.
// 4 x 4 sums and 4 x 4 activations of a lane; not measured.
const PASS: usize = 4;
/// Rows of the matrix of one threadgroup of the matrix-vector kernel.
// Two SIMD groups of four rows.
const MATVEC_TILE: usize = 8;
/// Tokens, and rows of the matrix, of one tile of the matmul kernel.
// Four SIMD groups of 2 x 2 fragments.
const TILE: usize = 32;

/// A matrix `(R, K)` of values of `float` on the device: input 0 of every plan.
#[derive(Clone, Copy, Debug)]
pub struct DenseShape {
    /// Rows `R`.
    pub rows: usize,
    /// Columns `K`.
    pub cols: usize,
    /// Dtype of the values.
    pub float: FloatType,
}

impl DenseShape {
    fn plan(
        &self,
        kernel: &str,
        x: FloatType,
        groups: [usize; 3],
        threads: usize,
        args: Vec<KernelArg>,
    ) -> KernelPlan {
        KernelPlan {
            source: &SOURCE,
            kernel: format!("{kernel}_{}_{}", type_name(x), type_name(self.float)),
            constants: vec![u16::from(args.contains(&KernelArg::Input(2)))],
            groups,
            threads: [threads, 1, 1],
            args,
        }
    }
}

/// Plans `x · Wᵀ`: input 1 is x `(n, K)` of dtype `x`, the output `(n, R)` of the same dtype; sums are f32. With `add`, input 2
/// is a bias, f32 `(R)`.
pub fn dense_matmul(w: &DenseShape, n: usize, x: FloatType, add: bool) -> KernelPlan {
    let added = if add { KernelArg::Input(2) } else { KernelArg::Unused };
    let mut args = vec![KernelArg::Input(0), KernelArg::Input(1), added, KernelArg::Output(n * w.rows, x)];
    args.extend([size(n), size(w.rows), size(w.cols)]);
    if n <= MATVEC_ROWS {
        w.plan("dense_matvec", x, [w.rows.div_ceil(MATVEC_TILE), n.div_ceil(PASS), 1], 64, args)
    } else {
        w.plan("dense_matmul", x, [w.rows.div_ceil(TILE), n.div_ceil(TILE), 1], 128, args)
    }
}

/// Plans a lookup of rows: input 1 holds `n` indices (`uint`) below `R`, the output is `(n, K)` of dtype `out`.
pub fn dense_rows(w: &DenseShape, n: usize, out: FloatType) -> KernelPlan {
    let args =
        vec![KernelArg::Input(0), KernelArg::Input(1), KernelArg::Output(n * w.cols, out), size(w.cols)];
    w.plan("dense_rows", out, [w.cols.div_ceil(64), n, 1], 64, args)
}

#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod tests {
    use super::super::runner::{ORDERS, run};
    use super::super::values::{decode, encode, rounded, rounding};
    use super::*;
    use crate::testing::seeded;

    const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::BF16];

    struct Case {
        plan: KernelPlan,
        inputs: Vec<Vec<u8>>,
        expected: Vec<f64>,
        size: Vec<f64>,
        x_type: FloatType,
    }

    fn case([n, rows, cols]: [usize; 3], x_type: FloatType, float: FloatType, add: bool) -> Case {
        let w = rounded(&seeded(rows * cols, 1), float);
        let x = rounded(&seeded(n * cols, 2), x_type);
        let added = seeded(rows, 3);
        let (mut expected, mut size) = (vec![], vec![]);
        for x in x.chunks(cols) {
            for (w, added) in w.chunks(cols).zip(&added) {
                let added = if add { f64::from(*added) } else { 0.0 };
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                expected.push(added + products.clone().sum::<f64>());
                size.push(added.abs() + products.map(f64::abs).sum::<f64>());
            }
        }
        let mut inputs = vec![encode(&w, float), encode(&x, x_type)];
        inputs.extend(add.then(|| encode(&added, FloatType::F32)));
        let plan = dense_matmul(&DenseShape { rows, cols, float }, n, x_type, add);
        Case { plan, inputs, expected, size, x_type }
    }

    impl Case {
        /// Sums of K products in f32 are off by some units in the last place of their magnitudes; the result is
        /// rounded once to its type.
        fn check(&self, y: &[u8]) -> Result<(), String> {
            for (i, y) in decode(y, self.x_type).into_iter().enumerate() {
                let error = (f64::from(y) - self.expected[i]).abs();
                if error.is_nan() || error > 2e-6 * self.size[i] + rounding(self.expected[i], self.x_type) {
                    return Err(format!(
                        "{} at {i}: found {y}, expected {}",
                        self.plan.kernel, self.expected[i]
                    ));
                }
            }
            Ok(())
        }
    }

    #[test]
    fn products_equal_the_reference() {
        let few = [[1, 9, 300], [5, 16, 128], [8, 3, 1]];
        let many = [[37, 45, 70], [32, 64, 96], [9, 33, 1176]];
        for (i, shape) in few.into_iter().chain(many).enumerate() {
            // Every type of x with every type of w, in both kernels.
            for (j, x_type) in TYPES.into_iter().enumerate() {
                let float = TYPES[(i + j) % 3];
                let case = case(shape, x_type, float, i % 2 == 0);
                let first = run(&case.plan, &case.inputs, ORDERS[0]).unwrap();
                case.check(&first).unwrap();
                for order in &ORDERS[1..] {
                    let again = run(&case.plan, &case.inputs, *order).unwrap();
                    assert_eq!(first, again, "{x_type:?} {float:?} {shape:?}: lane order {order}");
                }
            }
        }
    }

    /// A lookup of rows of 70 values: the plan, its inputs, what it finds.
    fn lookup(float: FloatType, out: FloatType) -> (KernelPlan, [Vec<u8>; 2], Vec<f32>) {
        let w = rounded(&seeded(5 * 70, 1), float);
        let ids = [4u32, 0, 0];
        let inputs = [encode(&w, float), ids.iter().flat_map(|id| id.to_le_bytes()).collect()];
        let plan = dense_rows(&DenseShape { rows: 5, cols: 70, float }, ids.len(), out);
        let expected: Vec<f32> = ids.iter().flat_map(|id| w[*id as usize * 70..][..70].to_vec()).collect();
        (plan, inputs, rounded(&expected, out))
    }

    #[test]
    fn looked_up_rows_are_the_rows() {
        for (float, out) in TYPES.into_iter().flat_map(|float| TYPES.map(|out| (float, out))) {
            let (plan, inputs, expected) = lookup(float, out);
            for order in ORDERS {
                assert_eq!(decode(&run(&plan, &inputs, order).unwrap(), out), expected);
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
            for shape in [[3, 9, 70], [9, 33, 40]] {
                let case = case(shape, FloatType::F32, FloatType::BF16, true);
                check_races(&case.plan, &case.inputs).unwrap();
            }
            let (plan, inputs, _) = lookup(FloatType::BF16, FloatType::F32);
            check_races(&plan, &inputs).unwrap();
        }
        #[test]
        fn broken_copies_are_caught() {
            let broken = |case: &Case, from: &str, to: &str, build| {
                assert!(SOURCE.text.contains(from), "the source has {from:?}");
                let text = SOURCE.text.replace(from, to);
                run_source(&text, &case.plan, &case.inputs, 0, build).map_err(|e| format!("{e:#}"))
            };
            let tile = case([9, 33, 40], FloatType::F32, FloatType::F32, true);
            let barrier = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    for (uint kk";
            let raced = broken(&tile, barrier, "    for (uint kk", Build::RaceCheck).unwrap_err();
            assert!(raced.contains("data race"), "{raced}");
            // Bytes of the matrix fill whole steps of 16, to which buffers of the simulator are rounded up.
            let row = case([1, 8, 70], FloatType::F32, FloatType::BF16, false);
            let outside = broken(&row, "min(STEP, K - k)", "STEP", Build::Plain).unwrap_err();
            assert!(outside.contains("outside buffer"), "{outside}");
            let wrong =
                broken(&tile, "inside && m0 + line < M ?", "m0 + line < M && k0 + k + 1 < K ?", Build::Plain);
            assert!(tile.check(&wrong.unwrap()).is_err());
            let (plan, inputs, _) = lookup(FloatType::F32, FloatType::F32);
            let text = SOURCE.text.replace("if (k < K) out", "out");
            assert_ne!(text, SOURCE.text);
            let outside = run_source(&text, &plan, &inputs, 0, Build::Plain);
            assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));
        }
    }
}
