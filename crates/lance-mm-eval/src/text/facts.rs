//! Numbers, plates and names with digits that an answer states.

/// Words that make a number larger.
const FACTORS: [&str; 4] = ["thousand", "million", "billion", "trillion"];

/// Numbers, plates and words with digits of an answer, sorted, each as often as it occurs: lower case, without spaces,
/// commas and `$`. In order, each taking its text away from the next:
///
/// 1. runs of two or more words of capitals and digits, each at least two long, one space between them, the
///    first with both a capital and a digit, joined: `BX62 BFY`;
/// 2. words with both letters and digits: `Bx62bfy`, `4th`;
/// 3. numbers with inner `.` or `,`, a `%` after them, a following thousand, million, billion or trillion.
pub fn facts(text: &str) -> Vec<String> {
    let mut text: Vec<char> = text.chars().collect();
    let mut facts = Vec::new();
    for find in [plates, mixed_words, numbers] {
        let found = find(&text);
        for (start, end) in found {
            let fact: String = text[start..end].iter().filter(|c| !c.is_whitespace() && **c != ',').collect();
            facts.push(fact.to_lowercase());
            // No letter, digit or space: what was apart stays apart.
            text[start..end].fill('\0');
        }
    }
    facts.sort();
    facts
}

/// Places of all words: runs of letters and digits.
fn words(text: &[char]) -> Vec<(usize, usize)> {
    let mut words: Vec<(usize, usize)> = Vec::new();
    for (i, c) in text.iter().enumerate() {
        match words.last_mut() {
            _ if !c.is_alphanumeric() => {}
            Some((_, end)) if *end == i => *end = i + 1,
            _ => words.push((i, i + 1)),
        }
    }
    words
}

fn plates(text: &[char]) -> Vec<(usize, usize)> {
    let words = words(text);
    let part = |(start, end): (usize, usize)| {
        end - start >= 2 && text[start..end].iter().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    };
    let mut found = Vec::new();
    let mut i = 0;
    while i < words.len() {
        let (start, mut end) = words[i];
        i += 1;
        let first = &text[start..end];
        let begins = part((start, end))
            && first.iter().any(char::is_ascii_uppercase)
            && first.iter().any(char::is_ascii_digit);
        if !begins {
            continue;
        }
        let before = end;
        while i < words.len() && words[i].0 == end + 1 && text[end] == ' ' && part(words[i]) {
            end = words[i].1;
            i += 1;
        }
        if end > before {
            found.push((start, end));
        }
    }
    found
}

fn mixed_words(text: &[char]) -> Vec<(usize, usize)> {
    let mixed = |(start, end): &(usize, usize)| {
        let word = &text[*start..*end];
        word.iter().any(|c| c.is_alphabetic()) && word.iter().any(char::is_ascii_digit)
    };
    words(text).into_iter().filter(mixed).collect()
}

fn numbers(text: &[char]) -> Vec<(usize, usize)> {
    let digit = |i: usize| text.get(i).is_some_and(char::is_ascii_digit);
    let mut found = Vec::new();
    let mut i = 0;
    while i < text.len() {
        if !digit(i) {
            i += 1;
            continue;
        }
        let start = i;
        while digit(i) || (matches!(text.get(i), Some('.' | ',')) && digit(i + 1)) {
            i += 1;
        }
        if text.get(i) == Some(&'%') {
            i += 1;
        }
        i = factor(text, i).unwrap_or(i);
        found.push((start, i));
    }
    found
}

/// Where a factor ends that follows after white space or at once.
fn factor(text: &[char], from: usize) -> Option<usize> {
    let start = from + text[from..].iter().take_while(|c| c.is_whitespace()).count();
    let length = text[start..].iter().take_while(|c| c.is_alphanumeric()).count();
    let word: String = text[start..start + length].iter().collect();
    FACTORS.contains(&word.to_lowercase().as_str()).then_some(start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_stated_is_found() {
        for (text, expected) in [
            ("", &[][..]),
            ("Yes, the blue one.", &[]),
            ("29%", &["29%"]),
            ("The plate is BX62 BFY.", &["bx62bfy"]),
            ("AB12 CD 34 X", &["ab12cd34"]),
            ("BX62  BFY", &["bx62"]),
            ("ABC 123", &["123"]),
            ("Bx62bfy", &["bx62bfy"]),
            ("about $1.3 billion.", &["1.3billion"]),
            ("$1.8 millionHG8.", &["1.8", "millionhg8"]),
            ("1,250 people in 1998, 4th time", &["1250", "1998", "4th"]),
            ("3 millions", &["3"]),
            ("2.", &["2"]),
            ("5, 5 and 5", &["5", "5", "5"]),
            ("1.5\u{a0}Million", &["1.5million"]),
        ] {
            assert_eq!(facts(text), expected, "{text}");
        }
    }
}
