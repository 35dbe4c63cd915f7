//! The `quantization` object of `config.json`: quantized modules and their schemes.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::scheme::{QuantMode, Scheme};

/// The entry of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// `"path": false`.
    Dense,
    /// `"path": true` or `"path": {..}`, missing keys filled from the top level.
    Quantized(Scheme),
}

/// The quantization settings of a checkpoint: a default and entries for single modules.
///
/// Rules: those of mlx-lm (`utils.load_model`), stricter where file and configuration disagree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantization {
    default: Option<Scheme>,
    modules: BTreeMap<String, Entry>,
}

/// Keys that are not module paths.
const OWN_KEYS: [&str; 3] = ["group_size", "bits", "mode"];

impl Quantization {
    /// Reads the settings out of a whole `config.json`: `quantization`, else `quantization_config`.
    ///
    /// # Errors
    /// Illegal bits, group size or mode; another ecosystem's `quant_method`.
    pub fn from_config(config: &Value) -> Result<Self> {
        if let Some(object) = config.get("quantization").filter(|v| !v.is_null()) {
            return Self::from_object("quantization", object);
        }
        let Some(object) = config.get("quantization_config").filter(|v| !v.is_null()) else {
            return Ok(Self::default());
        };
        if let Some(method) = object.get("quant_method") {
            let expected = "a checkpoint in MLX's format (`bits` and `group_size`)";
            return Err(Error::setting("quantization_config.quant_method", expected, method));
        }
        Self::from_object("quantization_config", object)
    }

    fn from_object(name: &str, object: &Value) -> Result<Self> {
        let Some(object) = object.as_object() else {
            return Err(Error::setting(name, "an object", object));
        };
        let top = Fields::read(name, object)?;
        let default = match (top.bits, top.group_size) {
            (Some(bits), Some(group)) => {
                Some(Scheme::new(bits, group, top.mode.unwrap_or(QuantMode::Affine))?)
            }
            (None, None) => None,
            _ => return Err(Error::setting(name, "both `bits` and `group_size`", "one of them")),
        };
        let mut modules = BTreeMap::new();
        for (path, value) in object.iter().filter(|(path, _)| !OWN_KEYS.contains(&path.as_str())) {
            if let Some(entry) = module_entry(name, path, value, &top)? {
                modules.insert(path.clone(), entry);
            }
        }
        Ok(Self { default, modules })
    }

    /// The scheme of modules without an entry of their own.
    pub fn default_scheme(&self) -> Option<Scheme> {
        self.default
    }

    /// Modules for which the configuration has an entry, with their scheme (`None`: left dense).
    pub fn modules(&self) -> impl Iterator<Item = (&str, Option<Scheme>)> {
        self.modules.iter().map(|(path, entry)| match entry {
            Entry::Dense => (path.as_str(), None),
            Entry::Quantized(scheme) => (path.as_str(), Some(*scheme)),
        })
    }

    /// Compares the entry of a module with the dense matrix in the file.
    pub(crate) fn check_dense(&self, path: &str) -> std::result::Result<(), String> {
        match self.modules.get(path) {
            Some(Entry::Quantized(_)) => Err("config says quantized, file has no scales".into()),
            _ => Ok(()),
        }
    }

    /// The scheme of a module that the file holds quantized: `words` columns of packed words and `groups`
    /// columns of scales for `cols` values a row; `has_biases` tells affine from floating modes where the
    /// configuration is silent.
    ///
    /// # Errors
    /// The contradiction, without the module's name.
    pub fn scheme(
        &self,
        path: &str,
        cols: usize,
        words: usize,
        groups: usize,
        has_biases: bool,
    ) -> std::result::Result<Scheme, String> {
        let stored = stored_scheme(cols, words, groups);
        let (stated, explicit) = match self.modules.get(path) {
            Some(Entry::Dense) => return Err("config says not quantized, file has scales".into()),
            Some(Entry::Quantized(scheme)) => (Some(*scheme), true),
            None => (self.default, false),
        };
        if let Some(scheme) = stated.filter(|s| stored == Some((s.bits(), s.group_size()))) {
            return Ok(scheme);
        }
        let shapes = format!("{words} words and {groups} groups for {cols} values a row");
        match (stated, stored) {
            (Some(s), found) if explicit => Err(format!(
                "config says {} bits in groups of {}, file has {}",
                s.bits(),
                s.group_size(),
                found.map_or(shapes, |(b, g)| format!("{b} bits in groups of {g}"))
            )),
            (_, Some((bits, group))) if has_biases => Scheme::affine(bits, group).map_err(|e| e.to_string()),
            (_, Some((bits, group))) => {
                Err(format!("{bits} bits in groups of {group} without biases or a stated mode"))
            }
            (_, None) => Err(format!("expected whole words and groups, found {shapes}")),
        }
    }
}

/// Bits and group size that the shapes of a packed matrix imply.
fn stored_scheme(cols: usize, words: usize, groups: usize) -> Option<(usize, usize)> {
    let bits = words.checked_mul(32)?;
    let whole = groups > 0 && words > 0 && cols.is_multiple_of(groups) && bits.is_multiple_of(cols);
    whole.then(|| (bits / cols, cols / groups))
}

#[derive(Clone, Copy)]
struct Fields {
    bits: Option<usize>,
    group_size: Option<usize>,
    mode: Option<QuantMode>,
}

impl Fields {
    fn read(name: &str, object: &Map<String, Value>) -> Result<Self> {
        let number = |key: &str| match object.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Ok(Some(n)),
                None => Err(Error::setting(format!("{name}.{key}"), "an integer", v)),
            },
        };
        let mode = match object.get("mode") {
            None => None,
            Some(Value::String(text)) => Some(QuantMode::parse(&format!("{name}.mode"), text)?),
            Some(other) => return Err(Error::setting(format!("{name}.mode"), "a string", other)),
        };
        Ok(Self { bits: number("bits")?, group_size: number("group_size")?, mode })
    }

    fn scheme(self, name: &str, over: Self) -> Result<Scheme> {
        let missing =
            |key: &str| Error::setting(format!("{name}.{key}"), "a number here or at the top level", "none");
        Scheme::new(
            self.bits.or(over.bits).ok_or_else(|| missing("bits"))?,
            self.group_size.or(over.group_size).ok_or_else(|| missing("group_size"))?,
            self.mode.or(over.mode).unwrap_or(QuantMode::Affine),
        )
    }
}

/// The entry of one key, `None` when the key is no module path. Unknown scalars other than a truth value of
/// a dotted path, and objects without bits or group size, are notes of other tools (`awq`, `skip_gen_tower`).
fn module_entry(name: &str, path: &str, value: &Value, top: &Fields) -> Result<Option<Entry>> {
    let full = format!("{name}.{path}");
    let known = path.contains('.') || matches!(path, "embed_tokens" | "lm_head");
    match value {
        Value::Bool(false) if known => Ok(Some(Entry::Dense)),
        Value::Bool(true) if known => {
            let none = Fields { bits: None, group_size: None, mode: None };
            Ok(Some(Entry::Quantized(none.scheme(&full, *top)?)))
        }
        Value::Object(object) if object.contains_key("bits") || object.contains_key("group_size") => {
            Ok(Some(Entry::Quantized(Fields::read(&full, object)?.scheme(&full, *top)?)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: Value) -> Result<Quantization> {
        Quantization::from_config(&config)
    }

    #[test]
    fn entries_fall_back_to_the_top_level() {
        let q = parse(json!({"quantization": {
            "bits": 4, "group_size": 32, "skip_gen_tower": true, "awq_calibration": {"n_grid": 20},
            "layers.0.a": {"bits": 8}, "layers.0.b": false, "lm_head": {"bits": 6, "group_size": 64},
        }}))
        .unwrap();
        assert_eq!(q.scheme("layers.0.a", 64, 16, 2, true).unwrap(), Scheme::affine(8, 32).unwrap());
        assert_eq!(q.scheme("lm_head", 64, 12, 1, true).unwrap(), Scheme::affine(6, 64).unwrap());
        assert_eq!(q.scheme("other", 64, 8, 2, true).unwrap(), Scheme::affine(4, 32).unwrap());
        assert_eq!(q.modules().count(), 3);
    }

    #[test]
    fn shapes_win_where_the_configuration_has_no_entry() {
        let q = parse(json!({"quantization": {"bits": 4, "group_size": 32}})).unwrap();
        assert_eq!(q.scheme("x", 128, 32, 2, true).unwrap(), Scheme::affine(8, 64).unwrap());
        let none = Quantization::default();
        assert_eq!(none.scheme("x", 128, 12, 1, true).unwrap(), Scheme::affine(3, 128).unwrap());
    }

    #[test]
    fn contradictions_are_errors() {
        let q =
            parse(json!({"quantization": {"bits": 4, "group_size": 32, "a.b": {"bits": 8}, "c.d": false}}))
                .unwrap();
        let text = q.scheme("a.b", 64, 8, 2, true).unwrap_err();
        assert!(
            text.contains("config says 8 bits in groups of 32, file has 4 bits in groups of 32"),
            "{text}"
        );
        assert!(q.scheme("c.d", 64, 8, 2, true).unwrap_err().contains("config says not quantized"));
        assert!(q.check_dense("a.b").unwrap_err().contains("file has no scales"));
        assert!(q.scheme("x", 64, 7, 2, true).unwrap_err().contains("found 7 words and 2 groups"));
        assert!(q.check_dense("x").is_ok());
    }

    #[test]
    fn illegal_settings_name_the_legal_ones() {
        let cases = [
            (json!({"quantization": {"bits": 7, "group_size": 32}}), "bits 2, 3, 4, 5, 6 or 8"),
            (json!({"quantization": {"bits": 4, "group_size": 33}}), "group size 32, 64 or 128"),
            (json!({"quantization": {"bits": 4, "group_size": 32, "mode": "nf4"}}), "expected affine, mxfp4"),
            (json!({"quantization": {"bits": "4", "group_size": 32}}), "an integer"),
            (json!({"quantization": {"bits": 4}}), "both `bits` and `group_size`"),
            (json!({"quantization": 3}), "an object"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "found \"gptq\""),
        ];
        for (config, expected) in cases {
            let text = parse(config).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn the_hub_copy_of_the_object_is_enough() {
        let q = parse(json!({"quantization_config": {"bits": 8, "group_size": 64}})).unwrap();
        assert_eq!(q.default_scheme(), Some(Scheme::affine(8, 64).unwrap()));
    }
}
