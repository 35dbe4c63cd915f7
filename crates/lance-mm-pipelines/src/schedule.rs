//! The times at which generation evaluates the network.

use crate::error::{Error, Result};

/// Bound of [`Schedule::new`]'s steps: far more than any published setting, few enough to list.
const MAX_STEPS: usize = 10_000;

/// A grid of times from 1 (noise) to 0 (data), on the path `x_t = (1 - t) · data + t · noise`.
///
/// `n` even steps `u` from 1 to 0, each moved to `t = shift · u / (1 + (shift - 1) · u)`: a shift above 1
/// spends more steps near the noise. In f32, in the order in which `torch.linspace` computes: which steps
/// fall into the guidance interval hangs on the last bit.
///
/// Reference: bytedance/Lance, `Lance.validation_gen_KVcache`.
///
/// ```
/// use lance_mm_pipelines::Schedule;
///
/// let schedule = Schedule::new(4, 3.5)?;
/// assert_eq!(schedule.times().len(), 5);
/// assert_eq!((schedule.times()[0], schedule.times()[4]), (1.0, 0.0));
/// # Ok::<(), lance_mm_pipelines::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    times: Vec<f32>,
}

impl Schedule {
    /// A grid of `steps` steps.
    ///
    /// # Errors
    /// [`Error::Option`] for no steps, more than 10,000, or a shift that is not a finite number above 0.
    pub fn new(steps: usize, shift: f64) -> Result<Self> {
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(Error::option("steps", format!("a number from 1 to {MAX_STEPS}"), steps));
        }
        if !(shift > 0.0 && f32::MAX > shift as f32 && shift as f32 > 0.0) {
            return Err(Error::option("shift", "a finite number above 0", shift));
        }
        let step = 1.0 / steps as f32;
        let u = |i: usize| {
            if i < steps.div_ceil(2) { 1.0 - step * i as f32 } else { step * (steps - i) as f32 }
        };
        let shifted = |u: f32| shift as f32 * u / (1.0 + (shift - 1.0) as f32 * u);
        // Where the shift is no short binary fraction, rounding would start a hair beside 1.
        let times = (0..=steps).map(|i| if i == 0 { 1.0 } else { shifted(u(i)) }).collect();
        Ok(Self { times })
    }

    /// All `n + 1` times, falling from 1 to 0. The network is evaluated at every one but the last.
    pub fn times(&self) -> &[f32] {
        &self.times
    }

    /// The steps in order.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = InferenceStep> + '_ {
        self.times.windows(2).enumerate().map(|(index, pair)| InferenceStep {
            index,
            t: pair[0],
            dt: pair[0] - pair[1],
        })
    }
}

/// One step of a [`Schedule`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InferenceStep {
    /// From 0.
    pub index: usize,
    /// The time at which the network is evaluated, in (0, 1].
    pub t: f32,
    /// How far the step goes towards 0; above 0.
    pub dt: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_grid_is_the_published_one() {
        let schedule = Schedule::new(30, 3.5).unwrap();
        let times = schedule.times();
        for (i, expected) in [(1, 0.9902), (2, 0.9800), (3, 0.9692), (27, 0.28), (28, 0.2), (29, 0.1077)] {
            assert!((times[i] - expected).abs() < 5e-5, "{i}: {}", times[i]);
        }
        // The grid of the uncached original: guidance runs in 26 of 30 steps.
        assert_eq!(schedule.steps().filter(|step| step.t > 0.4).count(), 26);
        assert_eq!(Schedule::new(30, 1.0).unwrap().steps().filter(|step| step.t > 0.4).count(), 19);
    }

    #[test]
    fn every_grid_falls_from_one_to_zero() {
        for steps in [1, 2, 3, 30, 999] {
            for shift in [0.25, 1.0, 3.3, 7.0] {
                let schedule = Schedule::new(steps, shift).unwrap();
                let times = schedule.times();
                assert_eq!((times[0], times[steps], times.len()), (1.0, 0.0, steps + 1), "{shift}");
                assert!(schedule.steps().all(|step| step.dt > 0.0 && step.t > 0.0), "{steps} {shift}");
            }
        }
    }

    #[test]
    fn options_out_of_range_are_named() {
        for (steps, shift, name) in [
            (0, 3.5, "steps"),
            (10_001, 3.5, "steps"),
            (4, 0.0, "shift"),
            (4, -1.0, "shift"),
            (4, f64::NAN, "shift"),
            (4, f64::INFINITY, "shift"),
            (4, 1e300, "shift"),
            (4, 1e-300, "shift"),
        ] {
            let text = Schedule::new(steps, shift).unwrap_err().to_string();
            assert!(text.starts_with(&format!("option {name}: expected")), "{text}");
        }
    }
}
