//! The error of this crate and of the crates that build networks on it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of weights and of operations on them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation that failed in candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file that could not be opened or mapped.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file with invalid content.
    #[error("{file}: {message}")]
    File {
        /// The file, or the name given to bytes in memory.
        file: String,
        /// Expected and found.
        message: String,
    },
    /// Missing, misshapen or damaged tensors: all that one load found.
    #[error("{0}")]
    Weights(Problems),
    /// A setting out of range: a configuration field, bits, group size, mode.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: String,
        /// Legal values.
        expected: String,
        /// The illegal value.
        found: String,
    },
    /// An input of the wrong shape, dtype or length.
    #[error("{name}: expected {expected}, found {found}")]
    Input {
        /// The input.
        name: &'static str,
        /// The shape, dtype or length that fits.
        expected: String,
        /// That of the input.
        found: String,
    },
    /// A value that is NaN or infinite, where an output would be made of it: damaged weights, or numbers that overflowed.
    #[error("{place}: expected finite numbers, found {found}")]
    NotFinite {
        /// Network or stage, and the place in it.
        place: String,
        /// The value.
        found: f32,
    },
    /// A computation ended because its [`StopFlag`](crate::StopFlag) was set.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn setting(
        name: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        let (name, found) = (name.into(), found.to_string());
        Self::Setting {
            name: shortened(&name, 2 * MAX_NAME).into_owned(),
            expected: expected.to_string(),
            found: shortened(&found, MAX_NAME).into_owned(),
        }
    }

    /// An input of the wrong shape, dtype or length.
    pub fn input(name: &'static str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self::Input { name, expected: expected.to_string(), found: found.to_string() }
    }
}

/// One tensor that a network cannot load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Full name of the tensor.
    pub tensor: String,
    /// The problem, without the tensor's name: `missing, expected [2]`, `expected [2, 3], found [3, 2]`.
    pub what: String,
    /// The expected shape, if the tensor is missing.
    pub missing: Option<Vec<usize>>,
}

/// The problems of one load, printed grouped (`layers.{0..35}.x.weight: missing (36)`), 20 groups at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The files that were read.
    pub files: String,
    /// Every problem, in the order found.
    pub list: Vec<Problem>,
}

const MAX_GROUPS: usize = 20;
/// Characters of a tensor's name that a message repeats.
pub(crate) const MAX_NAME: usize = 100;
/// Characters of the numbers of a group, and of what is wrong with it: 20 groups stay below 4,000.
const MAX_PART: usize = 80;

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: Vec<(String, &str, Vec<usize>)> = Vec::new();
        let mut index: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for problem in &self.list {
            let (pattern, number) = split_number(&problem.tensor);
            let at = *index.entry((pattern.clone(), &problem.what)).or_insert_with(|| {
                groups.push((pattern, &problem.what, Vec::new()));
                groups.len() - 1
            });
            groups[at].2.extend(number);
        }
        write!(f, "{}: {} problem", self.files, self.list.len())?;
        if self.list.len() != 1 {
            f.write_str("s")?;
        }
        for (i, (pattern, what, numbers)) in groups.iter().take(MAX_GROUPS).enumerate() {
            f.write_str(if i == 0 { ": " } else { "; " })?;
            let (pattern, what) = (shortened(pattern, MAX_NAME), shortened(what, MAX_PART));
            match numbers.len() {
                0 => write!(f, "{pattern}: {what}")?,
                1 => write!(f, "{}: {what}", pattern.replacen("{}", &numbers[0].to_string(), 1))?,
                n => {
                    let ranges = ranges(numbers);
                    let ranges = shortened(&ranges, MAX_PART);
                    write!(f, "{}: {what} ({n})", pattern.replacen("{}", &ranges, 1))?;
                }
            }
        }
        match groups.len().saturating_sub(MAX_GROUPS) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// `layers.12.mlp.up_proj` becomes `layers.{}.mlp.up_proj` and 12.
fn split_number(name: &str) -> (String, Option<usize>) {
    let mut number = None;
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse() {
            Ok(n) if number.is_none() => {
                number = Some(n);
                "{}"
            }
            _ => part,
        })
        .collect();
    (parts.join("."), number)
}

/// `{0..3,7}` for 0, 1, 2, 3, 7.
fn ranges(numbers: &[usize]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs: Vec<String> = sorted
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| match run {
            [one] => one.to_string(),
            _ => format!("{}..{}", run[0], run[run.len() - 1]),
        })
        .collect();
    format!("{{{}}}", runs.join(","))
}

/// The text, or its beginning and `..` where it has more than `max` characters: for names and values from files in
/// messages.
pub fn shortened(text: &str, max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max) {
        Some((end, _)) => Cow::Owned(format!("{}..", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(tensor: &str, what: &str) -> Problem {
        Problem { tensor: tensor.into(), what: what.into(), missing: None }
    }

    #[test]
    fn problems_are_grouped_by_layer() {
        let mut list: Vec<Problem> =
            (0..36).map(|i| problem(&format!("layers.{i}.self_attn.q_norm.weight"), "missing")).collect();
        list.push(problem("layers.3.mlp.down_proj.weight", "expected [2048, 11008], found [2048, 8192]"));
        list.push(problem("norm.weight", "missing"));
        let text = Problems { files: "model.safetensors".into(), list }.to_string();
        assert_eq!(
            text,
            "model.safetensors: 38 problems: layers.{0..35}.self_attn.q_norm.weight: missing (36); \
             layers.3.mlp.down_proj.weight: expected [2048, 11008], found [2048, 8192]; norm.weight: missing"
        );
    }

    #[test]
    fn at_most_twenty_groups_are_printed() {
        let list = (0..30).map(|i| problem(&format!("t{i}"), "missing")).collect();
        let text = Problems { files: "f".into(), list }.to_string();
        assert!(text.ends_with("; t19: missing; and 10 more"), "{text}");
    }

    #[test]
    fn runs_of_numbers() {
        assert_eq!(ranges(&[5, 1, 2, 3]), "{1..3,5}");
    }
}
