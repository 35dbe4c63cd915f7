//! Helpers of the workspace's tests; not part of the API.

use std::rc::Rc;

use crate::kernels::metal;
pub use crate::kernels::metal::Executor;

/// Runs `work` as on a device: every operation of this crate on CPU tensors makes the kernel plans of a device, and
/// `executor` runs them. On this thread only; networks must be loaded within `work`, too.
pub fn with_executor<T>(executor: Rc<Executor>, work: impl FnOnce() -> T) -> T {
    metal::with_executor(executor, work)
}

/// Reproducible values in (-1, 1): splitmix64 of a seed and an index.
pub fn seeded(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let mut z = seed
                .wrapping_mul(0xa076_1d64_78bd_642f)
                .wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Largest absolute difference of two slices of one length, and its index; NaN if any value is.
pub fn max_error(found: &[f32], expected: &[f32]) -> (f32, usize) {
    assert_eq!(found.len(), expected.len(), "lengths");
    let errors = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    errors.enumerate().fold((0.0, 0), |(worst, at), (i, error)| {
        let worse = error.is_nan() || error > worst;
        if worse && !f32::is_nan(worst) { (error, i) } else { (worst, at) }
    })
}

/// Asserts that two slices agree within an absolute tolerance, printing where they differ most.
#[track_caller]
pub fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let (error, at) = max_error(found, expected);
    if !matches!(error.partial_cmp(&tolerance), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
        panic!("{name}: error {error} > {tolerance} at {at}: found {}, expected {}", found[at], expected[at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_error_is_found_and_not_a_number_wins() {
        assert_eq!(max_error(&[1.0, 2.0, 5.0], &[1.0, 2.5, 4.8]), (0.5, 1));
        let (error, at) = max_error(&[1.0, f32::NAN, 9.0], &[1.0, 2.5, 4.8]);
        assert!(error.is_nan() && at == 1);
    }

    #[test]
    #[should_panic(expected = "x: error NaN")]
    fn not_a_number_is_never_close() {
        assert_close("x", &[f32::NAN], &[0.0], f32::INFINITY);
    }
}
