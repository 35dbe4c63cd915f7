//! Text from outside (names of files and tensors, configurations, answers) in a form that cannot command a terminal.

use std::borrow::Cow;

/// Most characters of a line on standard error.
const MAX_LINE: usize = 4000;
/// Of these, room for `error: `, colours and the count of what is left out.
const ROOM: usize = 100;

/// Whether a character can command a terminal or reorder text: C0 and C1 controls, DEL, line separators, bidirectional
/// embeddings, overrides and isolates.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text with such characters written as in Rust, `\u{1b}`; line feeds and tabs stay.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'), |out, c| out.extend(c.escape_default()))
}

/// As [`escaped`], line feeds and tabs included: for a name within a line.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe, |out, c| out.extend(c.escape_default()))
}

/// JSON with such characters as `\u` escapes, which serde_json writes for C0 alone. Those that it has left outside of
/// strings are line feeds.
pub(super) fn json(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && c != '\n', |out, c| out.push_str(&format!("\\u{:04x}", c as u32)))
}

fn escape(text: &str, chosen: impl Fn(char) -> bool, write: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(&chosen) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if chosen(c) { write(&mut out, c) } else { out.push(c) }
    }
    out.into()
}

/// A line that is not too long to be read: of a longer one the beginning, a count and the end.
pub(crate) fn elided(line: &str) -> Cow<'_, str> {
    let count = line.chars().count();
    if count <= MAX_LINE - ROOM {
        return line.into();
    }
    let kept = (MAX_LINE - ROOM) / 2;
    let at = |index: usize| line.char_indices().nth(index).map_or(line.len(), |(at, _)| at);
    let (head, tail) = (&line[..at(kept)], &line[at(count - kept)..]);
    format!("{head} [{} characters left out] {tail}", count - 2 * kept).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_a_terminal_is_escaped() {
        let cases = [
            ("plain é 漢 👩‍👩‍👧 \\", "plain é 漢 👩‍👩‍👧 \\"),
            ("\x1b]0;T\x07\x1b[31m", "\\u{1b}]0;T\\u{7}\\u{1b}[31m"),
            ("a\rb\x08\x7f", "a\\rb\\u{8}\\u{7f}"),
            ("\u{80}\u{9b}31m\u{9f}", "\\u{80}\\u{9b}31m\\u{9f}"),
            ("\u{202a}\u{202e}\u{2066}\u{2069}", "\\u{202a}\\u{202e}\\u{2066}\\u{2069}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
        ];
        for (text, expected) in cases {
            assert_eq!((escaped(text), one_line(text)), (expected.into(), expected.into()));
            let parsed: String = serde_json::from_str(&json(&serde_json::to_string(text).unwrap())).unwrap();
            assert_eq!(parsed, text);
            assert!(!json(&serde_json::to_string(text).unwrap()).contains(is_unsafe));
        }
        assert_eq!((escaped("a\n\tb"), one_line("a\n\tb")), ("a\n\tb".into(), "a\\n\\tb".into()));
        assert_eq!(json("{\n  \"a\": \"\u{9b}\"\n}"), "{\n  \"a\": \"\\u009b\"\n}");
    }

    #[test]
    fn long_lines_lose_their_middle() {
        assert_eq!(elided("short"), "short");
        let long = format!("begin{}end", "é".repeat(300_000));
        let line = elided(&long);
        assert!(line.chars().count() <= MAX_LINE - ROOM + 40, "{}", line.chars().count());
        assert!(line.starts_with("beginé") && line.ends_with("éend"));
        assert!(line.contains(" [296108 characters left out] "), "{line}");
    }
}
