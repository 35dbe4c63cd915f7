//! Mean, median, 95th percentile and maximum of many numbers.

use serde::Serialize;

/// How numbers are spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Their mean.
    pub mean: f64,
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The 95th percentile, between the neighbouring values in proportion.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Distribution {
    /// Distribution of at least one number.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        let mean = mean(values.iter().copied())?;
        values.sort_by(f64::total_cmp);
        Some(Self {
            mean,
            median: quantile(&values, 0.5),
            p95: quantile(&values, 0.95),
            max: quantile(&values, 1.0),
        })
    }
}

/// The mean of at least one number.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.fold((0usize, 0.0), |(n, sum), value| (n + 1, sum + value));
    (n > 0).then(|| sum / n as f64)
}

/// The quantile `q` of sorted values, at least one.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let of = |values: &[f64]| Distribution::of(values.to_vec());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some(Distribution { mean: 3.0, median: 3.0, p95: 3.0, max: 3.0 }));
        let found = of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((found.mean, found.median, found.max), (2.5, 2.5, 4.0));
        assert!((found.p95 - 3.85).abs() < 1e-12);
    }
}
