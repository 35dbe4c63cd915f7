use super::*;
use crate::testing::seeded;

/// One code at a time from the bit string of the row, lowest bit first.
fn naive_codes(words: &[u32], bits: usize, cols: usize) -> Vec<f32> {
    let bit = |i: usize| words[i / 32] >> (i % 32) & 1;
    (0..cols).map(|k| (0..bits).map(|b| bit(k * bits + b) << b).sum::<u32>() as f32).collect()
}

#[test]
fn rows_equal_the_naive_reading_for_every_scheme() {
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            for dtype in [FloatType::F32, FloatType::F16, FloatType::BF16] {
                let (rows, cols) = (3, 256);
                let values = seeded(rows * cols, bits as u64);
                let scheme = Scheme::affine(bits, group).unwrap();
                let w = AffineWeight::quantize("w", &values, cols, scheme, dtype).unwrap();
                let (words, scales, biases) = (w.words(), w.scales(), w.biases());
                for row in 0..rows {
                    let width = cols * bits / 32;
                    let codes = naive_codes(&words[row * width..(row + 1) * width], bits, cols);
                    let mut out = vec![f32::NAN; cols];
                    w.read_row(row, &mut out);
                    for k in 0..cols {
                        let g = row * (cols / group) + k / group;
                        assert_eq!(
                            out[k],
                            scales[g] * codes[k] + biases[g],
                            "{bits} {group} {dtype:?} {row} {k}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn dequantized_values_are_within_half_a_step() {
    let values = seeded(512, 5);
    for bits in [2, 3, 4, 5, 6, 8] {
        let w = AffineWeight::quantize_f32("w", &values, 128, Scheme::affine(bits, 64).unwrap()).unwrap();
        let mut out = vec![0.0; 128];
        for row in 0..4 {
            w.read_row(row, &mut out);
            for k in 0..128 {
                let step = w.scales()[row * 2 + k / 64].abs();
                let error = (out[k] - values[row * 128 + k]).abs();
                // The stretched scale can push the far end past the last code.
                assert!(error <= step * 0.5 + step, "{bits}: {error} > {step}");
            }
        }
    }
}

#[test]
fn edges_of_the_format() {
    let scheme = Scheme::affine(4, 32).unwrap();
    let row = |f: fn(usize) -> f32| (0..32).map(f).collect::<Vec<f32>>();
    // Zeros: the smallest step, negative because the upper end wins ties.
    let zero = AffineWeight::quantize_f32("w", &row(|_| 0.0), 32, scheme).unwrap();
    assert_eq!((zero.scales()[0], zero.biases()[0], zero.words()[0]), (-1e-7, 0.0, 0));
    // A ramp of 0..15 is stored exactly, from the top down.
    let ramp = AffineWeight::quantize_f32("w", &row(|i| (i % 16) as f32), 32, scheme).unwrap();
    assert_eq!((ramp.scales()[0], ramp.biases()[0]), (-1.0, 15.0));
    assert_eq!(ramp.words()[0], 0x89ab_cdef);
    // The end of larger magnitude is exact when negative too.
    let negative = AffineWeight::quantize_f32("w", &row(|i| i as f32 - 31.0), 32, scheme).unwrap();
    assert_eq!(negative.biases()[0], -31.0);
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let scheme = Scheme::affine(4, 32).unwrap();
    let cases: [(&[f32], usize, &str); 5] = [
        (&[1.0; 48], 48, "48 columns"),
        (&[1.0; 33], 32, "33 values"),
        (&[], 32, "0 values"),
        (&[f32::NAN; 32], 32, "not finite in row 0"),
        (&[1.0; 32], 0, "0 columns"),
    ];
    for (values, cols, expected) in cases {
        let text = AffineWeight::quantize_f32("w", values, cols, scheme).err().unwrap().to_string();
        assert!(text.contains(expected), "{text}");
    }
    let overflow: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect();
    let text = AffineWeight::quantize_f32("w", &overflow, 32, scheme).err().unwrap().to_string();
    assert!(text.contains("w.scales: not finite in row 0"), "{text}");
}

#[test]
fn parts_make_the_same_matrix() {
    for (bits, group) in [(2, 32), (3, 64), (4, 128), (5, 32), (6, 64), (8, 128)] {
        let (cols, scheme) = (128, Scheme::affine(bits, group).unwrap());
        let values = seeded(3 * cols, 7);
        let whole = AffineWeight::quantize("w", &values, cols, scheme, FloatType::BF16).unwrap();
        let (mut codes, mut scales, mut biases) = (vec![0; values.len()], Vec::new(), Vec::new());
        for (values, codes) in values.chunks_exact(group).zip(codes.chunks_exact_mut(group)) {
            let (scale, bias) = quantize_group(values, bits, codes);
            scales.push(scale);
            biases.push(bias);
        }
        let words = pack_codes(&codes, bits);
        let parts =
            AffineWeight::from_parts("w", words, &scales, &biases, cols, scheme, FloatType::BF16).unwrap();
        assert_eq!((parts.n_rows(), parts.n_cols()), (3, cols));
        assert_eq!(parts.word_bytes(), whole.word_bytes(), "{bits} {group}");
        assert_eq!(parts.scale_bytes(), whole.scale_bytes(), "{bits} {group}");
        assert_eq!(parts.bias_bytes(), whole.bias_bytes(), "{bits} {group}");
    }
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let scheme = Scheme::affine(4, 32).unwrap();
    let make = |words: usize, scales: &[f32], cols| {
        let made =
            AffineWeight::from_parts("w", vec![0; words], scales, &[0.0], cols, scheme, FloatType::BF16);
        made.err().unwrap().to_string()
    };
    assert_eq!(make(3, &[1.0], 32), "w: expected rows of 4 words, found 3 words");
    assert_eq!(make(4, &[1.0; 2], 32), "w.scales: expected 1 rows of 1, found 2");
    assert_eq!(make(4, &[1.0], 33), "w: expected columns in groups of 32, found 33 columns");
    assert_eq!(make(4, &[f32::MAX], 32), "w.scales: not finite in row 0");
}
