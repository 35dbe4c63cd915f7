//! The forms in which Lance checkpoints exist, and where in a folder their parts lie.
//!
//! One form is read at run time: MLX's, dense or quantized. The others are recognised so that the error can
//! say what they are and what to do.

use lance_mm_tensor::TensorInfo;
use lance_mm_tensor::metadata::shortened;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// Form of a checkpoint's model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointLayout {
    /// MLX names, dense.
    Mlx,
    /// MLX names, some or all matrices packed.
    MlxQuantized,
    /// The names of the original release.
    Upstream,
    /// A third party's F32 export for MLX: upstream names, but for the time embedder.
    MlxF32,
    /// Per-channel torch INT4 of another author: `.qweight`, `.scales`, `.zeros`.
    PerChannelInt4,
    /// NVFP4 of the same author: `.scales_fp8`.
    NvFp4,
    /// The UND expert as a plain Qwen2 model, which has no QK-norms.
    PlainQwen2,
}

impl CheckpointLayout {
    /// Recognises a layout from the tensors of a model file and the whole `config.json`, if there is one.
    ///
    /// # Errors
    /// No known layout: what was expected, and the first five names.
    pub fn recognise(config: Option<&Value>, tensors: &[TensorInfo]) -> std::result::Result<Self, String> {
        let any = |test: &dyn Fn(&str) -> bool| tensors.iter().any(|tensor| test(&tensor.name));
        if any(&|name| name.ends_with(".qweight")) {
            return Ok(Self::PerChannelInt4);
        }
        if any(&|name| name.ends_with(".scales_fp8")) {
            return Ok(Self::NvFp4);
        }
        if any(&|name| name.starts_with("language_model.")) {
            let fc1 = any(&|name| name.starts_with("time_embedder.fc1."));
            return Ok(if fc1 { Self::MlxF32 } else { Self::Upstream });
        }
        // Any layer will do: a file that lacks layer 0 should be told so, not that it is no checkpoint.
        if any(&|name| name.starts_with("layers.") && name.contains(".self_attn.")) {
            let stated =
                |key: &str| config.is_some_and(|config| config.get(key).is_some_and(|v| !v.is_null()));
            let quantized = stated("quantization")
                || stated("quantization_config")
                || any(&|name| name.starts_with("layers.") && name.ends_with(".scales"));
            return Ok(if quantized { Self::MlxQuantized } else { Self::Mlx });
        }
        if any(&|name| name.starts_with("model.layers.")) && !any(&|name| name.contains(".q_norm")) {
            return Ok(Self::PlainQwen2);
        }
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        Err(format!(
            "no known layout: expected tensors such as layers.0.self_attn.q_proj.weight, found {}",
            listed(&names)
        ))
    }

    /// Short description.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Mlx => "MLX layout, dense",
            Self::MlxQuantized => "MLX layout, quantized",
            Self::Upstream => "upstream layout (language_model.* names)",
            Self::MlxF32 => "third-party MLX F32 layout (language_model.* names, time_embedder.fc1)",
            Self::PerChannelInt4 => "per-channel INT4 of another author (.qweight, .scales, .zeros)",
            Self::NvFp4 => "NVFP4 of another author (.scales_fp8)",
            Self::PlainQwen2 => "plain Qwen2 extract (model.layers.* names without QK-norms)",
        }
    }

    /// Whether it can be loaded as it is.
    pub fn loadable(self) -> bool {
        matches!(self, Self::Mlx | Self::MlxQuantized)
    }

    /// Advice for a checkpoint that cannot be loaded as it is; `None` if it can.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::Mlx | Self::MlxQuantized => None,
            Self::Upstream | Self::MlxF32 => Some(
                "convert it to the MLX layout (lance-mm convert SOURCE OUT), or take one that is \
                 (mlx-community/Lance-3B-bf16)",
            ),
            Self::PerChannelInt4 | Self::NvFp4 => {
                Some("not read here: take mlx-community/Lance-3B-AWQ-INT4, or convert the original release")
            }
            Self::PlainQwen2 => Some(
                "refused, without QK-norms its answers would not be Lance's: take \
                 mlx-community/Lance-3B-AWQ-INT4, or convert the original release",
            ),
        }
    }

    /// Refuses a layout that cannot be loaded; `name` is the folder or file.
    ///
    /// # Errors
    /// Description and advice.
    pub fn require_loadable(self, name: &str) -> Result<()> {
        match self.advice() {
            None => Ok(()),
            Some(advice) => {
                let message = format!("{}: {advice}", self.describe());
                Err(Error::Checkpoint { name: name.to_owned(), message })
            }
        }
    }
}

/// The first five of a list, for a message.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    let first: Vec<_> = names.iter().take(5).map(|name| shortened(name.as_ref(), 200)).collect();
    match names.len() {
        0 => "none".to_owned(),
        n if n > first.len() => format!("{} and {} more", first.join(", "), n - first.len()),
        _ => first.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use serde_json::json;

    use super::*;

    fn tensors(names: &[&str]) -> Vec<TensorInfo> {
        let tensor =
            |name: &&str| TensorInfo { name: (*name).into(), dtype: Dtype::BF16, shape: vec![1], bytes: 2 };
        names.iter().map(tensor).collect()
    }

    #[test]
    fn every_layout_is_recognised() {
        let cases: [(&[&str], CheckpointLayout); 9] = [
            (&["embed_tokens.weight", "layers.0.self_attn.q_proj.weight"], CheckpointLayout::Mlx),
            (&["layers.7.self_attn.k_norm.weight"], CheckpointLayout::Mlx),
            (
                &["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.q_proj.scales"],
                CheckpointLayout::MlxQuantized,
            ),
            (&["language_model.model.layers.0.self_attn.q_proj.weight"], CheckpointLayout::Upstream),
            (&["language_model.lm_head.weight", "time_embedder.fc1.weight"], CheckpointLayout::MlxF32),
            (
                &["language_model.model.layers.0.self_attn.q_proj.qweight", "x.scales", "x.zeros"],
                CheckpointLayout::PerChannelInt4,
            ),
            (&["language_model.lm_head.weight", "x.scales_fp8"], CheckpointLayout::NvFp4),
            (&["model.layers.0.self_attn.q_proj.weight"], CheckpointLayout::PlainQwen2),
            (
                &["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.scales"],
                CheckpointLayout::PlainQwen2,
            ),
        ];
        for (names, expected) in cases {
            assert_eq!(CheckpointLayout::recognise(None, &tensors(names)), Ok(expected), "{names:?}");
        }
        let names = tensors(&["layers.0.self_attn.q_proj.weight"]);
        let config = json!({"quantization": {"bits": 4, "group_size": 64}});
        assert_eq!(CheckpointLayout::recognise(Some(&config), &names), Ok(CheckpointLayout::MlxQuantized));
        assert_eq!(
            CheckpointLayout::recognise(Some(&json!({"quantization": null})), &names),
            Ok(CheckpointLayout::Mlx)
        );
    }

    #[test]
    fn unknown_names_are_listed() {
        let error =
            CheckpointLayout::recognise(None, &tensors(&["a", "b", "c", "d", "e", "f", "g"])).unwrap_err();
        assert!(error.ends_with("found a, b, c, d, e and 2 more"), "{error}");
        assert!(CheckpointLayout::recognise(None, &[]).unwrap_err().ends_with("found none"));
        let normed =
            tensors(&["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_norm.weight"]);
        assert!(CheckpointLayout::recognise(None, &normed).is_err());
    }

    #[test]
    fn what_cannot_be_loaded_says_what_to_do() {
        assert!(
            CheckpointLayout::Mlx.require_loadable("x").is_ok()
                && CheckpointLayout::MlxQuantized.require_loadable("x").is_ok()
        );
        let error = CheckpointLayout::Upstream.require_loadable("Lance_3B").unwrap_err().to_string();
        assert!(
            error.starts_with("Lance_3B: upstream layout (language_model.* names): convert it"),
            "{error}"
        );
        let error = CheckpointLayout::PlainQwen2.require_loadable("x").unwrap_err().to_string();
        assert!(error.contains("its answers would not be Lance's"), "{error}");
    }
}
