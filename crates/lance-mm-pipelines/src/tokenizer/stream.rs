//! Ids to text while they are generated.

use super::Tokenizer;

/// Turns generated ids into text, one at a time.
///
/// A token is bytes, not text: it may end inside a character that the next one completes. Such
/// a tail is held back until it is complete or known to be invalid. Special tokens add nothing
/// and leave the tail alone, so all pieces joined are [`Tokenizer::decode`] with `skip_special`.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The start of one character, at most three bytes, between two calls.
    tail: Vec<u8>,
}

impl<'a> TextStream<'a> {
    /// A stream at the start of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tail: Vec::new() }
    }

    /// The text that becomes certain with token `id`; often empty.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return String::new();
        }
        self.tail.extend_from_slice(self.tokenizer.token_bytes(id));
        let text = certain_text(&self.tail);
        self.tail.drain(..text.n_bytes);
        text.text
    }

    /// Ends the text: one U+FFFD if it stopped inside a character, else nothing.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.tail).into_owned();
        self.tail.clear();
        text
    }
}

struct Certain {
    text: String,
    /// How many bytes the text stands for.
    n_bytes: usize,
}

/// Reads `bytes` as UTF-8 with one U+FFFD for every maximal invalid sequence, up to a character
/// that later bytes may still complete.
fn certain_text(bytes: &[u8]) -> Certain {
    let mut text = String::new();
    let mut n_bytes = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        n_bytes += chunk.valid().len();
        let invalid = chunk.invalid();
        let is_last = n_bytes + invalid.len() == bytes.len();
        if invalid.is_empty() || (is_last && is_incomplete(invalid)) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        n_bytes += invalid.len();
    }
    Certain { text, n_bytes }
}

fn is_incomplete(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SPECIAL, tiny};
    use super::*;

    /// Ids of single bytes in the tiny vocabulary, where byte `b` has id `b`.
    fn pieces(ids: &[u32]) -> Vec<String> {
        let tokenizer = tiny();
        let mut stream = TextStream::new(&tokenizer);
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        pieces.push(stream.finish());
        assert_eq!(pieces.concat(), tokenizer.decode(ids, true));
        assert_eq!(stream.finish(), "", "a second flush");
        pieces
    }

    #[test]
    fn holds_back_what_is_not_yet_certain() {
        let cases: [(&[u32], &[&str]); 9] = [
            (&[], &[""]),
            (&[0x61, 0x62], &["a", "b", ""]),
            (&[0xf0, 0x9f, 0x98, 0x80], &["", "", "", "😀", ""]),
            (&[0xf0, 0x9f, 0x98], &["", "", "", "\u{fffd}"]),
            (&[0xff, 0x61], &["\u{fffd}", "a", ""]),
            (&[0xe4, 0xb8, 0x61], &["", "", "\u{fffd}a", ""]),
            (&[0xe4, 0xe4, 0xb8, 0xad], &["", "\u{fffd}", "", "中", ""]),
            // E0 must be followed by A0..BF, so two invalid sequences.
            (&[0xe0, 0x80, 0x61], &["", "\u{fffd}\u{fffd}", "a", ""]),
            (&[0xe4, SPECIAL, 0xb8, 0xad], &["", "", "", "中", ""]),
        ];
        for (ids, expected) in cases {
            assert_eq!(pieces(ids), expected, "{ids:x?}");
        }
    }

    #[test]
    fn joined_pieces_are_the_whole_text_for_any_bytes() {
        let mut state = 1_u32;
        let ids: Vec<u32> = (0..4000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Mostly lead and continuation bytes, so that sequences of every kind occur.
                0x60 + (state >> 24) * 0xa0 / 0x100
            })
            .collect();
        for ids in ids.chunks(7) {
            pieces(ids);
        }
    }
}
