//! The noise that generation starts from.

use candle_core::{Device, Tensor};
use lance_mm_models::latent::CHANNELS;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::Result;

/// Standard normal values f32 `(n, 48)`, one row for each latent.
///
/// Words of the ChaCha8 stream whose key begins with the seed, in little-endian order, the rest of the key
/// zero. Two words a and b give, by Box and Muller's transform in f64, the values r·cos φ and r·sin φ with
/// r² = −2·ln(1 − a) and φ = 2π·b, where the upper 53 bits of a word are a number in [0, 1). Row after row;
/// so a longer noise begins as a shorter one of the same seed. The original draws from a generator of the
/// GPU, which cannot be repeated elsewhere: the same seed gives another image there.
///
/// # Errors
/// Shapes or devices that candle refuses.
pub fn noise(seed: u64, n: usize) -> Result<Tensor> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut unit = || (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    let values: Vec<f32> = (0..n * CHANNELS / 2)
        .flat_map(|_| {
            let (radius, angle) = ((-2.0 * (1.0 - unit()).ln()).sqrt(), std::f64::consts::TAU * unit());
            [(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]
        })
        .collect();
    Ok(Tensor::from_vec(values, (n, CHANNELS), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, n: usize) -> Vec<f32> {
        noise(seed, n).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn it_is_standard_normal() {
        let values = values(42, 4096);
        let n = values.len() as f64;
        let moment = |k: i32| values.iter().map(|v| f64::from(*v).powi(k)).sum::<f64>() / n;
        for (k, expected, tolerance) in [(1, 0.0, 0.01), (2, 1.0, 0.02), (3, 0.0, 0.05), (4, 3.0, 0.1)] {
            assert!((moment(k) - expected).abs() < tolerance, "moment {k}: {}", moment(k));
        }
        assert!(values.iter().all(|v| v.is_finite()));
        let share = values.iter().filter(|v| v.fract() == 0.0).count();
        assert!(share < 10, "{share} whole numbers");
    }

    #[test]
    fn seeds_differ_and_a_longer_noise_begins_as_a_shorter() {
        assert_ne!(values(1, 4), values(2, 4));
        assert_eq!(values(1, 9)[..4 * CHANNELS], values(1, 4));
    }

    #[test]
    fn the_documented_generator_is_pinned() {
        let found = values(42, 1);
        for (found, expected) in found.iter().zip(PINNED) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    /// The first values of seed 42.
    const PINNED: [f32; 4] = [-0.205_812_2, 0.902_132_75, -0.787_086_55, 0.860_725_2];
}
