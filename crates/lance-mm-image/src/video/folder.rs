//! Folders of images as videos: files in the order of the numbers in their names.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::sample_indices;
use crate::error::{Error, Result, VideoProblem};

/// Files of a folder that [`Clip::from_dir`](super::Clip::from_dir) reads: those of the frames that the model sees.
///
/// # Errors
///
/// A folder that cannot be read, one without files; as [`sample_indices`].
pub fn sampled_files(dir: &Path, fps: f64) -> Result<Vec<PathBuf>> {
    let files = files_in_order(dir)?;
    if files.is_empty() {
        return Err(Error::from(VideoProblem::NoFrames).named(dir.display()));
    }
    let indices = sample_indices(files.len(), fps).map_err(|error| error.named(dir.display()))?;
    Ok(indices.into_iter().map(|i| files[i].clone()).collect())
}

/// The visible files of a folder, sorted by name with numbers by value.
fn files_in_order(dir: &Path) -> Result<Vec<PathBuf>> {
    let error = |source| Error::Io { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && !name.starts_with('.') {
            files.push((name, path));
        }
    }
    files.sort_by(|a, b| natural(&a.0, &b.0).then_with(|| a.cmp(b)));
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Compares names so that runs of digits count as numbers, of any length.
fn natural(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() && !b.is_empty() {
        let ((run_a, rest_a), (run_b, rest_b)) = (first_run(a), first_run(b));
        let order = match (number(run_a), number(run_b)) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => run_a.cmp(run_b),
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    a.len().cmp(&b.len())
}

/// Splits off the leading digits, or everything before the first digit.
fn first_run(text: &str) -> (&str, &str) {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    text.split_at(end)
}

/// A run of digits in a form that orders by value: more digits, then larger digits.
fn number(run: &str) -> Option<(usize, &str)> {
    let digits = run.trim_start_matches('0');
    run.starts_with(|c: char| c.is_ascii_digit()).then_some((digits.len(), digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_by_their_numbers() {
        let ordered = [
            "2.png",
            "010.png",
            "11.png",
            "a",
            "a1",
            "a2b1",
            "a2b10",
            "a10",
            "b",
            "b99999999999999999999999",
        ];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(natural(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(natural("01", "1"), Ordering::Equal);
    }
}
