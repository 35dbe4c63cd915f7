//! `config.json`, read strictly: what the networks need, checked once.

use lance_mm_tensor::metadata::{Bounded, Object, parse_json, shortened};
use lance_mm_tensor::{Error, Result};
use serde::Deserialize;

use crate::sequence::{SequenceLayout, SpecialIds};

/// The language model and, inside it, the vision transformer, as `config.json` describes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding table and the output head; more than the tokenizer knows.
    pub vocab_size: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Channel pairs of a head that turn with t, h and w.
    pub mrope_section: [usize; 3],
    /// Rows a sequence may have, prompt and answer together.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding table when the file holds no `lm_head`.
    pub tie_word_embeddings: bool,
    /// Token ids with a meaning for the layout of a prompt.
    pub special_ids: SpecialIds,
    /// The vision transformer.
    pub vision: VitConfig,
    /// Rows and columns that the table of latent positions has for one frame (`max_latent_size`, 64 when
    /// the file does not say).
    pub max_latent_size: usize,
    /// Whether the checkpoint says that it holds the UND expert only (`lance_mm.experts`).
    pub und_only: bool,
}

/// The vision transformer (`vision_config`).
#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    /// Blocks.
    pub depth: usize,
    /// Width.
    pub hidden_size: usize,
    /// Heads.
    pub num_heads: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Width of a merged output row: the language model's `hidden_size`.
    pub out_hidden_size: usize,
    /// Pixels a patch is high and wide.
    pub patch_size: usize,
    /// Frames a patch is deep.
    pub temporal_patch_size: usize,
    /// Patches a merge group is high and wide.
    pub spatial_merge_size: usize,
    /// Pixels a window is high and wide.
    pub window_size: usize,
    /// Blocks that attend to a whole frame instead of windows.
    pub fullatt_block_indexes: Vec<usize>,
    /// Colour channels.
    pub in_channels: usize,
    /// Position steps per second of video, one second a frame pair.
    pub tokens_per_second: usize,
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Object<RawRope>>,
    /// Newer files' name of `rope_scaling`; a file may have both.
    rope_parameters: Option<Object<RawRope>>,
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    vision_start_token_id: u32,
    vision_end_token_id: u32,
    video_token_id: u32,
    vision_config: Object<RawVit>,
    #[serde(default = "sixty_four")]
    max_latent_size: usize,
    #[serde(default)]
    lance_mm: Object<RawLanceMm>,
}

#[derive(Deserialize)]
struct RawRope {
    r#type: Option<String>,
    /// Newer files' name of `type`; a file may have both.
    rope_type: Option<String>,
    mrope_section: [usize; 3],
    rope_theta: Option<f64>,
}

#[derive(Default, Deserialize)]
struct RawLanceMm {
    experts: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawVit {
    depth: usize,
    hidden_size: usize,
    num_heads: usize,
    intermediate_size: usize,
    out_hidden_size: usize,
    patch_size: usize,
    temporal_patch_size: usize,
    spatial_merge_size: usize,
    window_size: usize,
    fullatt_block_indexes: Bounded<usize, MAX_LAYERS>,
    in_channels: Option<usize>,
    /// Another name of `in_channels`; a file may have both.
    in_chans: Option<usize>,
    tokens_per_second: usize,
}

fn sixty_four() -> usize {
    64
}

/// Bound of every size in a configuration: products of three stay far from overflow.
const MAX_SIZE: usize = 1 << 20;
/// Bound of the number of layers and blocks.
const MAX_LAYERS: usize = 1 << 10;

impl Config {
    /// Reads and checks `config.json`. Fields it does not know are ignored.
    ///
    /// # Errors
    /// No JSON, a missing field, a size of zero or beyond all reason, heads that do not divide, sections
    /// that do not fill half a head.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let raw: Raw = parse_json("config.json", json)?;
        let rope = match (raw.rope_scaling, raw.rope_parameters) {
            (Some(Object(older)), Some(Object(newer))) => {
                older.checked("rope_scaling")?.same(newer.checked("rope_parameters")?)?
            }
            (Some(Object(older)), None) => older.checked("rope_scaling")?,
            (None, Some(Object(newer))) => newer.checked("rope_parameters")?,
            (None, None) => return Err(setting("rope_scaling", "an object with mrope_section", "none")),
        };
        let rope_theta = raw.rope_theta.or(rope.theta);
        let config = Self {
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads,
            intermediate_size: raw.intermediate_size,
            vocab_size: raw.vocab_size,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: rope_theta.ok_or_else(|| setting("rope_theta", "a number", "none"))?,
            mrope_section: rope.mrope_section,
            max_position_embeddings: raw.max_position_embeddings,
            tie_word_embeddings: raw.tie_word_embeddings,
            special_ids: SpecialIds {
                vision_start: raw.vision_start_token_id,
                vision_end: raw.vision_end_token_id,
                video: raw.video_token_id,
            },
            vision: raw.vision_config.0.checked()?,
            max_latent_size: raw.max_latent_size,
            und_only: raw.lance_mm.0.experts.is_some_and(|experts| experts == ["und"]),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        size("hidden_size", self.hidden_size, MAX_SIZE)?;
        size("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        size("num_attention_heads", self.num_attention_heads, MAX_SIZE)?;
        size("num_key_value_heads", self.num_key_value_heads, MAX_SIZE)?;
        size("intermediate_size", self.intermediate_size, MAX_SIZE)?;
        size("vocab_size", self.vocab_size, MAX_SIZE)?;
        size("max_position_embeddings", self.max_position_embeddings, 1 << 24)?;
        size("max_latent_size", self.max_latent_size, 1 << 10)?;
        positive("rms_norm_eps", self.rms_norm_eps, 1.0)?;
        positive("rope_theta", self.rope_theta, 1e12)?;
        divides("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)?;
        divides(
            "num_attention_heads",
            self.num_attention_heads,
            "num_key_value_heads",
            self.num_key_value_heads,
        )?;
        let half: Option<usize> = self.mrope_section.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        if half.and_then(|n| n.checked_mul(2)) != Some(self.head_dim()) {
            let expected = format!("three numbers that add up to half of the head width {}", self.head_dim());
            return Err(setting("rope_scaling.mrope_section", expected, format!("{:?}", self.mrope_section)));
        }
        if self.vision.out_hidden_size != self.hidden_size {
            let found = self.vision.out_hidden_size;
            return Err(setting(
                "vision_config.out_hidden_size",
                format!("hidden_size {}", self.hidden_size),
                found,
            ));
        }
        let ids = self.special_ids;
        for (name, id) in [
            ("vision_start_token_id", ids.vision_start),
            ("vision_end_token_id", ids.vision_end),
            ("video_token_id", ids.video),
        ] {
            if id as usize >= self.vocab_size {
                return Err(setting(name, format!("an id below vocab_size {}", self.vocab_size), id));
            }
        }
        Ok(())
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Settings by which sequences are laid out.
    pub fn layout(&self) -> SequenceLayout {
        SequenceLayout { special_ids: self.special_ids, t_step: self.vision.tokens_per_second as u32 }
    }
}

/// A checked [`RawRope`].
struct Rope {
    mrope_section: [usize; 3],
    theta: Option<f64>,
}

impl RawRope {
    fn checked(self, name: &str) -> Result<Rope> {
        for (part, kind) in [("type", self.r#type), ("rope_type", self.rope_type)] {
            if let Some(kind) = kind.filter(|kind| kind != "mrope" && kind != "default") {
                return Err(setting(&format!("{name}.{part}"), "mrope", kind));
            }
        }
        Ok(Rope { mrope_section: self.mrope_section, theta: self.rope_theta })
    }
}

impl Rope {
    /// This, where `rope_scaling` says it, if `rope_parameters` says nothing else.
    fn same(self, newer: Self) -> Result<Self> {
        if newer.mrope_section != self.mrope_section {
            let expected = format!("{:?} as in rope_scaling", self.mrope_section);
            return Err(setting(
                "rope_parameters.mrope_section",
                expected,
                format!("{:?}", newer.mrope_section),
            ));
        }
        match (self.theta, newer.theta) {
            (Some(theta), Some(found)) if theta != found => {
                Err(setting("rope_parameters.rope_theta", format!("{theta} as in rope_scaling"), found))
            }
            (theta, newer) => Ok(Self { theta: theta.or(newer), ..self }),
        }
    }
}

/// Colour channels.
const IN_CHANNELS: usize = 3;

impl RawVit {
    fn checked(self) -> Result<VitConfig> {
        size("vision_config.depth", self.depth, MAX_LAYERS)?;
        for (name, value) in [
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.num_heads", self.num_heads),
            ("vision_config.intermediate_size", self.intermediate_size),
            ("vision_config.out_hidden_size", self.out_hidden_size),
        ] {
            size(name, value, MAX_SIZE)?;
        }
        size("vision_config.window_size", self.window_size, 1 << 12)?;
        size("vision_config.tokens_per_second", self.tokens_per_second, 1 << 10)?;
        for (name, value, expected) in [
            ("vision_config.patch_size", self.patch_size, 14),
            ("vision_config.temporal_patch_size", self.temporal_patch_size, 2),
            ("vision_config.spatial_merge_size", self.spatial_merge_size, 2),
            ("vision_config.in_channels", self.in_channels.unwrap_or(IN_CHANNELS), IN_CHANNELS),
            ("vision_config.in_chans", self.in_chans.unwrap_or(IN_CHANNELS), IN_CHANNELS),
        ] {
            // The preparation of pictures is written for these; no Lance or Qwen2.5-VL checkpoint differs.
            if value != expected {
                return Err(setting(name, expected, value));
            }
        }
        divides("vision_config.hidden_size", self.hidden_size, "4 · num_heads", 4 * self.num_heads)?;
        divides("vision_config.window_size", self.window_size, "patch_size · spatial_merge_size", 28)?;
        if let Some(index) = self.fullatt_block_indexes.0.iter().find(|i| **i >= self.depth) {
            let expected = format!("indexes below depth {}", self.depth);
            return Err(setting("vision_config.fullatt_block_indexes", expected, index));
        }
        Ok(VitConfig {
            depth: self.depth,
            hidden_size: self.hidden_size,
            num_heads: self.num_heads,
            intermediate_size: self.intermediate_size,
            out_hidden_size: self.out_hidden_size,
            patch_size: self.patch_size,
            temporal_patch_size: self.temporal_patch_size,
            spatial_merge_size: self.spatial_merge_size,
            window_size: self.window_size,
            fullatt_block_indexes: self.fullatt_block_indexes.0,
            in_channels: IN_CHANNELS,
            tokens_per_second: self.tokens_per_second,
        })
    }
}

impl VitConfig {
    /// Values of a patch: channels, frames, rows, columns.
    pub fn patch_width(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Merge groups a window is high and wide.
    pub fn window_groups(&self) -> usize {
        self.window_size / (self.patch_size * self.spatial_merge_size)
    }
}

fn setting(name: &str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Setting {
        name: format!("config.json: {name}"),
        expected: expected.to_string(),
        found: shortened(&found.to_string(), MAX_FOUND).into_owned(),
    }
}

/// Characters of a value that a message repeats.
const MAX_FOUND: usize = 100;

fn size(name: &str, value: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(setting(name, format!("a number from 1 to {max}"), value))
    }
}

fn positive(name: &str, value: f64, max: f64) -> Result<()> {
    let is_legal = value > 0.0 && value <= max;
    if is_legal { Ok(()) } else { Err(setting(name, format!("a positive number up to {max}"), value)) }
}

fn divides(name: &str, value: usize, by_name: &str, by: usize) -> Result<()> {
    if value.is_multiple_of(by) {
        Ok(())
    } else {
        Err(setting(name, format!("a multiple of {by_name} {by}"), value))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A small legal configuration.
    pub(crate) fn toy() -> Value {
        json!({
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 48, "vocab_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "max_position_embeddings": 1000, "vision_start_token_id": 60, "vision_end_token_id": 61,
            "video_token_id": 62, "max_latent_size": 4,
            "vision_config": {
                "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 20, "out_hidden_size": 32,
                "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
                "fullatt_block_indexes": [1], "in_chans": 3, "tokens_per_second": 2
            }
        })
    }

    fn read(value: &Value) -> Result<Config> {
        Config::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn a_legal_configuration_is_read() {
        let config = read(&toy()).unwrap();
        assert_eq!(
            (config.head_dim(), config.vision.patch_width(), config.vision.window_groups()),
            (8, 1176, 4)
        );
        assert!(!config.und_only);
        let mut newer = toy();
        newer["rope_parameters"] = newer["rope_scaling"].take();
        newer.as_object_mut().unwrap().remove("rope_scaling");
        newer["lance_mm"] = json!({"experts": ["und"]});
        assert!(read(&newer).unwrap().und_only);
    }

    #[test]
    fn a_field_may_stand_there_by_both_of_its_names() {
        let mut both = toy();
        both["rope_scaling"]["rope_type"] = json!("default");
        both["rope_parameters"] = both["rope_scaling"].clone();
        both["rope_parameters"]["rope_theta"] = json!(1e6);
        both["vision_config"]["in_channels"] = json!(3);
        assert_eq!(read(&both).unwrap().mrope_section, [1, 1, 2]);
        both.as_object_mut().unwrap().remove("rope_theta");
        assert_eq!(read(&both).unwrap().rope_theta, 1e6);
        for (pointer, value, expected) in [
            ("/rope_scaling/rope_type", json!("yarn"), "rope_scaling.rope_type: expected mrope, found yarn"),
            (
                "/rope_parameters/mrope_section",
                json!([2, 1, 1]),
                "rope_parameters.mrope_section: expected [1, 1, 2] as in rope_scaling, found [2, 1, 1]",
            ),
            ("/vision_config/in_channels", json!(4), "vision_config.in_channels: expected 3, found 4"),
            ("/vision_config/in_chans", json!(1), "vision_config.in_chans: expected 3, found 1"),
        ] {
            let mut config = both.clone();
            *config.pointer_mut(pointer).unwrap() = value;
            let text = read(&config).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("/hidden_size", json!(0), "hidden_size: expected a number from 1 to 1048576, found 0"),
            (
                "/hidden_size",
                json!(33),
                "hidden_size: expected a multiple of num_attention_heads 4, found 33",
            ),
            ("/num_key_value_heads", json!(3), "a multiple of num_key_value_heads 3, found 4"),
            ("/num_hidden_layers", json!(1u64 << 40), "num_hidden_layers: expected a number from 1 to 1024"),
            ("/rope_scaling/mrope_section", json!([1, 1, 3]), "half of the head width 8, found [1, 1, 3]"),
            ("/rope_scaling/mrope_section", json!([usize::MAX, 1, 3]), "half of the head width 8"),
            ("/rope_scaling/type", json!("yarn"), "rope_scaling.type: expected mrope, found yarn"),
            ("/rms_norm_eps", json!(-1.0), "rms_norm_eps: expected a positive number"),
            ("/vision_config/out_hidden_size", json!(16), "expected hidden_size 32, found 16"),
            ("/vision_config/patch_size", json!(16), "patch_size: expected 14, found 16"),
            ("/vision_config/fullatt_block_indexes", json!([2]), "indexes below depth 2, found 2"),
            ("/vision_config/num_heads", json!(3), "a multiple of 4 · num_heads 12"),
            ("/video_token_id", json!(64), "an id below vocab_size 64, found 64"),
            (
                "/vocab_size",
                json!("many"),
                "config.json: vocab_size: invalid type: string \"many\", expected usize",
            ),
            ("/hidden_size", json!(-1), "hidden_size: invalid value: integer `-1`"),
            ("/hidden_size", json!(1e300), "hidden_size: invalid type: floating point"),
            ("/num_hidden_layers", json!(1u64 << 63), "num_hidden_layers: expected a number from 1 to 1024"),
            ("/rms_norm_eps", json!(1e300), "rms_norm_eps: expected a positive number up to 1"),
            ("/rms_norm_eps", json!(null), "rms_norm_eps: invalid type: null"),
            ("/rope_theta", json!("1e6"), "rope_theta: invalid type: string"),
            ("/rope_scaling", json!(["mrope"]), "rope_scaling: invalid type: sequence, expected an object"),
            ("/rope_scaling/mrope_section", json!([1, 1]), "rope_scaling.mrope_section: invalid length 2"),
            ("/vision_config", json!([1, 2]), "vision_config: invalid type: sequence, expected an object"),
            ("/vision_config/depth", json!("2"), "vision_config.depth: invalid type: string"),
            (
                "/vision_config/depth",
                json!(u64::MAX),
                "vision_config.depth: expected a number from 1 to 1024",
            ),
            ("/vision_config/window_size", json!(28 << 12), "window_size: expected a number from 1 to 4096"),
            ("/vision_config/fullatt_block_indexes", json!({}), "fullatt_block_indexes: invalid type: map"),
            (
                "/vision_config/fullatt_block_indexes",
                json!(vec![1; 1025]),
                "fullatt_block_indexes: invalid length 1025, expected a list of at most 1024 elements",
            ),
            ("/tie_word_embeddings", json!("no"), "tie_word_embeddings: invalid type: string"),
            ("/lance_mm", json!([null]), "lance_mm: invalid type: sequence, expected an object"),
            ("/lance_mm", json!({"experts": "und"}), "lance_mm.experts: invalid type: string"),
            ("/max_latent_size", json!(0), "max_latent_size: expected a number from 1 to 1024, found 0"),
        ];
        for (pointer, value, expected) in cases {
            let mut config = toy();
            config["tie_word_embeddings"] = false.into();
            config["lance_mm"] = json!({});
            *config.pointer_mut(pointer).unwrap() = value;
            let text = read(&config).unwrap_err().to_string();
            assert!(text.contains(expected) && text.contains("config.json"), "{text}, expected {expected}");
        }
        let mut config = toy();
        config.as_object_mut().unwrap().remove("hidden_size");
        assert!(read(&config).unwrap_err().to_string().contains("missing field `hidden_size`"));
        assert!(Config::from_json(b"not json").is_err() && Config::from_json(b"[]").is_err());
        let text = toy().to_string();
        for bad in ["NaN", "1e999", "-"] {
            assert!(Config::from_json(text.replace("1e-6", bad).as_bytes()).is_err(), "{bad}");
        }
        let long = text.replace("\"mrope\"", &format!("\"{}\"", "x".repeat(100_000)));
        assert!(Config::from_json(long.as_bytes()).unwrap_err().to_string().len() < 600);
    }
}
