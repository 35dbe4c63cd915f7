//! Errors relative to what they are an error of, and as decibels.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Sums of squares of an error and of its reference, in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Relative {
    error: f64,
    reference: f64,
}

impl Relative {
    /// Adds values pair by pair.
    ///
    /// # Panics
    /// When there are more of one than of the other.
    pub fn push(&mut self, reference: &[f32], found: &[f32]) {
        assert_eq!(reference.len(), found.len(), "one value for each reference");
        for (r, f) in reference.iter().zip(found) {
            let (r, f) = (f64::from(*r), f64::from(*f));
            self.error += (f - r).powi(2);
            self.reference += r.powi(2);
        }
    }

    /// `‖found − reference‖² / ‖reference‖²`: 0 when both are equal, also when both are zero.
    pub fn error(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.reference }
    }

    /// Signal to noise ratio, `−10 log10` of [`error`](Self::error): infinite without an error.
    pub fn snr(&self) -> Decibels {
        Decibels(-10.0 * self.error().log10())
    }
}

/// `{"relative_error": .., "snr_db": ..}`.
impl Serialize for Relative {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Relative", 2)?;
        s.serialize_field("relative_error", &self.error())?;
        s.serialize_field("snr_db", &self.snr())?;
        s.end()
    }
}

/// A ratio in dB. Infinite is a legal value, which JSON cannot write as a number: serialized it is the text
/// `inf` or `-inf`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Decibels(pub f64);

impl Serialize for Decibels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(self) }
    }
}

impl fmt::Display for Decibels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_finite() { write!(f, "{:.2}", self.0) } else { write!(f, "{}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reference: &[f32], found: &[f32]) -> Relative {
        let mut relative = Relative::default();
        relative.push(reference, found);
        relative
    }

    #[test]
    fn no_error_is_infinitely_good_and_never_nan() {
        for values in [&[0.0, 0.0][..], &[1.0, -2.0], &[]] {
            let equal = of(values, values);
            assert_eq!((equal.error(), equal.snr()), (0.0, Decibels(f64::INFINITY)));
        }
        assert_eq!(of(&[0.0], &[1.0]).snr(), Decibels(f64::NEG_INFINITY));
        assert_eq!(serde_json::to_string(&of(&[1.0], &[1.0]).snr()).unwrap(), "\"inf\"");
    }

    #[test]
    fn ten_percent_are_twenty_decibels() {
        let relative = of(&[3.0, 4.0], &[3.3, 4.4]);
        assert!((relative.error() - 0.01).abs() < 1e-8 && (relative.snr().0 - 20.0).abs() < 1e-5);
        assert_eq!(relative.snr().to_string(), "20.00");
    }
}
