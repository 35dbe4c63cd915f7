//! Numbers as tables show them.

use lance_mm_eval::Decibels;

/// A share as `95.1 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Four significant digits, without an exponent where that is short.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if value == 0.0 => "0".to_owned(),
        _ if !value.is_finite() => value.to_string(),
        _ if !(1e-4..1e6).contains(&size) => format!("{value:.3e}"),
        _ => {
            let digits = (3 - size.log10().floor() as i32).max(0) as usize;
            format!("{value:.digits$}")
        }
    }
}

/// A ratio in dB.
pub(crate) fn decibels(value: Decibels) -> String {
    if value.0.is_finite() { format!("{:.1}", value.0) } else { value.to_string() }
}

/// Seconds as milliseconds.
pub(crate) fn millis(seconds: f64) -> String {
    format!("{:.1} ms", 1000.0 * seconds)
}

/// A number that may not be there.
pub(crate) fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

/// `yes`, `no`, or a dash where that cannot be told.
pub(crate) fn yes_no(value: Option<bool>) -> String {
    or_dash(value, |yes| if yes { "yes" } else { "no" }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (0.00048, "0.0004800"),
            (0.109_58, "0.1096"),
            (1.0, "1.000"),
            (12.345_6, "12.35"),
            (854.7, "854.7"),
            (123_456.7, "123457"),
            (1.23e-7, "1.230e-7"),
            (-2.5e9, "-2.500e9"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(short(value), expected);
        }
        assert_eq!(percent(0.951), "95.1 %");
        assert_eq!(decibels(Decibels(f64::INFINITY)), "inf");
        assert_eq!((yes_no(None), yes_no(Some(false))), ("–".into(), "no".into()));
    }
}
