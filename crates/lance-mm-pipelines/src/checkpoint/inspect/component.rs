//! Which component a tensor belongs to, whatever the layout calls it.

use serde::Serialize;

/// A part of a checkpoint that is counted on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// Matrices and biases of the UND expert's layers.
    UndLinears,
    /// Matrices and biases of the GEN expert's layers.
    GenLinears,
    /// The embedding table.
    EmbedTokens,
    /// The output head.
    LmHead,
    /// Norms of the language model, of both experts.
    Norms,
    /// Layers that only generation reads: `vae_in_proj`, `llm2vae`, `time_embedder`, `latent_pos_embed`.
    Latent,
    /// The vision transformer.
    Vit,
    /// The VAE.
    Vae,
    /// Tensors no part of Lance is known to have.
    Other,
}

/// The file a tensor was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Model,
    Vit,
    Vae,
}

const LATENT: [&str; 5] = ["vae_in_proj.", "vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed."];
const VIT: [&str; 3] = ["patch_embed.", "blocks.", "merger."];
/// Prefixes of the vision encoder's names in other layouts.
const VIT_PREFIXES: [&str; 3] = ["vit_model.", "model.visual.", "visual."];
/// Prefixes of the language model's names in other layouts.
const LLM_PREFIXES: [&str; 3] = ["language_model.model.", "language_model.", "model."];

/// The component of a tensor, and its name in MLX's layout.
pub(super) fn classify(source: Source, name: &str) -> (Component, &str) {
    let strip = |prefixes: &[&str]| prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    match source {
        Source::Vae => (Component::Vae, name),
        Source::Vit => vit(strip(&VIT_PREFIXES).unwrap_or(name)),
        Source::Model => match strip(&VIT_PREFIXES) {
            Some(name) => vit(name),
            None => llm(strip(&LLM_PREFIXES).unwrap_or(name)),
        },
    }
}

fn vit(name: &str) -> (Component, &str) {
    let known = VIT.iter().any(|prefix| name.starts_with(prefix)) && !is_inv_freq(name);
    (if known { Component::Vit } else { Component::Other }, name)
}

fn llm(name: &str) -> (Component, &str) {
    let module = name.rsplit('.').nth(1).unwrap_or_default();
    let in_layer = name.starts_with("layers.");
    let component = if is_inv_freq(name) {
        Component::Other
    } else if LATENT.iter().any(|prefix| name.starts_with(prefix)) {
        Component::Latent
    } else if name.starts_with("embed_tokens.") {
        Component::EmbedTokens
    } else if name.starts_with("lm_head.") {
        Component::LmHead
    } else if ["norm.weight", "norm_moe_gen.weight"].contains(&name) || (in_layer && module.contains("norm"))
    {
        Component::Norms
    } else if in_layer {
        if is_gen(name) { Component::GenLinears } else { Component::UndLinears }
    } else {
        Component::Other
    };
    (component, name)
}

/// Whether a tensor belongs to the GEN expert.
pub(super) fn is_gen(name: &str) -> bool {
    name.contains("_moe_gen")
}

/// Rotary frequencies that some files carry and nobody needs.
pub(super) fn is_inv_freq(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_layout_are_classified() {
        use Component::*;
        let cases = [
            ("layers.0.self_attn.q_proj.weight", UndLinears, "layers.0.self_attn.q_proj.weight"),
            ("layers.0.self_attn.q_proj_moe_gen.bias", GenLinears, "layers.0.self_attn.q_proj_moe_gen.bias"),
            ("layers.0.mlp_moe_gen.up_proj.scales", GenLinears, "layers.0.mlp_moe_gen.up_proj.scales"),
            ("layers.0.self_attn.k_norm_moe_gen.weight", Norms, "layers.0.self_attn.k_norm_moe_gen.weight"),
            (
                "language_model.model.layers.1.input_layernorm.weight",
                Norms,
                "layers.1.input_layernorm.weight",
            ),
            ("language_model.model.norm_moe_gen.weight", Norms, "norm_moe_gen.weight"),
            ("language_model.lm_head.weight", LmHead, "lm_head.weight"),
            ("model.embed_tokens.weight", EmbedTokens, "embed_tokens.weight"),
            ("latent_pos_embed.pos_embed", Latent, "latent_pos_embed.pos_embed"),
            ("time_embedder.fc1.weight", Latent, "time_embedder.fc1.weight"),
            ("vit_model.blocks.3.norm1.weight", Vit, "blocks.3.norm1.weight"),
            ("model.visual.merger.ln_q.weight", Vit, "merger.ln_q.weight"),
            ("layers.0.self_attn.rotary_emb.inv_freq", Other, "layers.0.self_attn.rotary_emb.inv_freq"),
            ("foo", Other, "foo"),
        ];
        for (name, component, canonical) in cases {
            assert_eq!(classify(Source::Model, name), (component, canonical), "{name}");
        }
        assert_eq!(classify(Source::Vit, "visual.patch_embed.proj.weight").0, Vit);
        assert_eq!(classify(Source::Vit, "layers.0.x").0, Other);
        assert_eq!(classify(Source::Vae, "anything").0, Vae);
    }
}
