//! Bytes of every token id.

use lance_mm_tensor::metadata::shortened;
use tokenizers::models::bpe::Vocab;

/// Ids from here on are taken for damage: a table has one entry for every id below the largest. No configuration has a
/// larger `vocab_size`.
pub(super) const MAX_IDS: u32 = 1 << 20;

/// Characters of a token that a message repeats.
pub(super) const MAX_SHOWN: usize = 60;

/// The bytes of every token in one buffer, cut by offsets.
#[derive(Debug)]
pub(super) struct ByteTable {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[offsets[id]..offsets[id + 1]]`.
    offsets: Vec<u32>,
}

impl ByteTable {
    /// Undoes the byte-level alphabet for the vocabulary; added tokens are their own text.
    pub(super) fn new<'a>(
        vocab: &'a Vocab,
        added: impl Iterator<Item = (u32, &'a str)>,
    ) -> Result<Self, String> {
        let base = vocab.iter().map(|(token, &id)| (id, token.as_str(), true));
        let added = added.map(|(id, content)| (id, content, false));
        let mut tokens: Vec<(u32, &str, bool)> = base.chain(added).collect();
        tokens.sort_unstable();
        check_ids(&tokens)?;
        // A token of the vocabulary that is an added token as well counts as added.
        tokens.dedup_by_key(|(id, ..)| *id);

        let mut table = Self { bytes: Vec::new(), offsets: vec![0] };
        for (id, token, is_spelled) in tokens {
            let start = table.end()?;
            table.offsets.resize(id as usize + 1, start);
            if !is_spelled || !push_decoded(&mut table.bytes, token) {
                table.bytes.extend_from_slice(token.as_bytes());
            }
            let end = table.end()?;
            table.offsets.push(end);
        }
        table.bytes.shrink_to_fit();
        table.offsets.shrink_to_fit();
        Ok(table)
    }

    fn end(&self) -> Result<u32, String> {
        u32::try_from(self.bytes.len()).map_err(|_| "vocabulary: more than 4 GiB of text".into())
    }

    /// The bytes of token `id`, empty for an id between or behind the known ones.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.offsets.get(id..).and_then(|rest| rest.first_chunk()) {
            Some(&[start, end]) => &self.bytes[start as usize..end as usize],
            None => &[],
        }
    }

    /// One more than the largest id.
    pub(super) fn limit(&self) -> u32 {
        u32::try_from(self.offsets.len() - 1).expect("ids are below MAX_IDS")
    }
}

/// Refuses an id that is too large or given twice; `tokens` is sorted.
fn check_ids(tokens: &[(u32, &str, bool)]) -> Result<(), String> {
    if let Some((id, token, _)) = tokens.last().filter(|(id, ..)| *id >= MAX_IDS) {
        let token = shortened(token, MAX_SHOWN);
        return Err(format!("token {token:?}: expected an id below {MAX_IDS}, found {id}"));
    }
    match tokens.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
        Some(pair) => {
            let [first, second] = [0, 1].map(|i| shortened(pair[i].1, MAX_SHOWN));
            Err(format!("id {}: expected one token, found {first:?} and {second:?}", pair[0].0))
        }
        None => Ok(()),
    }
}

/// Appends the bytes that `token` spells in the byte-level alphabet. A token with a character
/// from outside that alphabet spells none: then nothing is appended and the answer is false.
fn push_decoded(bytes: &mut Vec<u8>, token: &str) -> bool {
    let start = bytes.len();
    for c in token.chars() {
        let Some(byte) = byte_of(c) else {
            bytes.truncate(start);
            return false;
        };
        bytes.push(byte);
    }
    true
}

/// The byte that `c` stands for in GPT-2's alphabet: printable Latin-1 stands for itself, the
/// remaining bytes follow from U+0100 on in rising order.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// All 256 characters of the byte-level alphabet.
pub(super) fn alphabet() -> impl Iterator<Item = char> {
    ('\0'..='\u{143}').filter(|&c| byte_of(c).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_covers_every_byte_once() {
        let mut bytes: Vec<u8> = alphabet().filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        for (c, byte) in [('a', b'a'), ('Ġ', b' '), ('Ċ', b'\n'), ('ð', 0xf0), ('ł', 0xa0), ('Ń', 0xad)]
        {
            assert_eq!(byte_of(c), Some(byte), "{c}");
        }
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('中'), None);
    }

    #[test]
    fn ids_may_have_holes() {
        let vocab: Vocab = [("Ġa".into(), 1), ("中".into(), 4)].into_iter().collect();
        let table = ByteTable::new(&vocab, std::iter::empty()).unwrap();
        assert_eq!(table.limit(), 5);
        let tokens: Vec<&[u8]> = (0..7).map(|id| table.get(id)).collect();
        let expected: [&[u8]; 7] = [b"", b" a", b"", b"", "中".as_bytes(), b"", b""];
        assert_eq!(tokens, expected);
    }

    #[test]
    fn empty_vocabulary_knows_nothing() {
        let table = ByteTable::new(&Vocab::default(), std::iter::empty()).unwrap();
        assert_eq!((table.limit(), table.get(0), table.get(u32::MAX)), (0, &[][..], &[][..]));
    }

    #[test]
    fn refuses_ids_given_twice_or_absurdly_large() {
        for (other, id, message) in [
            ("b", 3, "id 3: expected one token, found \"a\" and \"b\""),
            ("b", u32::MAX, "token \"b\": expected an id below 1048576, found 4294967295"),
        ] {
            let vocab: Vocab = [("a".into(), 3), (other.into(), id)].into_iter().collect();
            assert_eq!(ByteTable::new(&vocab, std::iter::empty()).unwrap_err(), message);
        }
    }
}
