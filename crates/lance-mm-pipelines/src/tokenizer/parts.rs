//! Vocabulary, merges and added tokens of a tokenizer, read from either set of files.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use lance_mm_tensor::metadata::{Bounded, Object, parse_json, shortened};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use super::bytes::{MAX_IDS, MAX_SHOWN, alphabet, byte_of};
use super::components::{self, Component, Kinds};
use super::{CONFIG_JSON, MERGES_TXT, VOCAB_JSON};

/// Qwen2.5's added tokens, numbered from the end of its vocabulary.
const ADDED: [&str; 22] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];
/// The first so many of [`ADDED`] are special.
const N_SPECIAL: usize = 14;
/// How many tokens Qwen2.5 has before the added ones.
const N_VOCAB: u32 = 151_643;

/// Most tokens, and most merges. Qwen2.5 has 151,643 and 151,387.
const MAX_TOKENS: usize = 1 << 19;
/// Most bytes of a token; an answer is at most so much longer than its number of tokens. Qwen2.5's longest has 256.
const MAX_TOKEN: usize = 1 << 12;
/// Most added tokens, and most bytes of one: all are looked for at once in every text, by a table of each prefix.
const MAX_ADDED: usize = 1 << 12;
const MAX_ADDED_TOKEN: usize = 1 << 8;

/// An added token and its id.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    #[serde(flatten)]
    pub(super) token: AddedToken,
}

/// Everything that decides how text is encoded. Errors are messages: the caller knows the file.
pub(super) struct Parts {
    pub(super) vocab: Vocab,
    /// Pairs of tokens to join, in rising rank.
    pub(super) merges: Vec<(String, String)>,
    pub(super) ignore_merges: bool,
    /// Whether text is normalized to NFC.
    pub(super) nfc: bool,
    pub(super) added: Vec<Added>,
}

impl Parts {
    /// From `tokenizer.json`.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let file: Object<TokenizerFile> = match serde_json::from_slice(bytes) {
            Ok(file) => file,
            // A foreign component fails on whatever field differs first: name the component instead. Otherwise parse
            // again for the name of the field, which is not tracked above because it costs time.
            Err(_) => {
                if let Ok(Object(kinds)) = serde_json::from_slice::<Object<Kinds>>(bytes) {
                    kinds.check()?;
                }
                Object(parse("", bytes)?)
            }
        };
        let TokenizerFile { added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } =
            file.0;
        let nfc = components::normalizer(normalizer)?;
        components::pre_tokenizer(pre_tokenizer)?;
        components::post_processor(post_processor)?;
        components::decoder(decoder)?;
        let Object(model) = model;
        model.check()?;
        Ok(Self {
            vocab: model.vocab.0,
            merges: model.merges.0.into_iter().map(|merge| merge.0).collect(),
            ignore_merges: model.ignore_merges,
            nfc,
            added: added_tokens.0.into_iter().map(|added| added.0).collect(),
        })
    }

    /// From `vocab.json`, `merges.txt` and `tokenizer_config.json`.
    pub(super) fn from_vocab(vocab: &[u8], merges: &[u8], config: Option<&[u8]>) -> Result<Self, String> {
        let TokenIds(vocab) = parse(VOCAB_JSON, vocab)?;
        let config: ConfigFile = match config {
            Some(bytes) => parse(CONFIG_JSON, bytes)?,
            None => ConfigFile::default(),
        };
        let added = match config.added_tokens_decoder {
            Some(tokens) => tokens.into_iter().map(|(id, token)| Added { id, token }).collect(),
            None => qwen_added(vocab.len())?,
        };
        Ok(Self { vocab, merges: parse_merges(merges)?, ignore_merges: false, nfc: true, added })
    }

    /// Refuses what would make the `tokenizers` crate drop text, renumber tokens or panic.
    pub(super) fn check(&self) -> Result<(), String> {
        let missing = alphabet().find(|c| !self.vocab.contains_key(c.encode_utf8(&mut [0; 4]) as &str));
        if let Some(byte) = missing.and_then(byte_of) {
            return Err(format!("vocabulary: expected a token for every byte, found none for 0x{byte:02x}"));
        }
        if let Some(token) = self.vocab.keys().find(|token| token.len() > MAX_TOKEN) {
            let (token, len) = (shortened(token, MAX_SHOWN), token.len());
            return Err(format!("token {token:?}: expected at most {MAX_TOKEN} bytes, found {len}"));
        }
        let mut joined = String::new();
        for (rank, (left, right)) in self.merges.iter().enumerate() {
            joined.clear();
            joined.extend([left.as_str(), right.as_str()]);
            if let Some(token) = [left, right, &joined].into_iter().find(|t| !self.vocab.contains_key(*t)) {
                let token = shortened(token, MAX_SHOWN);
                return Err(format!("merge {rank}: expected a token of the vocabulary, found {token:?}"));
            }
        }
        self.check_added()
    }

    fn check_added(&self) -> Result<(), String> {
        if self.added.len() > MAX_ADDED {
            return Err(format!("expected at most {MAX_ADDED} added tokens, found {}", self.added.len()));
        }
        let mut seen = HashSet::new();
        for Added { id, token } in &self.added {
            let content = &token.content;
            let shown = shortened(content, MAX_SHOWN);
            if content.is_empty() || !seen.insert(content) {
                return Err(format!("added token {id}: expected a text of its own, found {shown:?}"));
            }
            if content.len() > MAX_ADDED_TOKEN {
                let len = content.len();
                return Err(format!(
                    "added token {id}: expected at most {MAX_ADDED_TOKEN} bytes, found {len}"
                ));
            }
            if let Some(other) = self.vocab.get(content).filter(|other| *other != id) {
                return Err(format!(
                    "added token {shown}: expected id {other} of the vocabulary, found {id}"
                ));
            }
            // A normalized token would also be found in text that does not contain it literally.
            let normalized = token.special && token.normalized;
            let flags = [
                ("normalized", normalized),
                ("single_word", token.single_word),
                ("lstrip", token.lstrip),
                ("rstrip", token.rstrip),
            ];
            if let Some((flag, _)) = flags.into_iter().find(|(_, is_set)| *is_set) {
                let kind = if token.special { "special" } else { "added" };
                return Err(format!("{kind} token {shown}: expected {flag} false, found true"));
            }
        }
        Ok(())
    }

    /// The special tokens in rising order of their ids.
    pub(super) fn specials(&self) -> Vec<(u32, String)> {
        let special = self.added.iter().filter(|added| added.token.special);
        let mut specials: Vec<_> = special.map(|added| (added.id, added.token.content.clone())).collect();
        specials.sort_unstable();
        specials
    }
}

/// `tokenizer.json`, as far as it decides about ids.
#[derive(Deserialize)]
struct TokenizerFile {
    added_tokens: Bounded<Object<Added>, MAX_ADDED>,
    normalizer: Option<Object<Component>>,
    pre_tokenizer: Option<Object<Component>>,
    post_processor: Option<Object<Component>>,
    decoder: Option<Object<Component>>,
    model: Object<BpeModel>,
}

#[derive(Deserialize)]
struct BpeModel {
    r#type: Option<String>,
    vocab: TokenIds,
    merges: Bounded<Merge, MAX_TOKENS>,
    #[serde(default)]
    ignore_merges: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

impl BpeModel {
    fn check(&self) -> Result<(), String> {
        if let Some(found) = self.r#type.as_ref().filter(|found| *found != "BPE") {
            return Err(format!("model: expected BPE, found {}", shortened(found, MAX_SHOWN)));
        }
        if let Some(dropout) = self.dropout.filter(|dropout| *dropout != 0.0) {
            return Err(format!("model: expected no dropout, found {dropout}"));
        }
        let affixes = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        match affixes.into_iter().flatten().find(|affix| !affix.is_empty()) {
            Some(affix) => {
                let affix = shortened(affix, MAX_SHOWN);
                Err(format!("model: expected no subword prefix or suffix, found {affix:?}"))
            }
            None => Ok(()),
        }
    }
}

/// The part of `tokenizer_config.json` that matters here.
#[derive(Default, Deserialize)]
struct ConfigFile {
    added_tokens_decoder: Option<BTreeMap<u32, AddedToken>>,
}

/// Ids of at most [`MAX_TOKENS`] tokens, none of them given twice.
struct TokenIds(Vocab);

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = TokenIds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_TOKENS} tokens and their ids, below {MAX_IDS}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenIds, A::Error> {
                let mut ids = Vocab::default();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if ids.len() == MAX_TOKENS {
                        return Err(A::Error::invalid_length(MAX_TOKENS + 1, &self));
                    }
                    if ids.contains_key(&token) {
                        let token = shortened(&token, MAX_SHOWN);
                        return Err(A::Error::custom(format!(
                            "expected one id of token {token:?}, found two"
                        )));
                    }
                    ids.insert(token, id);
                }
                Ok(TokenIds(ids))
            }
        }
        deserializer.deserialize_map(Tokens)
    }
}

/// Two tokens to join, written `"a b"` or `["a", "b"]`.
struct Merge((String, String));

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge, \"a b\" or [\"a\", \"b\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                split_merge(text).map(Merge).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                match (seq.next_element()?, seq.next_element()?, seq.next_element::<String>()?) {
                    (Some(left), Some(right), None) => Ok(Merge((left, right))),
                    _ => Err(A::Error::custom("expected a merge of two tokens")),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

fn split_merge(text: &str) -> Result<(String, String), String> {
    match text.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.into(), right.into()))
        }
        _ => Err(format!("expected two tokens and a space, found {:?}", shortened(text, MAX_SHOWN))),
    }
}

/// Parses a JSON object; an error begins with the file's name, if that is not empty.
fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, String> {
    parse_json(file, bytes).map_err(|error| match error {
        lance_mm_tensor::Error::File { message, .. } if file.is_empty() => message,
        error => error.to_string(),
    })
}

/// One merge a line in rising rank; a first line `#version` and empty lines do not count.
fn parse_merges(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("{MERGES_TXT}: {error}"))?;
    if text.lines().nth(MAX_TOKENS + 1).is_some() {
        return Err(format!("{MERGES_TXT}: expected at most {MAX_TOKENS} merges"));
    }
    let lines = text.lines().enumerate();
    lines
        .filter(|(i, line)| !(line.is_empty() || (*i == 0 && line.starts_with("#version"))))
        .map(|(i, line)| split_merge(line).map_err(|error| format!("{MERGES_TXT} line {}: {error}", i + 1)))
        .collect()
}

/// Qwen2.5's added tokens, if the vocabulary has the size they follow.
fn qwen_added(n_vocab: usize) -> Result<Vec<Added>, String> {
    if n_vocab != N_VOCAB as usize {
        return Err(format!(
            "{CONFIG_JSON}: expected added_tokens_decoder for a vocabulary of {n_vocab} tokens, found none"
        ));
    }
    let added = |(id, (i, content)): (u32, (usize, &&str))| Added {
        id,
        token: AddedToken::from(*content, i < N_SPECIAL).normalized(false),
    };
    Ok((N_VOCAB..).zip(ADDED.iter().enumerate()).map(added).collect())
}
