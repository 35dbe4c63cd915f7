//! Vocabulary, merges and added tokens of a tokenizer, read from either set of files.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, SeqAccess, Visitor};
use tokenizers::models::bpe::Vocab;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::bytes::{alphabet, byte_of};
use super::{CONFIG_JSON, MERGES_TXT, VOCAB_JSON};

/// How Qwen2.5 cuts text before BPE.
const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) added: Vec<Added>,
}

impl Parts {
    /// From `tokenizer.json`.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let file: TokenizerFile = serde_json::from_slice(bytes).map_err(|error| {
            // A foreign model fails on whatever field differs first: name the model instead.
            let model = serde_json::from_slice::<Probe>(bytes).map(|probe| probe.model);
            model.map_or(Ok(()), |model| model.expect("model", "BPE")).err().unwrap_or(error.to_string())
        })?;
        match &file.decoder {
            Some(decoder) => decoder.expect("decoder", "ByteLevel")?,
            None => return Err("decoder: expected ByteLevel, found none".into()),
        }
        file.model.check()?;
        Ok(Self {
            vocab: file.model.vocab,
            merges: file.model.merges.into_iter().map(|merge| merge.0).collect(),
            ignore_merges: file.model.ignore_merges,
            normalizer: file.normalizer,
            pre_tokenizer: file.pre_tokenizer,
            added: file.added_tokens,
        })
    }

    /// From `vocab.json`, `merges.txt` and `tokenizer_config.json`.
    pub(super) fn from_vocab(vocab: &[u8], merges: &[u8], config: Option<&[u8]>) -> Result<Self, String> {
        let vocab: Vocab = parse_json(vocab, VOCAB_JSON)?;
        let config: ConfigFile = match config {
            Some(bytes) => parse_json(bytes, CONFIG_JSON)?,
            None => ConfigFile::default(),
        };
        let added = match config.added_tokens_decoder {
            Some(tokens) => tokens.into_iter().map(|(id, token)| Added { id, token }).collect(),
            None => qwen_added(vocab.len())?,
        };
        Ok(Self {
            vocab,
            merges: parse_merges(merges)?,
            ignore_merges: false,
            normalizer: Some(NFC.into()),
            pre_tokenizer: Some(qwen_pre_tokenizer()?),
            added,
        })
    }

    /// Refuses what would make the `tokenizers` crate drop text, renumber tokens or panic.
    pub(super) fn check(&self) -> Result<(), String> {
        let missing = alphabet().find(|c| !self.vocab.contains_key(c.encode_utf8(&mut [0; 4]) as &str));
        if let Some(byte) = missing.and_then(byte_of) {
            return Err(format!("vocabulary: expected a token for every byte, found none for 0x{byte:02x}"));
        }
        let mut joined = String::new();
        for (rank, (left, right)) in self.merges.iter().enumerate() {
            joined.clear();
            joined.extend([left.as_str(), right.as_str()]);
            if let Some(token) = [left, right, &joined].into_iter().find(|t| !self.vocab.contains_key(*t)) {
                return Err(format!("merge {rank}: expected a token of the vocabulary, found {token:?}"));
            }
        }
        self.check_added()
    }

    fn check_added(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for Added { id, token } in &self.added {
            let content = &token.content;
            if content.is_empty() || !seen.insert(content) {
                return Err(format!("added token {id}: expected a text of its own, found {content:?}"));
            }
            if let Some(other) = self.vocab.get(content).filter(|other| *other != id) {
                return Err(format!(
                    "added token {content}: expected id {other} of the vocabulary, found {id}"
                ));
            }
            // A normalized token would also be found in text that does not contain it literally.
            if token.special && token.normalized {
                return Err(format!("special token {content}: expected normalized false, found true"));
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
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    decoder: Option<Typed>,
    model: BpeModel,
}

#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

impl Typed {
    fn expect(&self, part: &str, expected: &str) -> Result<(), String> {
        if self.r#type == expected {
            return Ok(());
        }
        Err(format!("{part}: expected {expected}, found {}", self.r#type))
    }
}

#[derive(Deserialize)]
struct Probe {
    model: Typed,
}

#[derive(Deserialize)]
struct BpeModel {
    r#type: Option<String>,
    vocab: Vocab,
    merges: Vec<Merge>,
    #[serde(default)]
    ignore_merges: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

impl BpeModel {
    fn check(&self) -> Result<(), String> {
        if let Some(found) = self.r#type.as_ref().filter(|found| *found != "BPE") {
            return Err(format!("model: expected BPE, found {found}"));
        }
        if let Some(dropout) = self.dropout.filter(|dropout| *dropout != 0.0) {
            return Err(format!("model: expected no dropout, found {dropout}"));
        }
        let affixes = [&self.continuing_subword_prefix, &self.end_of_word_suffix];
        match affixes.into_iter().flatten().find(|affix| !affix.is_empty()) {
            Some(affix) => Err(format!("model: expected no subword prefix or suffix, found {affix:?}")),
            None => Ok(()),
        }
    }
}

/// The part of `tokenizer_config.json` that matters here.
#[derive(Default, Deserialize)]
struct ConfigFile {
    added_tokens_decoder: Option<BTreeMap<u32, AddedToken>>,
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
        _ => Err(format!("expected two tokens and a space, found {text:?}")),
    }
}

fn parse_json<'a, T: Deserialize<'a>>(bytes: &'a [u8], file: &str) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("{file}: {error}"))
}

/// One merge a line in rising rank; a first line `#version` and empty lines do not count.
fn parse_merges(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("{MERGES_TXT}: {error}"))?;
    let lines = text.lines().enumerate();
    lines
        .filter(|(i, line)| !(line.is_empty() || (*i == 0 && line.starts_with("#version"))))
        .map(|(i, line)| split_merge(line).map_err(|error| format!("{MERGES_TXT} line {}: {error}", i + 1)))
        .collect()
}

fn qwen_pre_tokenizer() -> Result<PreTokenizerWrapper, String> {
    let pattern = SplitPattern::Regex(SPLIT.into());
    let split =
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|error| error.to_string())?;
    let bytes = ByteLevel::new(false, true, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
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
