//! Cutting a stream of text at a stop string.

use crate::error::{Error, Result};

/// Looks for stop strings in text that arrives in pieces, and lets through what is certainly
/// not part of one.
///
/// The match that ends first wins, and of those that end together the longest. Where the text
/// is cut into pieces therefore makes no difference.
#[derive(Clone, Debug)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// The longest end of the text so far that may still become a stop string.
    held: String,
    stopped: bool,
}

/// Result of scanning a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Text that is safe to show.
    pub text: String,
    /// Whether a stop string has been found: nothing comes after this.
    pub stopped: bool,
}

impl StopStrings {
    /// A search for any of `stops`; with none, all text passes at once.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if a stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Option {
                name: "stop",
                expected: "strings of at least one character".into(),
                found: "an empty one".into(),
            });
        }
        let patterns = stops.into_iter().map(Pattern::new).collect();
        Ok(Self { patterns, held: String::new(), stopped: false })
    }

    /// Takes the next piece of the text. Text from a stop string on is dropped.
    pub fn push(&mut self, piece: &str) -> Scan {
        if self.stopped {
            return Scan { text: String::new(), stopped: true };
        }
        let n_before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            let matched = self.patterns.iter_mut().filter_map(|p| p.step(byte)).max();
            if let Some(n_matched) = matched {
                self.held.truncate(n_before + i + 1 - n_matched);
                self.stopped = true;
                return Scan { text: std::mem::take(&mut self.held), stopped: true };
            }
        }
        // A pattern starts and a piece ends with a whole character, so this is a boundary.
        let n_held = self.patterns.iter().map(|p| p.n_matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - n_held);
        Scan { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Ends the text: what was held back has become no stop string.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.n_matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}

/// One stop string and how much of it the text so far ends with (Knuth, Morris and Pratt).
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For every prefix, the length of its longest proper end that is a prefix too.
    fallback: Vec<usize>,
    n_matched: usize,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let mut fallback = vec![0; bytes.len()];
        for i in 1..bytes.len() {
            fallback[i] = extend(&bytes, &fallback, fallback[i - 1], bytes[i]);
        }
        Self { bytes, fallback, n_matched: 0 }
    }

    /// Takes one byte; the length of the pattern if that completes it.
    fn step(&mut self, byte: u8) -> Option<usize> {
        self.n_matched = extend(&self.bytes, &self.fallback, self.n_matched, byte);
        (self.n_matched == self.bytes.len()).then_some(self.n_matched)
    }
}

/// The longest prefix of `pattern` that the text ends with after `byte`, given that before it
/// the longest was `n_matched` bytes, not the whole pattern.
fn extend(pattern: &[u8], fallback: &[usize], mut n_matched: usize, byte: u8) -> usize {
    while n_matched > 0 && pattern[n_matched] != byte {
        n_matched = fallback[n_matched - 1];
    }
    if pattern[n_matched] == byte { n_matched + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(|s| (*s).into()).collect()).unwrap()
    }

    /// Text that every piece lets through, and last the flush.
    fn scan(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut scanner = stops(stop);
        let mut stopped = false;
        let mut texts = Vec::new();
        for piece in pieces {
            let scan = scanner.push(piece);
            assert!(!stopped || (scan.stopped && scan.text.is_empty()), "text after a stop");
            stopped = scan.stopped;
            texts.push(scan.text);
        }
        texts.push(scanner.finish());
        (texts, stopped)
    }

    #[test]
    fn lets_through_what_cannot_be_a_stop_string() {
        struct Case {
            stop: &'static [&'static str],
            pieces: &'static [&'static str],
            texts: &'static [&'static str],
            stopped: bool,
        }
        let case = |stop, pieces, texts, stopped| Case { stop, pieces, texts, stopped };
        let cases = [
            case(&[], &["any", "thing"], &["any", "thing", ""], false),
            case(&["END"], &["a E", "N", "D b", "c"], &["a ", "", "", "", ""], true),
            case(&["END"], &["a E", "N", "E", "x"], &["a ", "", "EN", "Ex", ""], false),
            case(&["END"], &["a EN"], &["a ", "EN"], false),
            case(&["END"], &["ENEND"], &["EN", ""], true),
            case(&["aab"], &["a", "a", "a", "b"], &["", "", "a", "", ""], true),
            case(&["。\n"], &["好。", "x。", "\n"], &["好", "。x", "", ""], true),
            // The second character shares its first two bytes with the stop string's.
            case(&["中"], &["丁", "中"], &["丁", "", ""], true),
            case(&["中丁"], &["中中", "中x"], &["中", "中中x", ""], false),
            // Ending first beats starting first; ending together, the longest wins.
            case(&["abcd", "bc"], &["xabcd"], &["xa", ""], true),
            case(&["bc", "abc"], &["xabc"], &["x", ""], true),
            case(&["x", "ab"], &["a", "", "x"], &["", "", "a", ""], true),
        ];
        for Case { stop, pieces, texts, stopped } in cases {
            let (found, found_stopped) = scan(stop, pieces);
            assert_eq!(
                (found, found_stopped),
                (texts.iter().map(|t| (*t).into()).collect(), stopped),
                "{stop:?} in {pieces:?}"
            );
        }
    }

    /// Every text of six letters over a small alphabet, cut in every way, against a search of
    /// every prefix of the text.
    #[test]
    fn cuts_make_no_difference() {
        let stop = ["aba", "éa", "bb"];
        for n in 0..3_usize.pow(6) {
            let letters: Vec<&str> = (0..6).map(|i| ["a", "b", "é"][n / 3_usize.pow(i) % 3]).collect();
            let expected = reference(&stop, &letters);
            for cuts in 0..1_u32 << 5 {
                let mut pieces = vec![String::new()];
                for (i, letter) in letters.iter().enumerate() {
                    if i > 0 && cuts >> (i - 1) & 1 == 1 {
                        pieces.push(String::new());
                    }
                    pieces.last_mut().unwrap().push_str(letter);
                }
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (texts, stopped) = scan(&stop, &pieces);
                assert_eq!((texts.concat(), stopped), expected, "{pieces:?}");
            }
        }
    }

    fn reference(stop: &[&str], letters: &[&str]) -> (String, bool) {
        let mut text = String::new();
        for letter in letters {
            text.push_str(letter);
            let ends = stop.iter().filter(|s| text.ends_with(*s)).map(|s| s.len()).max();
            if let Some(len) = ends {
                text.truncate(text.len() - len);
                return (text, true);
            }
        }
        (text, false)
    }

    #[test]
    fn empty_stop_string_is_an_error() {
        let error = StopStrings::new(vec!["a".into(), String::new()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "option stop: expected strings of at least one character, found an empty one"
        );
    }
}
