use super::*;
use crate::testing::seeded;

/// Widths of rows: tails of every register, and none.
const WIDTHS: [usize; 8] = [1, 15, 16, 17, 33, 64, 127, 130];

fn detect() -> Option<Avx512Bf16> {
    let found = Avx512Bf16::detect();
    if found.is_none() {
        eprintln!("this processor has no bf16 products");
    }
    found
}

/// The two terms of a value, zeros where there is none.
fn terms(value: Option<&f32>) -> [u16; 2] {
    let value = *value.unwrap_or(&0.0);
    let first = half::bf16::from_f32(value);
    [first, half::bf16::from_f32(value - first.to_f32())].map(half::bf16::to_bits)
}

fn sixteen<T>(values: impl Fn(usize, usize) -> T) -> Box<[[T; 16]; 16]> {
    Box::new(std::array::from_fn(|i| std::array::from_fn(|j| values(i, j))))
}

#[test]
fn rows_are_split_into_their_terms() {
    let Some(kernels) = detect() else { return };
    for k in WIDTHS {
        for n in [1, 7, 16] {
            let rows = seeded(n * k, 1);
            let value = |i: usize, at: usize| rows.get(i * k + at).filter(|_| i < n && at < k);
            for first in (0..k).step_by(32) {
                let found = kernels.split_rows(&rows, k, first);
                for (i, c) in (0..16).flat_map(|i| (0..32).map(move |c| (i, c))) {
                    let found = found[i].0.map(|term| term[c]);
                    assert_eq!(found, terms(value(i, first + c)), "{n} rows of {k}, {i} at {first} + {c}");
                }
            }
            for first in (0..k).step_by(128) {
                let found = kernels.split_lines(&rows, k, first);
                for (i, c) in (0..16).flat_map(|i| (0..128).map(move |c| (i, c))) {
                    let found = found[c % 4][i].0.map(|term| term[c / 4]);
                    assert_eq!(found, terms(value(i, first + c)), "{n} rows of {k}, {i} at {first} + {c}");
                }
            }
        }
    }
}

#[test]
fn rows_are_copied_and_rounded() {
    let Some(kernels) = detect() else { return };
    for k in WIDTHS {
        let row = seeded(k, 1);
        let bits: Vec<u16> = row.iter().map(|value| terms(Some(value))[0]).collect();
        let stored: Vec<[u8; 2]> = bits.iter().map(|bits| bits.to_le_bytes()).collect();
        let mut copied = vec![[7; 32]; k.div_ceil(32)];
        let mut rounded = copied.clone();
        kernels.copy(&stored, 0, copied.iter_mut());
        kernels.round(&row, rounded.iter_mut());
        for found in [copied, rounded] {
            let (found, past) = found.as_flattened().split_at(k);
            assert_eq!(found, bits, "{k}");
            assert!(past.iter().all(|bits| *bits == 0), "{k}");
        }
    }
}

#[test]
fn rows_become_columns() {
    let Some(kernels) = detect() else { return };
    let values = sixteen(|i, j| (100 * i + j) as f32);
    let rows: Box<[Terms; 16]> = Box::new(std::array::from_fn(|i| {
        Terms(std::array::from_fn(|t| std::array::from_fn(|c| (1000 * t + 32 * i + c) as u16)))
    }));
    for stride in [16, 17, 40] {
        // They end with the last column.
        let mut columns = vec![f32::NAN; 15 * stride + 16];
        kernels.transpose(&values, &mut columns, stride);
        for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
            assert_eq!(columns[j * stride + i], values[i][j], "{stride}");
        }
        for t in 0..2 {
            let mut words = vec![0; 15 * stride + 16];
            kernels.pair_up(&rows, t, &mut words, stride);
            for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
                let pair = [0, 1].map(|half| u32::from(rows[j].0[t][2 * i + half]));
                assert_eq!(words[i * stride + j], pair[0] | pair[1] << 16, "{stride}");
            }
        }
    }
}

#[test]
fn neighbouring_rows_are_paired() {
    let Some(kernels) = detect() else { return };
    let values = seeded(256, 1);
    let rows = sixteen(|i, j| values[16 * i + j]);
    let mut out = Box::new([[0; 16]; 8]);
    kernels.pair_rows(&rows, &mut out);
    for (i, j) in (0..8).flat_map(|i| (0..16).map(move |j| (i, j))) {
        let pair = [0, 1].map(|half| u32::from(terms(Some(&rows[2 * i + half][j]))[0]));
        assert_eq!(out[i][j], pair[0] | pair[1] << 16, "{i} {j}");
    }
}
