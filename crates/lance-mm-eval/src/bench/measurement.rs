//! Repeats of one measurement.

use serde::Serialize;

use crate::distribution::quantile;

/// Median and range of a repeated measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// Name of the measurement.
    pub what: String,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// Median of the repeats.
    pub median: f64,
    /// Least of the repeats.
    pub min: f64,
    /// Greatest of the repeats.
    pub max: f64,
    /// Share of a limit of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<LimitShare>,
}

/// Share of a limit of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LimitShare {
    /// Name of the limit.
    pub of: &'static str,
    /// Median of the shares of all repeats.
    pub median: f64,
}

impl Measurement {
    /// Measurement of at least one repeat.
    pub(super) fn new(what: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        let sorted = sorted(values);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        Self { what: what.into(), unit, median: quantile(&sorted, 0.5), min, max, share: None }
    }

    /// The same with the share of a limit that each repeat reached.
    pub(super) fn with_share(self, of: &'static str, shares: Vec<f64>) -> Self {
        Self { share: Some(LimitShare { of, median: quantile(&sorted(shares), 0.5) }), ..self }
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_with_their_range() {
        let three =
            Measurement::new("x", "s", vec![3.0, 1.0, 2.0]).with_share("y", vec![0.5, 0.25, 0.375, 0.125]);
        assert_eq!((three.min, three.median, three.max), (1.0, 2.0, 3.0));
        assert_eq!(three.share, Some(LimitShare { of: "y", median: 0.3125 }));
        assert_eq!(Measurement::new("x", "s", vec![1.0, 4.0]).median, 2.5);
    }
}
