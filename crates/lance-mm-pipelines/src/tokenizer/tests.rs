use std::fs;

use serde_json::{Value, json};

use super::bytes::{alphabet, byte_of};
use super::*;

/// `<|im_end|>` of the tiny vocabulary, the one special token.
pub(super) const SPECIAL: u32 = 300;
/// `<tool_call>`, added but not special.
const TOOL: u32 = 301;

const MERGES: &str = "#version: 0.2\nĠ a\n\nĠa b\na b\n";
const MERGED: [(&str, u32); 3] = [("Ġa", 256), ("Ġab", 257), ("ab", 258)];

/// Byte `b` has id `b`, then the merged tokens; ids 259..300 are a hole.
fn vocab() -> Value {
    let mut vocab = serde_json::Map::new();
    for c in alphabet() {
        vocab.insert(c.into(), byte_of(c).into());
    }
    vocab.extend(MERGED.map(|(token, id)| (token.into(), id.into())));
    vocab.into()
}

fn added(content: &str, special: bool) -> Value {
    json!({
        "content": content, "special": special, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

fn config() -> Value {
    json!({ "added_tokens_decoder": {
        "300": added("<|im_end|>", true), "301": added("<tool_call>", false),
    }})
}

fn tokenizer_json() -> Value {
    let mut tokens = [added("<|im_end|>", true), added("<tool_call>", false)];
    tokens[0]["id"] = SPECIAL.into();
    tokens[1]["id"] = TOOL.into();
    json!({
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": components::SPLIT },
              "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ]},
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab(), "merges": ["Ġ a", ["Ġa", "b"], "a b"] },
    })
}

fn from_json(json: &Value) -> Result<Tokenizer> {
    Tokenizer::from_json(json.to_string().as_bytes(), "t.json")
}

fn from_vocab(vocab: &Value, merges: &str, config: Option<&Value>) -> Result<Tokenizer> {
    let config = config.map(Value::to_string);
    let config = config.as_ref().map(String::as_bytes);
    Tokenizer::from_vocab(vocab.to_string().as_bytes(), merges.as_bytes(), config, "folder")
}

pub(super) fn tiny() -> Tokenizer {
    from_json(&tokenizer_json()).unwrap()
}

#[test]
fn encodes_the_same_from_either_set_of_files() {
    let cases: [(&str, &[u32]); 9] = [
        ("", &[]),
        (" ab", &[257]),
        ("ab", &[258]),
        ("abab", &[258, 258]),
        // NFC: e and a combining acute are one letter, two bytes.
        ("e\u{301}", &[0xc3, 0xa9]),
        ("12", &[0x31, 0x32]),
        ("\u{0}\u{ad}", &[0x00, 0xc2, 0xad]),
        ("ab<|im_end|> ab", &[258, SPECIAL, 257]),
        ("<tool_call>a", &[TOOL, 0x61]),
    ];
    let built = from_vocab(&vocab(), MERGES, Some(&config())).unwrap();
    let tiny = tiny();
    for (text, ids) in cases {
        assert_eq!(tiny.encode(text).unwrap(), ids, "{text:?} with tokenizer.json");
        assert_eq!(built.encode(text).unwrap(), ids, "{text:?} with vocab.json");
    }
}

#[test]
fn decodes_joined_bytes() {
    let tiny = tiny();
    assert_eq!(tiny.decode(&[257, SPECIAL, TOOL], false), " ab<|im_end|><tool_call>");
    assert_eq!(tiny.decode(&[257, SPECIAL, TOOL], true), " ab<tool_call>");
    assert_eq!(tiny.decode(&[0xe4, SPECIAL, 0xb8, 0xad], true), "中");
    assert_eq!(tiny.decode(&[0xe4, 0xb8, 0x61, 0xff], true), "\u{fffd}a\u{fffd}");
    assert_eq!(tiny.decode(&[0x61, 270, 302, u32::MAX], true), "a", "ids without a token");
}

#[test]
fn knows_its_tokens() {
    let tiny = tiny();
    assert_eq!(tiny.vocab_limit(), 302);
    assert_eq!(tiny.id("<|im_end|>").unwrap(), SPECIAL);
    assert_eq!(tiny.id("Ġab").unwrap(), 257);
    assert_eq!(tiny.token_bytes(257), b" ab");
    let special: Vec<u32> = (0..310).filter(|&id| tiny.is_special(id)).collect();
    assert_eq!(special, [SPECIAL]);
    assert_eq!(
        tiny.id("<|vision_start|>").unwrap_err().to_string(),
        "t.json: expected the token <|vision_start|>, found none"
    );
}

#[test]
fn finds_the_first_special_token_in_a_text() {
    let mut json = tokenizer_json();
    let mut other = added("<|im_start|>", true);
    other["id"] = 302.into();
    json["added_tokens"].as_array_mut().unwrap().push(other);
    let tokenizer = from_json(&json).unwrap();
    assert_eq!(tokenizer.special_in("a<|im_start|>b<|im_end|>"), Some("<|im_start|>"));
    assert_eq!(tokenizer.special_in("a<|im_end|>"), Some("<|im_end|>"));
    assert_eq!(tokenizer.special_in("<tool_call> <|im_end >"), None);
    assert_eq!(tokenizer.special_in(""), None);
}

/// Some tokenizers list their added tokens in the vocabulary as well.
#[test]
fn added_token_may_be_in_the_vocabulary() {
    let mut json = tokenizer_json();
    json["model"]["vocab"]["<|im_end|>"] = SPECIAL.into();
    let tokenizer = from_json(&json).unwrap();
    assert_eq!(tokenizer.encode("a<|im_end|>").unwrap(), [0x61, SPECIAL]);
    assert_eq!(tokenizer.decode(&[SPECIAL, TOOL], false), "<|im_end|><tool_call>");
}

#[test]
fn looks_beside_the_weights_then_one_level_up() {
    let temp = tempfile::tempdir().unwrap();
    let outer_dir = fs::canonicalize(temp.path()).unwrap();
    let inner_dir = outer_dir.join("inner");
    fs::create_dir(&inner_dir).unwrap();
    let (inner, outer) = (inner_dir.display(), outer_dir.display());
    let load = || Tokenizer::from_dir(&inner_dir);
    let write = |file: &str, content: &str| fs::write(outer_dir.join(file), content).unwrap();

    let expected = "expected tokenizer.json, or vocab.json with merges.txt and tokenizer_config.json";
    let message = load().unwrap_err().to_string();
    assert_eq!(message, format!("{inner}: {expected}, in {inner} or {outer}, found neither"));

    write("vocab.json", &vocab().to_string());
    let message = load().unwrap_err().to_string();
    let found = outer_dir.join("vocab.json");
    assert!(message.ends_with(&format!("found only {}", found.display())), "{message}");

    write("merges.txt", MERGES);
    write("tokenizer_config.json", &config().to_string());
    assert_eq!(load().unwrap().name(), outer.to_string());

    write("tokenizer.json", &tokenizer_json().to_string());
    let outer_json = outer_dir.join("tokenizer.json");
    assert_eq!(load().unwrap().name(), outer_json.display().to_string());

    let inner_json = inner_dir.join("tokenizer.json");
    fs::write(&inner_json, "{").unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: EOF", inner_json.display())), "{message}");

    let missing = Tokenizer::from_dir(&inner_dir.join("missing"));
    assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
}

#[test]
fn damaged_tokenizer_json_is_an_error() {
    type Damage = fn(&mut Value);
    let cases: [(Damage, &str); 33] = [
        (|t| *t = json!([]), "t.json: invalid type: sequence, expected an object"),
        (
            |t| t["added_tokens"][0] = json!([1]),
            "added_tokens[0]: invalid type: sequence, expected an object",
        ),
        (|t| t["added_tokens"][0]["id"] = (-1).into(), "added_tokens[0].id: invalid value: integer `-1`"),
        (|t| t["added_tokens"][0]["id"] = (1u64 << 40).into(), "added_tokens[0].id: invalid value: integer"),
        (|t| t["added_tokens"][0]["id"] = (1 << 20).into(), "expected an id below 1048576, found 1048576"),
        (
            |t| t["added_tokens"][0]["content"] = "".into(),
            "added token 300: expected a text of its own, found \"\"",
        ),
        (
            |t| t["added_tokens"][0]["content"] = "x".repeat(300).into(),
            "added token 300: expected at most 256 bytes, found 300",
        ),
        (|t| t["added_tokens"][1]["lstrip"] = true.into(), "added token <tool_call>: expected lstrip false"),
        (
            |t| t["added_tokens"] = vec![t["added_tokens"][0].clone(); 5000].into(),
            "added_tokens: invalid length 4097, expected a list of at most 4096 elements",
        ),
        (|t| t["model"]["vocab"]["ab"] = (-1).into(), "model.vocab.ab: invalid value: integer `-1`"),
        (|t| t["model"]["vocab"]["ab"] = 1.5.into(), "model.vocab.ab: invalid type: floating point"),
        (|t| t["model"]["vocab"]["ab"] = u32::MAX.into(), "expected an id below 1048576, found 4294967295"),
        (|t| t["model"]["vocab"] = json!([["a", 1]]), "model.vocab: invalid type: sequence"),
        (|t| t["model"]["vocab"][&"y".repeat(5000)] = 299.into(), "expected at most 4096 bytes, found 5000"),
        (|t| t["model"]["merges"][0] = 1.into(), "model.merges[0]: invalid type: integer"),
        (|t| t["model"]["merges"] = json!({}), "model.merges: invalid type: map"),
        (|t| t["model"] = Value::Null, "model: invalid type: null"),
        (|t| drop(t.as_object_mut().unwrap().remove("added_tokens")), "missing field `added_tokens`"),
        (|t| drop(t["model"].as_object_mut().unwrap().remove("merges")), "missing field `merges`"),
        (
            |t| t["model"] = json!({"type": "Unigram", "vocab": [["a", 0.5]]}),
            "model: expected BPE, found Unigram",
        ),
        (|t| t["model"]["type"] = "WordPiece".into(), "model: expected BPE, found WordPiece"),
        (|t| t["model"]["dropout"] = 0.5.into(), "model: expected no dropout, found 0.5"),
        (|t| t["model"]["end_of_word_suffix"] = "</w>".into(), "no subword prefix or suffix, found \"</w>\""),
        (|t| t["model"]["merges"][0] = "Ġ".into(), "expected two tokens and a space, found \"Ġ\""),
        (|t| t["model"]["merges"][1] = json!(["a", "b", "c"]), "expected a merge of two tokens"),
        // Longer than every token: the crate would write past its buffer.
        (
            |t| t["model"]["merges"][1] = "<tool_call> Ġab".into(),
            "merge 1: expected a token of the vocabulary, found \"<tool_call>\"",
        ),
        (
            |t| t["model"]["merges"][1] = "Ġab Ġab".into(),
            "merge 1: expected a token of the vocabulary, found \"ĠabĠab\"",
        ),
        (
            |t| drop(t["model"]["vocab"].as_object_mut().unwrap().remove("Ċ")),
            "expected a token for every byte, found none for 0x0a",
        ),
        (
            |t| t["model"]["vocab"]["ab"] = SPECIAL.into(),
            "id 300: expected one token, found \"<|im_end|>\" and \"ab\"",
        ),
        (|t| t["decoder"] = Value::Null, "decoder: expected ByteLevel, found none"),
        (
            |t| t["added_tokens"][0]["content"] = "ab".into(),
            "added token ab: expected id 258 of the vocabulary, found 300",
        ),
        (
            |t| t["added_tokens"][1]["content"] = "<|im_end|>".into(),
            "added token 301: expected a text of its own, found \"<|im_end|>\"",
        ),
        (
            |t| t["added_tokens"][0]["normalized"] = true.into(),
            "special token <|im_end|>: expected normalized false, found true",
        ),
    ];
    for (damage, expected) in cases {
        let mut json = tokenizer_json();
        damage(&mut json);
        let message = from_json(&json).unwrap_err().to_string();
        assert!(
            message.starts_with("t.json: ") && message.contains(expected),
            "{message:?}, expected {expected:?}"
        );
    }
}

/// The `tokenizers` crate knows more components, and panics or allocates without limit on some.
#[test]
fn components_that_lance_does_not_use_are_refused_by_name() {
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false });
    let cases = [
        ("normalizer", json!({"type": "Prepend", "prepend": ""}), "expected NFC, found Prepend"),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}), "found Precompiled"),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "found Precompiled",
        ),
        ("normalizer", json!({"type": "Replace", "pattern": "", "content": ""}), "found Replace"),
        ("normalizer", json!({"type": "NFKC"}), "found NFKC"),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": ""}]}),
            "found Prepend",
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}),
            "found Sequence",
        ),
        ("normalizer", json!({"type": "Sequence"}), "found Sequence"),
        ("normalizer", json!({"type": 5}), "normalizer.type: invalid type: integer"),
        ("normalizer", json!(["NFC"]), "normalizer: invalid type: sequence"),
        ("pre_tokenizer", Value::Null, "expected Split and ByteLevel, found none"),
        ("pre_tokenizer", json!({"type": "Metaspace"}), "found Metaspace"),
        ("pre_tokenizer", byte_level.clone(), "found ByteLevel"),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": []}), "found none"),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": 1}, byte_level]}),
            "found Digits",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": vec![byte_level; 17]}),
            "pretokenizers: invalid length 17",
        ),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": []}),
            "expected ByteLevel, found Template",
        ),
        (
            "post_processor",
            json!({"type": "Sequence", "processors": [{"type": "BertProcessing", "sep": 1}]}),
            "found BertProcessing",
        ),
        ("decoder", json!({"type": "Metaspace"}), "expected ByteLevel, found Metaspace"),
        ("decoder", json!({"type": "Sequence", "decoders": [{"type": "CTC"}]}), "found CTC"),
        ("decoder", json!({"type": "Sequence", "decoders": []}), "found none"),
        ("model", json!({"type": "Unigram", "vocab": [], "unk_id": 5}), "expected BPE, found Unigram"),
        ("model", json!({"type": "x".repeat(100_000)}), "expected BPE, found xxx"),
    ];
    for (part, value, expected) in cases {
        let mut json = tokenizer_json();
        json[part] = value;
        let message = from_json(&json).unwrap_err().to_string();
        assert!(message.starts_with(&format!("t.json: {part}")) && message.contains(expected), "{message}");
        assert!(message.len() < 600, "{}", message.len());
    }
    let mut nested = json!({"type": "NFC"});
    for _ in 0..30 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    let mut json = tokenizer_json();
    json["normalizer"] = nested;
    assert!(from_json(&json).unwrap_err().to_string().contains("found Sequence"));
    let deep = json.to_string().replace("\"NFC\"", &format!("{}{}", "[".repeat(99_999), "]".repeat(99_999)));
    assert!(Tokenizer::from_json(deep.as_bytes(), "t.json").is_err());
}

#[test]
fn a_split_other_than_qwens_is_refused() {
    for (field, value, expected) in [
        ("pattern", json!({"Regex": "(a*)*b"}), "expected the pattern of Qwen2.5, found \"(a*)*b\""),
        ("pattern", json!({"Regex": "x{1000}".repeat(100_000)}), "expected the pattern of Qwen2.5"),
        ("pattern", json!({"String": " "}), "expected the pattern of Qwen2.5, found \" \""),
        ("pattern", json!({"Regex": 1}), "pattern"),
        ("behavior", json!("Removed"), "expected behavior Isolated, found Removed"),
        ("invert", json!(true), "expected invert false, found true"),
        ("invert", Value::Null, "expected invert false, found none"),
    ] {
        let mut json = tokenizer_json();
        json["pre_tokenizer"]["pretokenizers"][0][field] = value;
        let message = from_json(&json).unwrap_err().to_string();
        assert!(message.starts_with("t.json: pre_tokenizer") && message.contains(expected), "{message}");
        assert!(message.len() < 600, "{}", message.len());
    }
    let mut json = tokenizer_json();
    json["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into();
    let message = from_json(&json).unwrap_err().to_string();
    assert!(message.ends_with("expected add_prefix_space false, found true"), "{message}");
}

#[test]
fn components_of_other_exporters_mean_the_same() {
    let tokens = |change: fn(&mut Value)| {
        let mut json = tokenizer_json();
        change(&mut json);
        from_json(&json).unwrap().encode("e\u{301}").unwrap()
    };
    assert_eq!(tokens(|t| t["normalizer"] = Value::Null), [0x65, 0xcc, 0x81]);
    assert_eq!(
        tokens(|t| t["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]})),
        [0xc3, 0xa9]
    );
    assert_eq!(tokens(|t| t["post_processor"] = t["decoder"].clone()), [0xc3, 0xa9]);
}

#[test]
fn a_token_given_twice_is_an_error() {
    let json = tokenizer_json().to_string().replacen("\"ab\":258", "\"ab\":258,\"ab\":259", 1);
    let message = Tokenizer::from_json(json.as_bytes(), "t.json").unwrap_err().to_string();
    assert!(message.contains("expected one id of token \"ab\", found two"), "{message}");
}

#[test]
fn cut_off_tokenizer_json_is_an_error() {
    let json = tokenizer_json().to_string();
    for end in (0..json.len()).step_by(41).filter(|&end| json.is_char_boundary(end)) {
        assert!(Tokenizer::from_json(&json.as_bytes()[..end], "t.json").is_err(), "{end} bytes");
    }
}

#[test]
fn damaged_vocabulary_files_are_errors() {
    let (vocab, config) = (vocab(), config());
    let empty = json!({});
    let cases: [(&Value, &str, Option<&Value>, &str); 7] = [
        (&json!([1]), MERGES, Some(&config), "folder: vocab.json: invalid type"),
        (&json!({"a": -1}), MERGES, Some(&config), "folder: vocab.json: a: invalid value"),
        (&empty, MERGES, Some(&config), "folder: vocabulary: expected a token for every byte"),
        (
            &vocab,
            "a b\nab",
            Some(&config),
            "folder: merges.txt line 2: expected two tokens and a space, found \"ab\"",
        ),
        (&vocab, "a b c", Some(&config), "folder: merges.txt line 1: expected two tokens and a space"),
        (&vocab, MERGES, Some(&json!({"added_tokens_decoder": {"x": 1}})), "folder: tokenizer_config.json: "),
        (
            &vocab,
            MERGES,
            Some(&empty),
            "folder: tokenizer_config.json: expected added_tokens_decoder for a vocabulary of 259 tokens, found none",
        ),
    ];
    for (vocab, merges, config, expected) in cases {
        let message = from_vocab(vocab, merges, config).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message:?}, expected {expected:?}");
    }
    let binary = Tokenizer::from_vocab(vocab.to_string().as_bytes(), b"\xff b", None, "folder");
    assert!(binary.is_err(), "merges that are not UTF-8");
    assert!(from_vocab(&vocab, MERGES, None).is_err(), "no config for a vocabulary that is not Qwen2.5's");
}
