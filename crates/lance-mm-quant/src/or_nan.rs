//! Numbers of reports that may not be finite.

use serde::{Deserialize, Deserializer};

/// A number of a report; JSON has `null` for one that is not finite.
pub(crate) fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
