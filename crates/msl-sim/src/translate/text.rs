//! Finding words and brackets in source text.

pub(super) fn is_word(c: u8) -> bool {
    c == b'_' || c.is_ascii_alphanumeric()
}

/// Next whole-word occurrence of `word` at or after `from`.
pub(super) fn find_word(text: &str, word: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    text[from..].match_indices(word).map(|(i, _)| from + i).find(|start| {
        let end = start + word.len();
        (*start == 0 || !is_word(bytes[start - 1])) && bytes.get(end).is_none_or(|c| !is_word(*c))
    })
}

/// Index just past the bracket that closes the one at `open`.
pub(super) fn close(text: &str, open: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let (opening, closing) = match bytes.get(open)? {
        b'(' => (b'(', b')'),
        b'[' => (b'[', b']'),
        b'{' => (b'{', b'}'),
        b'<' => (b'<', b'>'),
        _ => return None,
    };
    let mut depth = 0;
    for (i, c) in bytes.iter().enumerate().skip(open) {
        if *c == opening {
            depth += 1;
        } else if *c == closing {
            depth -= 1;
            if depth == 0 {
                return Some(i + 1);
            }
        }
    }
    None
}

/// Parts between commas that stand outside of all brackets.
pub(super) fn split_top(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, vec![]);
    for (i, c) in text.bytes().enumerate() {
        match c {
            b'(' | b'[' | b'<' | b'{' => depth += 1,
            b')' | b']' | b'>' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    if !text[from..].trim().is_empty() {
        parts.push(&text[from..]);
    }
    parts
}

/// Without the preprocessor's line marks.
pub(super) fn strip_line_marks(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n")
}
