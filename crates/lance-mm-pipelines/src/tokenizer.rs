//! Text to token ids and back: the byte-level BPE of Qwen2.5, read from a checkpoint directory.
//!
//! [`Tokenizer`] encodes and decodes whole texts, [`TextStream`] turns ids into text as they
//! are generated, and [`StopStrings`] cuts such a stream at the first stop string.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lance_mm_tensor::metadata::read_file;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;

use crate::error::{Error, Result};

mod bytes;
mod components;
mod parts;
mod stop;
mod stream;
#[cfg(test)]
mod tests;

pub use stop::{Scan, StopStrings};
pub use stream::TextStream;

use bytes::ByteTable;
use parts::Parts;

const TOKENIZER_JSON: &str = "tokenizer.json";
const VOCAB_JSON: &str = "vocab.json";
const MERGES_TXT: &str = "merges.txt";
const CONFIG_JSON: &str = "tokenizer_config.json";
/// Most bytes of a file. Qwen2.5's `tokenizer.json` has 11.4 MB.
const MAX_BYTES: u64 = 32 << 20;

/// A byte-level BPE tokenizer: ids from text, bytes from ids, and which ids are special.
///
/// Ids are those of the files. An id the files do not name stands for no text.
pub struct Tokenizer {
    name: String,
    inner: tokenizers::Tokenizer,
    bytes: ByteTable,
    /// The `special: true` tokens in rising order of their ids.
    specials: Vec<(u32, String)>,
    /// As `inner`, for texts in which special tokens are plain text.
    plain: OnceLock<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads the tokenizer of the checkpoint directory `dir`.
    ///
    /// `tokenizer.json` is looked for in `dir`, then one level up; failing that, `vocab.json`
    /// with `merges.txt` in the same two folders. The added tokens then come from the
    /// `tokenizer_config.json` beside them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a folder or file that cannot be read, [`Error::Tokenizer`] for files
    /// that are missing or are not a byte-level BPE.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let folder = folder(dir)?;
        let json = folder.join(TOKENIZER_JSON);
        if json.is_file() {
            return Self::from_json(&read(&json)?, &json.display().to_string());
        }
        let config = folder.join(CONFIG_JSON);
        let config = if config.is_file() { Some(read(&config)?) } else { None };
        let vocab = read(&folder.join(VOCAB_JSON))?;
        let merges = read(&folder.join(MERGES_TXT))?;
        Self::from_vocab(&vocab, &merges, config.as_deref(), &folder.display().to_string())
    }

    /// Builds a tokenizer from the content of a `tokenizer.json`; `name` says in errors where
    /// it came from.
    ///
    /// The file's model, added tokens and normalizer are used. Its other components must be Qwen2.5's, which are those
    /// of every Lance checkpoint; truncation and padding are ignored: nothing is ever added to the ids of a text or
    /// taken from them.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the content is not a byte-level BPE tokenizer, names a component that Lance does not
    /// use, or contradicts itself.
    pub fn from_json(bytes: &[u8], name: &str) -> Result<Self> {
        Self::build(Parts::from_json(bytes), name)
    }

    /// Builds a tokenizer from the contents of `vocab.json`, `merges.txt` and
    /// `tokenizer_config.json`; `name` says in errors where they came from.
    ///
    /// Normalizer and split are Qwen2.5's, which these files do not state. The added tokens are
    /// the `added_tokens_decoder` of the config; without one they are Qwen2.5's own 22, which
    /// only fit its vocabulary.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if a file cannot be understood, if the files do not fit together,
    /// or if there are no added tokens for a vocabulary other than Qwen2.5's.
    pub fn from_vocab(vocab: &[u8], merges: &[u8], config: Option<&[u8]>, name: &str) -> Result<Self> {
        Self::build(Parts::from_vocab(vocab, merges, config), name)
    }

    fn build(parts: std::result::Result<Parts, String>, name: &str) -> Result<Self> {
        let build = |parts: Parts| {
            parts.check()?;
            let added = parts.added.iter().map(|added| (added.id, added.token.content.as_str()));
            let bytes = ByteTable::new(&parts.vocab, added)?;
            let specials = parts.specials();
            let inner = assemble(parts).map_err(|error| error.to_string())?;
            Ok(Self { name: name.into(), inner, bytes, specials, plain: OnceLock::new() })
        };
        parts.and_then(build).map_err(|message| Error::Tokenizer { name: name.into(), message })
    }

    /// The file or folder the tokenizer was read from, as errors name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ids of `text`. Nothing is added at either end.
    ///
    /// An added token written out in the text becomes its one id, special or not: check text
    /// from outside with [`special_in`](Self::special_in) first, or use [`encode_plain`](Self::encode_plain).
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the pre-tokenizer of the file fails on this text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(&self.inner, text)
    }

    /// The ids of `text`, in which special tokens that are written out are plain text: no id of the result is
    /// [special](Self::is_special). Added tokens that are not special (`<tool_call>`) stay tokens.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if self.special_in(text).is_none() {
            return self.encode(text);
        }
        let plain = self.plain.get_or_init(|| {
            let mut plain = self.inner.clone();
            plain.set_encode_special_tokens(true);
            plain
        });
        self.encode_with(plain, text)
    }

    fn encode_with(&self, inner: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        let encoding = inner
            .encode_fast(text, false)
            .map_err(|error| Error::Tokenizer { name: self.name.clone(), message: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, without the special tokens if `skip_special`.
    ///
    /// The bytes of all tokens are joined before they are read as UTF-8; every maximal invalid
    /// sequence becomes one U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                bytes.extend_from_slice(self.token_bytes(id));
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The id of the token that is written `token`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if there is no such token.
    pub fn id(&self, token: &str) -> Result<u32> {
        self.inner.token_to_id(token).ok_or_else(|| Error::Tokenizer {
            name: self.name.clone(),
            message: format!("expected the token {token}, found none"),
        })
    }

    /// The bytes token `id` stands for, which need not be UTF-8; empty if there is no such token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// Whether `id` is a `special: true` token.
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.binary_search_by_key(&id, |(special, _)| *special).is_ok()
    }

    /// One more than the largest id. Output rows of the model from here on mean nothing.
    pub fn vocab_limit(&self) -> u32 {
        self.bytes.limit()
    }

    /// The special token that occurs first in `text`, if any does.
    pub fn special_in<'a>(&self, text: &'a str) -> Option<&'a str> {
        let found = self.specials.iter().filter_map(|(_, special)| {
            let start = text.find(special.as_str())?;
            Some((start, &text[start..start + special.len()]))
        });
        found.min_by_key(|(start, _)| *start).map(|(_, special)| special)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.name)
            .field("vocab_limit", &self.vocab_limit())
            .finish_non_exhaustive()
    }
}

/// Hands checked parts to the `tokenizers` crate.
fn assemble(mut parts: Parts) -> tokenizers::Result<tokenizers::Tokenizer> {
    // The crate numbers an added token by the model's vocabulary if it is there, otherwise by
    // counting on. With the added tokens in the vocabulary it keeps the ids of the file, and no
    // merge leads to them.
    for added in &parts.added {
        parts.vocab.insert(added.token.content.clone(), added.id);
    }
    let model = BPE::builder()
        .vocab_and_merges(parts.vocab, parts.merges)
        .ignore_merges(parts.ignore_merges)
        .build()?;
    let mut inner = tokenizers::Tokenizer::new(model);
    if parts.nfc {
        inner.with_normalizer(Some(NFC))?;
    }
    inner.with_pre_tokenizer(Some(components::qwen_pre_tokenizer()?));
    inner.add_tokens(parts.added.into_iter().map(|added| added.token))?;
    Ok(inner)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(read_file(path, MAX_BYTES)?)
}

/// The folder with the files of which [`Tokenizer::from_dir`] makes the tokenizer of `dir`.
pub(crate) fn folder(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).map_err(|source| Error::Io { path: dir.into(), source })?;
    let folders: Vec<&Path> = dir.ancestors().take(2).collect();
    let with =
        |names: &[&str]| folders.iter().find(|folder| names.iter().all(|name| folder.join(name).is_file()));
    match with(&[TOKENIZER_JSON]).or_else(|| with(&[VOCAB_JSON, MERGES_TXT])) {
        Some(folder) => Ok(folder.to_path_buf()),
        None => Err(not_found(&folders)),
    }
}

/// Names the files that make a tokenizer, the folders searched, and what of them was there.
fn not_found(folders: &[&Path]) -> Error {
    let searched: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let found: Vec<_> = folders
        .iter()
        .flat_map(|folder| [VOCAB_JSON, MERGES_TXT].map(|file| folder.join(file)))
        .filter(|path| path.is_file())
        .map(|path| path.display().to_string())
        .collect();
    let found = if found.is_empty() { "neither".into() } else { format!("only {}", found.join(", ")) };
    Error::Tokenizer {
        name: searched[0].clone(),
        message: format!(
            "expected {TOKENIZER_JSON}, or {VOCAB_JSON} with {MERGES_TXT} and {CONFIG_JSON}, \
             in {}, found {found}",
            searched.join(" or "),
        ),
    }
}
