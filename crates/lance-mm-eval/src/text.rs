//! Similarity of two answers.

mod facts;

use serde::Serialize;

pub use facts::facts;

/// An answer against the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Equal but for white space at the ends.
    pub exact: bool,
    /// `1 − Levenshtein distance / length of the longer`, in Unicode scalars; 1 for two empty ones.
    pub char_similarity: f64,
    /// Words in common over words in either, lower-cased, split at white space; 1 for two empty ones.
    pub word_jaccard: f64,
    /// Length over the reference's, in Unicode scalars; an empty reference counts as one long.
    pub length_ratio: f64,
    /// Whether [`facts()`] finds the same in both, as often.
    pub facts_equal: bool,
}

impl Agreement {
    /// Compares an answer with the reference's.
    pub fn new(reference: &str, candidate: &str) -> Self {
        let (reference, candidate) = (reference.trim(), candidate.trim());
        let length = |text: &str| text.chars().count();
        Self {
            exact: reference == candidate,
            char_similarity: char_similarity(reference, candidate),
            word_jaccard: word_jaccard(reference, candidate),
            length_ratio: match (length(reference), length(candidate)) {
                (0, 0) => 1.0,
                (of, n) => n as f64 / of.max(1) as f64,
            },
            facts_equal: facts(reference) == facts(candidate),
        }
    }
}

/// `1 − Levenshtein distance / length of the longer`.
fn char_similarity(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    match a.len().max(b.len()) {
        0 => 1.0,
        longer => 1.0 - levenshtein(&a, &b) as f64 / longer as f64,
    }
}

/// Insertions, deletions and replacements that make one of the other.
fn levenshtein(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn word_jaccard(a: &str, b: &str) -> f64 {
    let words = |text: &str| -> std::collections::BTreeSet<String> {
        text.to_lowercase().split_whitespace().map(str::to_owned).collect()
    };
    let (a, b) = (words(a), words(b));
    match a.union(&b).count() {
        0 => 1.0,
        either => a.intersection(&b).count() as f64 / either as f64,
    }
}

/// Whether an answer contains what is expected, of both only lower-case letters, digits, `.` and `%`, and no
/// final `.`. Nothing is contained in everything.
pub fn contains_expected(answer: &str, expected: &str) -> bool {
    normalised(answer).contains(&normalised(expected))
}

fn normalised(text: &str) -> String {
    let keep = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '%');
    let mut text: String = text.to_lowercase().chars().filter(keep).collect();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// Most words of an expected answer that has to occur word for word.
const SHORT: usize = 3;

/// Whether an answer says what is expected, as far as a rule can tell: with [`facts()`] in the expected answer, if both
/// have the same; without, containing it, yes; another short answer, no; another description, `None`.
pub fn says(answer: &str, expected: &str) -> Option<bool> {
    if answer.trim() == expected.trim() {
        return Some(true);
    }
    let facts_expected = facts(expected);
    if !facts_expected.is_empty() {
        return Some(facts(answer) == facts_expected);
    }
    if contains_expected(answer, expected) && !normalised(expected).is_empty() {
        return Some(true);
    }
    (expected.split_whitespace().count() <= SHORT).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let of =
            |a: &str, b: &str| levenshtein(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
            ("naïve", "naive", 1),
            ("日本", "日本語", 1),
        ] {
            assert_eq!(of(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn answers_compared() {
        let same = Agreement::new(" Yes\n", "Yes");
        assert_eq!(
            same,
            Agreement {
                exact: true,
                char_similarity: 1.0,
                word_jaccard: 1.0,
                length_ratio: 1.0,
                facts_equal: true
            }
        );
        let other = Agreement::new("the red bar", "The Red house");
        assert_eq!((other.exact, other.word_jaccard, other.facts_equal), (false, 0.5, true));
        assert_eq!(Agreement::new("", "abc").length_ratio, 3.0);
        assert_eq!(Agreement::new("", "").length_ratio, 1.0);
    }

    #[test]
    fn expected_strings() {
        for (expected, answer, found) in [
            ("BX62 BFY", "Bx62bfy", true),
            ("BX62 BFY", "Byfky", false),
            ("29%", "It is 29% of them.", true),
            ("$1.3 billion", "about 1.3 billion.", true),
            ("$1.3 billion", "1.8 million dollars", false),
            ("29%", "43", false),
            ("Yes.", "yes", true),
        ] {
            assert_eq!(contains_expected(answer, expected), found, "{expected} in {answer}");
        }
    }

    #[test]
    fn the_six_answers() {
        let colosseum = "An ancient amphitheatre with arches in evening light";
        for (expected, answer, said) in [
            ("Yes, the blue one", "Yes, the blue one", Some(true)),
            ("Yes", "Yes, the blue one.", Some(true)),
            ("Yes", "No", Some(false)),
            ("29%", "29%", Some(true)),
            ("29%", "43", Some(false)),
            ("BX62 BFY", "Bx62bfy", Some(true)),
            ("BX62 BFY", "Byfky", Some(false)),
            ("$1.3 billion", "1.3 billion", Some(true)),
            ("$1.3 billion", "1.8 million dollars", Some(false)),
            ("$1.3 billion", "198%", Some(false)),
            (colosseum, "built in the 4th century", None),
        ] {
            assert_eq!(says(answer, expected), said, "{answer}");
        }
    }
}
