//! Helpers of the workspace's tests; not part of the API.

/// Reproducible values in (-1, 1): splitmix64 of a seed and an index.
pub fn seeded(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let mut z = seed.wrapping_mul(0xa076_1d64_78bd_642f).wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Largest absolute difference of two slices of one length; not a number if any value is not.
pub fn max_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "lengths");
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, |m, e| if e.is_nan() || m.is_nan() { f32::NAN } else { m.max(e) })
}

/// Asserts that two slices agree within an absolute tolerance, printing where they differ most.
#[track_caller]
pub fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}: lengths");
    let error = max_error(found, expected);
    if error <= tolerance {
        return;
    }
    let at = (0..found.len())
        .find(|i| !((found[*i] - expected[*i]).abs() < error))
        .unwrap_or_default();
    panic!("{name}: error {error} > {tolerance} at {at}: found {}, expected {}", found[at], expected[at]);
}
