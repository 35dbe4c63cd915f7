use super::super::runner::{ORDERS, run};
use super::super::values::{decode, encode, rounded, rounding};
use super::*;
use crate::affine::AffineWeight;
use crate::testing::seeded;

/// A matrix, activations in their type's precision, and the product in f64 with the sum of magnitudes.
struct Case {
    w: AffineWeight,
    x: Vec<f32>,
    /// Values added to every row, if any.
    added: Option<Vec<f32>>,
    expected: Vec<f64>,
    size: Vec<f64>,
    x_type: FloatType,
}

fn case(scheme: Scheme, [n, rows, cols]: [usize; 3], x_type: FloatType, scales: FloatType) -> Case {
    let w = AffineWeight::quantize("w", &seeded(rows * cols, 3), cols, scheme, scales).unwrap();
    let x = rounded(&seeded(n * cols, 4), x_type);
    // Every other case adds something.
    let added = scheme.bits().is_multiple_of(2).then(|| seeded(rows, 5));
    let (mut expected, mut size) = (vec![0.0; n * rows], vec![0.0; n * rows]);
    let mut row = vec![0.0; cols];
    for r in 0..rows {
        w.read_row(r, &mut row);
        for i in 0..n {
            let added = added.as_ref().map_or(0.0, |added| f64::from(added[r]));
            expected[i * rows + r] += added;
            size[i * rows + r] += added.abs();
            for (x, w) in x[i * cols..(i + 1) * cols].iter().zip(&row) {
                let product = f64::from(*x) * f64::from(*w);
                expected[i * rows + r] += product;
                size[i * rows + r] += product.abs();
            }
        }
    }
    Case { w, x, added, expected, size, x_type }
}

impl Case {
    fn plan(&self) -> KernelPlan {
        affine_matmul(&self.matrix(), self.x.len() / self.w.n_cols(), self.x_type, self.added.is_some())
    }

    fn matrix(&self) -> AffineShape {
        AffineShape::new(self.w.scheme(), self.w.n_rows(), self.w.n_cols(), self.w.dtype())
    }

    fn weight_inputs(&self) -> Vec<Vec<u8>> {
        [self.w.word_bytes(), self.w.scale_bytes(), self.w.bias_bytes()].map(<[u8]>::to_vec).to_vec()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        let mut inputs = self.weight_inputs();
        inputs.push(encode(&self.x, self.x_type));
        inputs.extend(self.added.iter().map(|added| encode(added, FloatType::F32)));
        inputs
    }

    /// Sums of K products in f32 are off by some units in the last place of their magnitudes; the result is
    /// rounded once to its type.
    fn check(&self, y: &[u8]) -> Result<(), String> {
        for (i, y) in decode(y, self.x_type).into_iter().enumerate() {
            let (expected, size) = (self.expected[i], self.size[i]);
            let error = (f64::from(y) - expected).abs();
            if error.is_nan() || error > 2e-6 * size + rounding(expected, self.x_type) {
                return Err(format!("{} at {i}: found {y}, expected {expected}", self.plan().kernel));
            }
        }
        Ok(())
    }
}

const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::BF16];

/// Every bits with every group, and types of which all pairs are among those of nine that follow each other.
fn schemes() -> impl Iterator<Item = (Scheme, FloatType, FloatType)> {
    let schemes = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|b| [32, 64, 128].map(|g| (b, g)));
    schemes.enumerate().map(|(i, (bits, group))| {
        (Scheme::affine(bits, group).unwrap(), TYPES[(i + i / 9) % 3], TYPES[(i + i / 3) % 3])
    })
}

/// The product is right, and the same in all lane orders.
fn check_product(case: &Case) {
    let (plan, inputs) = (case.plan(), case.inputs());
    let first = run(&plan, &inputs, ORDERS[0]).unwrap();
    case.check(&first).unwrap();
    for order in &ORDERS[1..] {
        let again = run(&plan, &inputs, *order).unwrap();
        assert_eq!(first, again, "{} {:?}: lane order {order}", plan.kernel, plan.constants);
    }
}

#[test]
fn products_equal_the_reference_for_every_scheme() {
    for (scheme, x_type, scales) in schemes() {
        // Rows of x and of the matrix that fill no tile; both kernels.
        for shape in [[1, 9, 384], [5, 7, 256], [37, 45, 128]] {
            check_product(&case(scheme, shape, x_type, scales));
        }
    }
}

#[test]
fn wide_rows_and_whole_tiles_equal_the_reference() {
    // The most rows of x for which the one kernel runs, and the fewest for the other, too.
    for shape in [[1, 16, 11008], [4, 64, 2048], [8, 10, 512], [9, 40, 512], [32, 32, 512], [64, 96, 256]] {
        check_product(&case(Scheme::affine(4, 128).unwrap(), shape, FloatType::F32, FloatType::BF16));
    }
}

/// A lookup in a matrix of 9 rows of 640: the plan, its inputs, what it finds.
fn lookup(scheme: Scheme, out: FloatType, scales: FloatType) -> (KernelPlan, Vec<Vec<u8>>, Vec<f32>) {
    let case = case(scheme, [1, 9, 640], FloatType::F32, scales);
    let ids = [8u32, 0, 3, 3];
    let mut inputs = case.weight_inputs();
    inputs.push(ids.iter().flat_map(|id| id.to_le_bytes()).collect());
    let mut expected = vec![0.0; ids.len() * 640];
    for (id, row) in ids.iter().zip(expected.chunks_exact_mut(640)) {
        case.w.read_row(*id as usize, row);
    }
    (affine_rows(&case.matrix(), ids.len(), out), inputs, rounded(&expected, out))
}

#[test]
fn looked_up_rows_are_the_rows() {
    for (scheme, out, scales) in schemes() {
        let (plan, inputs, expected) = lookup(scheme, out, scales);
        for order in ORDERS {
            assert_eq!(decode(&run(&plan, &inputs, order).unwrap(), out), expected, "{}", plan.kernel);
        }
    }
}

#[test]
fn plans_cover_every_row() {
    let w = AffineShape::new(Scheme::affine(4, 128).unwrap(), 151_936, 2048, FloatType::BF16);
    let plan = affine_matmul(&w, 1, FloatType::F32, false);
    assert_eq!((plan.kernel.as_str(), plan.groups), ("affine_matvec_f32_bf16", [18_992, 1, 1]));
    let plan = affine_matmul(&w, 607, FloatType::BF16, true);
    assert_eq!((plan.kernel.as_str(), plan.groups), ("affine_matmul_bf16_bf16", [4748, 19, 1]));
}

/// Faults that only the simulator sees.
#[cfg(target_os = "linux")]
mod faults {
    use super::super::super::runner::{Build, check_races, run_source};
    use super::*;

    #[test]
    fn lanes_do_not_race() {
        for shape in [[3, 9, 256], [9, 33, 128]] {
            let case = case(Scheme::affine(4, 64).unwrap(), shape, FloatType::F32, FloatType::F32);
            check_races(&case.plan(), &case.inputs()).unwrap();
        }
        let (plan, inputs, _) = lookup(Scheme::affine(4, 64).unwrap(), FloatType::F32, FloatType::F32);
        check_races(&plan, &inputs).unwrap();
    }
    /// The checks above see what goes wrong in copies that are broken on purpose.
    #[test]
    fn broken_copies_are_caught() {
        let case = |shape| case(Scheme::affine(4, 64).unwrap(), shape, FloatType::F32, FloatType::F32);
        let barrier = "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    for (uint kk";
        let broken = |from: &str, to: &str| {
            assert!(SOURCE.text.contains(from), "the source has {from:?}");
            SOURCE.text.replace(from, to)
        };
        let tile = case([9, 33, 128]);
        let source = broken(barrier, "    for (uint kk");
        let raced = run_source(&source, &tile.plan(), &tile.inputs(), 0, Build::RaceCheck);
        assert!(format!("{:#}", raced.unwrap_err()).contains("data race"));

        let row = case([1, 9, 256]);
        let source = broken("n_rows = min(ROWS, R - min(R, row0))", "n_rows = ROWS");
        let outside = run_source(&source, &row.plan(), &row.inputs(), 0, Build::Plain);
        assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));

        let source = broken("(word >> (4 * i)) & 15u", "(word >> (4 * i + 1)) & 15u");
        let wrong = run_source(&source, &row.plan(), &row.inputs(), 0, Build::Plain);
        assert!(row.check(&wrong.unwrap()).is_err());

        let (plan, inputs, _) = lookup(Scheme::affine(4, 64).unwrap(), FloatType::F32, FloatType::F32);
        let source = broken("  if (k < K) {", "  {");
        let outside = run_source(&source, &plan, &inputs, 0, Build::Plain);
        assert!(format!("{:#}", outside.unwrap_err()).contains("outside buffer"));
    }
}
