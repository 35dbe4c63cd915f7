use super::*;
use crate::affine::AffineWeight;
use crate::dtype::FloatType;
use crate::scheme::Scheme;
use crate::testing::seeded;

struct Case {
    n: usize,
    rows: usize,
    k: usize,
    bits: usize,
    group: usize,
    dtype: FloatType,
}

fn cases() -> Vec<Case> {
    let case = |n, rows, k, bits, group| Case { n, rows, k, bits, group, dtype: FloatType::BF16 };
    let mut cases = vec![
        case(1, 1, 32, 4, 32),
        case(1, 7, 96, 4, 32),
        case(1, 5, 192, 4, 64),
        case(1, 9, 2048, 4, 128),
        case(1, 3, 11008, 4, 128),
        case(2, 6, 2176, 4, 32),
        case(3, 33, 320, 8, 64),
        case(4, 2, 2048, 8, 32),
        case(3, 70, 2048, 4, 128),
        case(5, 31, 256, 4, 128),
        case(6, 33, 1088, 4, 64),
        case(7, 65, 160, 4, 32),
        case(8, 129, 4224, 4, 32),
        case(16, 40, 384, 8, 128),
        case(17, 33, 96, 4, 32),
        case(29, 64, 2304, 4, 128),
        case(40, 3, 128, 8, 64),
        case(513, 2, 64, 4, 64),
    ];
    for bits in [2, 3, 5, 6] {
        cases.extend([case(1, 3, 2240, bits, 64), case(6, 35, 224, bits, 32), case(19, 4, 384, bits, 128)]);
        cases.extend([case(2, 5, 128, bits, 32), case(1, 33, 2176, bits, 128), case(2, 9, 2048, bits, 64)]);
    }
    cases.push(Case { dtype: FloatType::F16, ..case(2, 5, 4096, 4, 64) });
    cases.push(Case { dtype: FloatType::F32, ..case(20, 5, 256, 8, 32) });
    cases
}

impl Case {
    fn weight(&self) -> AffineWeight {
        let scheme = Scheme::affine(self.bits, self.group).unwrap();
        let values = seeded(self.rows * self.k, 2);
        AffineWeight::quantize("w", &values, self.k, scheme, self.dtype).unwrap()
    }

    /// Rows with a few values far larger than the rest, and some that are zero as a whole.
    fn x(&self) -> Vec<f32> {
        let mut x = seeded(self.n * self.k, 1);
        x.iter_mut().step_by(97).for_each(|v| *v *= 40.0);
        x[..self.group].fill(0.0);
        x
    }

    fn name(&self) -> String {
        let Self { n, rows, k, bits, group, dtype } = self;
        format!("n {n} rows {rows} k {k} bits {bits} group {group} {dtype:?}")
    }
}

/// Error of an operand by its rounding.
#[derive(Clone, Copy)]
enum Rounding {
    /// Activations: half of one of 127 steps from zero to the largest of their group, or of 32,639 where that hides others.
    Whole,
    /// Both half a step of bf16.
    #[cfg(target_arch = "x86_64")]
    Bf16,
}

impl Case {
    fn rounding(&self, isa: Isa) -> Rounding {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(..) if self.n > FEW || (self.n > PRECISE && self.bits != 4) => Rounding::Bf16,
            _ => Rounding::Whole,
        }
    }
}

/// The product in f64, and how far a kernel may be from it: by what operands are rounded, and 2e-6 of all that is
/// added up in f32.
fn naive(x: &[f32], n: usize, w: &AffineWeight, rounding: Rounding) -> Vec<(f64, f64)> {
    let (k, group) = (w.n_cols(), w.scheme().group_size());
    let (scales, biases) = (w.scales(), w.biases());
    let mut row = vec![0.0; k];
    let mut out = vec![(0.0, 0.0); n * w.n_rows()];
    for r in 0..w.n_rows() {
        w.read_row(r, &mut row);
        for i in 0..n {
            let (sum, bound) = &mut out[i * w.n_rows() + r];
            for g in 0..k / group {
                let at = g * group..(g + 1) * group;
                let x = &x[i * k..][at.clone()];
                let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                // Not at the limit itself, where a sum in f32 may decide otherwise.
                let fine = f64::from(largest).powi(2) * group as f64 > 18.01 * squares;
                let steps = if fine { 32_639.0 } else { 127.0 };
                let bias = f64::from(biases[r * (k / group) + g]);
                let scale = f64::from(scales[r * (k / group) + g]);
                for (x, w) in x.iter().zip(&row[at]) {
                    let (x, w) = (f64::from(*x), f64::from(*w));
                    let code = ((w - bias) / scale).round();
                    *sum += x * (scale * code + bias);
                    *bound += match rounding {
                        Rounding::Whole => w.abs() * f64::from(largest) / steps * 0.501,
                        #[cfg(target_arch = "x86_64")]
                        Rounding::Bf16 => x.abs() * w.abs() * f64::exp2(-7.0),
                    };
                    *bound += 2e-6 * f64::from(largest) * ((scale * code).abs() + bias.abs());
                }
            }
        }
    }
    out
}

#[test]
fn every_instruction_set_equals_the_naive_reference() {
    for case in cases() {
        let (x, w) = (case.x(), case.weight());
        for isa in Isa::available() {
            let expected = naive(&x, case.n, &w, case.rounding(isa));
            let found = matmul_with(isa, &x, case.n, &w.integer().unwrap(), Addends::default());
            assert_eq!(found.len(), expected.len());
            for (i, (y, (sum, bound))) in found.iter().zip(&expected).enumerate() {
                let error = (f64::from(*y) - sum).abs();
                assert!(
                    error <= *bound,
                    "{isa:?} {} at {i}: {y}, expected {sum} within {bound}",
                    case.name()
                );
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_portable_one() {
    for case in cases() {
        let (x, w) = (case.x(), case.weight());
        let portable = Isa::available().last().unwrap();
        let bits = |isa| -> Vec<u32> {
            matmul_with(isa, &x, case.n, &w.integer().unwrap(), Addends::default())
                .into_iter()
                .map(f32::to_bits)
                .collect()
        };
        let expected = bits(portable);
        let whole = |isa: &Isa| matches!(case.rounding(*isa), Rounding::Whole);
        for isa in Isa::available().filter(whole) {
            assert_eq!(bits(isa), expected, "{isa:?} {}", case.name());
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for n in [1, 3, 6, 20] {
        let case = Case { n, rows: 34, k: 256, bits: 4, group: 64, dtype: FloatType::BF16 };
        let (mut x, w) = (case.x(), case.weight());
        let clean = matmul(&x, n, &w.integer().unwrap(), Addends::default());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[(n - 1) * 256 + 130] = value;
            let found = matmul(&x, n, &w.integer().unwrap(), Addends::default());
            let (others, row) = found.split_at((n - 1) * 34);
            assert!(row.iter().all(|y| !y.is_finite()), "{n}");
            assert_eq!(others, &clean[..others.len()], "{n}");
        }
    }
}

#[test]
fn numbers_too_small_to_scale_count_as_zero() {
    let case = Case { n: 1, rows: 3, k: 64, bits: 4, group: 64, dtype: FloatType::F32 };
    let found = matmul(&[1e-40; 64], 1, &case.weight().integer().unwrap(), Addends::default());
    assert_eq!(found, [0.0; 3]);
}

#[test]
fn no_rows_give_no_output() {
    let case = Case { n: 0, rows: 3, k: 64, bits: 4, group: 64, dtype: FloatType::BF16 };
    assert!(matmul(&[], 0, &case.weight().integer().unwrap(), Addends::default()).is_empty());
}
