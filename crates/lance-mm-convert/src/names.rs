//! The names of the language model and the vision encoder, upstream and in the MLX layout.

/// A tensor of an upstream model file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// A tensor of the language model, under its MLX name.
    Llm(String),
    /// A tensor of the vision encoder, which is in the same file.
    Vit(String),
    /// A table that every program computes.
    Computed,
    /// A tensor of nothing known.
    Unknown,
}

/// Upstream and MLX prefixes of the language model. `time_embedder.fc*` is a third party's spelling.
const PREFIXES: [(&str, &str); 9] = [
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", ""),
    ("latent_pos_embed.", "latent_pos_embed."),
    ("vae2llm.", "vae_in_proj.vae2llm."),
    ("llm2vae.", "llm2vae."),
    ("time_embedder.mlp.0.", "time_embedder.proj_in."),
    ("time_embedder.mlp.2.", "time_embedder.proj_out."),
    ("time_embedder.fc1.", "time_embedder.proj_in."),
    ("time_embedder.fc2.", "time_embedder.proj_out."),
];

/// First parts of MLX names.
const MLX: [&str; 8] = [
    "embed_tokens.",
    "layers.",
    "norm",
    "lm_head.",
    "latent_pos_embed.",
    "vae_in_proj.",
    "llm2vae.",
    "time_embedder.",
];

/// Recognises a tensor of an upstream file.
pub(crate) fn from_upstream(name: &str) -> Name {
    if name.ends_with("rotary_emb.inv_freq") {
        return Name::Computed;
    }
    if let Some(rest) = name.strip_prefix("vit_model.") {
        return Name::Vit(rest.to_owned());
    }
    let mapped = PREFIXES.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)));
    mapped.map_or(Name::Unknown, Name::Llm)
}

/// Recognises a tensor of an MLX model file.
pub(crate) fn from_mlx(name: &str) -> Name {
    match name {
        _ if name.ends_with("rotary_emb.inv_freq") => Name::Computed,
        _ if MLX.iter().any(|prefix| name.starts_with(prefix)) => Name::Llm(name.to_owned()),
        _ => Name::Unknown,
    }
}

/// The upstream name of a tensor of the language model.
pub(crate) fn to_upstream(name: &str) -> String {
    let spelt = |prefix: &&(&str, &str)| !prefix.1.is_empty() && name.starts_with(prefix.1);
    match PREFIXES.iter().find(spelt) {
        Some((upstream, mlx)) => format!("{upstream}{}", &name[mlx.len()..]),
        None => format!("language_model.model.{name}"),
    }
}

/// The name of a tensor in a vision encoder's own file; stock Qwen2.5-VL files put `visual.` before it.
pub(crate) fn vit(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name).strip_prefix("visual.").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_there_and_back() {
        let cases = [
            ("language_model.model.embed_tokens.weight", "embed_tokens.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("language_model.model.norm_moe_gen.weight", "norm_moe_gen.weight"),
            (
                "language_model.model.layers.35.self_attn.q_proj_moe_gen.bias",
                "layers.35.self_attn.q_proj_moe_gen.bias",
            ),
            (
                "language_model.model.layers.0.mlp_moe_gen.up_proj.weight",
                "layers.0.mlp_moe_gen.up_proj.weight",
            ),
            ("latent_pos_embed.pos_embed", "latent_pos_embed.pos_embed"),
            ("vae2llm.weight", "vae_in_proj.vae2llm.weight"),
            ("llm2vae.bias", "llm2vae.bias"),
            ("time_embedder.mlp.0.weight", "time_embedder.proj_in.weight"),
            ("time_embedder.mlp.2.bias", "time_embedder.proj_out.bias"),
        ];
        for (upstream, mlx) in cases {
            assert_eq!(from_upstream(upstream), Name::Llm(mlx.into()));
            assert_eq!(from_mlx(mlx), Name::Llm(mlx.into()));
            assert_eq!(to_upstream(mlx), upstream);
        }
    }

    #[test]
    fn tables_vision_encoder_and_unknown_names() {
        assert_eq!(from_upstream("time_embedder.fc2.bias"), Name::Llm("time_embedder.proj_out.bias".into()));
        assert_eq!(
            from_upstream("vit_model.blocks.0.norm1.weight"),
            Name::Vit("blocks.0.norm1.weight".into())
        );
        assert_eq!(
            from_upstream("language_model.model.layers.0.self_attn.rotary_emb.inv_freq"),
            Name::Computed
        );
        assert_eq!((from_upstream("ema_decay"), from_mlx("ema_decay")), (Name::Unknown, Name::Unknown));
        for name in ["visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"] {
            assert_eq!(vit(name), "blocks.0.norm1.weight");
        }
        assert_eq!(vit("model.blocks.0.norm1.weight"), "model.blocks.0.norm1.weight");
    }
}
