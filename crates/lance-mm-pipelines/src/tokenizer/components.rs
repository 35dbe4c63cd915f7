//! Components of `tokenizer.json`: those of Qwen2.5 are accepted, any other is refused by name.
//!
//! The `tokenizers` crate reads many more, some of which panic or reserve memory by the gigabyte on damaged files. Lance's
//! tokenizers have NFC or no normalizer, Qwen2.5's split into bytes, and a byte-level decoder.

use lance_mm_tensor::metadata::{Bounded, Object, shortened};
use serde::Deserialize;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::bytes::MAX_SHOWN;

/// Qwen2.5's pattern, by which text is cut before BPE.
pub(super) const SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Components in a sequence.
const MAX_PARTS: usize = 16;

/// A component's type and all fields that any accepted type has.
#[derive(Deserialize)]
pub(super) struct Component {
    r#type: String,
    normalizers: Parts,
    pretokenizers: Parts,
    processors: Parts,
    decoders: Parts,
    pattern: Option<Pattern>,
    behavior: Option<String>,
    invert: Option<bool>,
    add_prefix_space: Option<bool>,
    use_regex: Option<bool>,
}

type Parts = Option<Bounded<Object<Component>, MAX_PARTS>>;

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
    String(String),
}

/// The kinds of a file's components alone.
#[derive(Deserialize)]
pub(super) struct Kinds {
    normalizer: Option<Object<Kind>>,
    pre_tokenizer: Option<Object<Kind>>,
    post_processor: Option<Object<Kind>>,
    decoder: Option<Object<Kind>>,
    model: Option<Object<Kind>>,
}

#[derive(Deserialize)]
struct Kind {
    r#type: Option<String>,
}

impl Kinds {
    /// Refuses a component that Lance does not use.
    pub(super) fn check(self) -> Result<(), String> {
        for (part, kind, legal) in [
            ("model", self.model, &["BPE"][..]),
            ("normalizer", self.normalizer, &["NFC", "Sequence"]),
            ("pre_tokenizer", self.pre_tokenizer, &["Sequence"]),
            ("post_processor", self.post_processor, &["ByteLevel", "Sequence"]),
            ("decoder", self.decoder, &["ByteLevel", "Sequence"]),
        ] {
            let found = kind.and_then(|kind| kind.0.r#type);
            if let Some(found) = found.filter(|found| !legal.contains(&found.as_str())) {
                return Err(wrong(part, legal[0], &found));
            }
        }
        Ok(())
    }
}

fn wrong(part: &str, expected: &str, found: &str) -> String {
    format!("{part}: expected {expected}, found {}", shortened(found, MAX_SHOWN))
}

impl Component {
    /// The members of a sequence, or this alone.
    fn members(self, of: fn(&mut Self) -> Parts) -> Vec<Self> {
        let mut all = self;
        match of(&mut all) {
            Some(members) if all.r#type == "Sequence" => {
                members.0.into_iter().map(|member| member.0).collect()
            }
            _ => vec![all],
        }
    }
}

/// Checks that every member is of the type `expected`: their number.
fn only(part: &str, expected: &str, members: &[Component]) -> Result<usize, String> {
    match members.iter().find(|member| member.r#type != expected) {
        Some(other) => Err(wrong(part, expected, &other.r#type)),
        None => Ok(members.len()),
    }
}

/// Whether text is normalized to NFC, the only normalizer.
pub(super) fn normalizer(component: Option<Object<Component>>) -> Result<bool, String> {
    let members = component.map_or(Vec::new(), |Object(all)| all.members(|all| all.normalizers.take()));
    Ok(only("normalizer", "NFC", &members)? > 0)
}

/// Accepts Qwen2.5's split, then bytes.
pub(super) fn pre_tokenizer(component: Option<Object<Component>>) -> Result<(), String> {
    let bad = |expected: &str, found: &str| wrong("pre_tokenizer", expected, found);
    let members = component.map_or(Vec::new(), |Object(all)| all.members(|all| all.pretokenizers.take()));
    let expected = "Split and ByteLevel";
    if let Some(other) =
        members.iter().find(|member| !["Split", "ByteLevel"].contains(&member.r#type.as_str()))
    {
        return Err(bad(expected, &other.r#type));
    }
    let types: Vec<&str> = members.iter().map(|member| member.r#type.as_str()).collect();
    let [split, bytes] = members.as_slice() else {
        return Err(bad(expected, if types.is_empty() { "none".into() } else { types.join(", ") }.as_str()));
    };
    if types != ["Split", "ByteLevel"] {
        return Err(bad(expected, &types.join(", ")));
    }
    match &split.pattern {
        Some(Pattern::Regex(regex)) if regex == SPLIT => {}
        Some(Pattern::Regex(other) | Pattern::String(other)) => {
            return Err(bad("the pattern of Qwen2.5", &format!("{:?}", shortened(other, MAX_SHOWN))));
        }
        None => return Err(bad("the pattern of Qwen2.5", "none")),
    }
    let behavior = split.behavior.as_deref().unwrap_or("none");
    if behavior != "Isolated" {
        return Err(bad("behavior Isolated", behavior));
    }
    for (field, value, legal) in [
        ("invert", split.invert, false),
        ("add_prefix_space", bytes.add_prefix_space, false),
        ("use_regex", bytes.use_regex, false),
    ] {
        if value != Some(legal) {
            let found = value.map_or("none".into(), |value| value.to_string());
            return Err(bad(&format!("{field} {legal}"), &found));
        }
    }
    Ok(())
}

/// Accepts the post-processor that changes no ids.
pub(super) fn post_processor(component: Option<Object<Component>>) -> Result<(), String> {
    let members = component.map_or(Vec::new(), |Object(all)| all.members(|all| all.processors.take()));
    only("post_processor", "ByteLevel", &members).map(drop)
}

/// Accepts the decoder of bytes.
pub(super) fn decoder(component: Option<Object<Component>>) -> Result<(), String> {
    let members = component.map_or(Vec::new(), |Object(all)| all.members(|all| all.decoders.take()));
    match only("decoder", "ByteLevel", &members)? {
        0 => Err(wrong("decoder", "ByteLevel", "none")),
        _ => Ok(()),
    }
}

/// Qwen2.5's split, and bytes written as letters.
pub(super) fn qwen_pre_tokenizer() -> tokenizers::Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(SPLIT.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, true, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}
