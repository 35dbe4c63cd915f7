//! The quantizable parts of a layer, under the names of the published layout.

use lance_mm_models::{Expert, LinearInput};
use serde::{Deserialize, Serialize};

/// A linear layer of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names of the checkpoint")]
pub enum Proj {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl Proj {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Self; 7] =
        [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// Its input.
    pub fn input(self) -> LinearInput {
        match self {
            Self::QProj | Self::KProj | Self::VProj => LinearInput::Normed,
            Self::OProj => LinearInput::Heads,
            Self::GateProj | Self::UpProj => LinearInput::Attended,
            Self::DownProj => LinearInput::Gated,
        }
    }

    /// The module's path: `layers.3.self_attn.q_proj_moe_gen`, but `layers.3.mlp_moe_gen.gate_proj`.
    pub fn path(self, layer: usize, expert: Expert) -> String {
        let suffix = expert.suffix();
        let (attention, name) = match self {
            Self::QProj => (true, "q_proj"),
            Self::KProj => (true, "k_proj"),
            Self::VProj => (true, "v_proj"),
            Self::OProj => (true, "o_proj"),
            Self::GateProj => (false, "gate_proj"),
            Self::UpProj => (false, "up_proj"),
            Self::DownProj => (false, "down_proj"),
        };
        if attention {
            format!("layers.{layer}.self_attn.{name}{suffix}")
        } else {
            format!("layers.{layer}.mlp{suffix}.{name}")
        }
    }
}

/// Name of an input of a layer's expert in errors: `layers.3.mlp.gated_moe_gen`.
pub(crate) fn input_path(input: LinearInput, layer: usize, expert: Expert) -> String {
    format!("layers.{layer}.{}{}", input.name(), expert.suffix())
}

/// A producer and the consumers of its channels. Dividing a channel in the producer and multiplying it in the consumers
/// leaves the model's function unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FusionGroup {
    /// `input_layernorm` to q, k, v.
    NormQkv,
    /// v to o, channels shared by the query heads of a key/value head, and by both experts: a query of one
    /// attends to values of the other.
    VO,
    /// `post_attention_layernorm` to gate, up.
    NormGateUp,
    /// up to down; gate is not scaled, SiLU lies behind it.
    UpDown,
    /// The last norm to `lm_head`.
    NormHead,
}

impl FusionGroup {
    /// The fusion groups of a layer, in the order in which they are searched and fused.
    pub const LAYER: [Self; 4] = [Self::NormQkv, Self::VO, Self::NormGateUp, Self::UpDown];

    /// `norm_qkv`, `v_o`, ..
    pub fn name(self) -> &'static str {
        match self {
            Self::NormQkv => "norm_qkv",
            Self::VO => "v_o",
            Self::NormGateUp => "norm_gate_up",
            Self::UpDown => "up_down",
            Self::NormHead => "norm_head",
        }
    }

    /// The consumers within a layer; none for the fusion group of the head.
    pub fn consumers(self) -> &'static [Proj] {
        match self {
            Self::NormQkv => &[Proj::QProj, Proj::KProj, Proj::VProj],
            Self::VO => &[Proj::OProj],
            Self::NormGateUp => &[Proj::GateProj, Proj::UpProj],
            Self::UpDown => &[Proj::DownProj],
            Self::NormHead => &[],
        }
    }

    /// The module whose output channels are divided.
    pub fn producer(self, layer: usize, expert: Expert) -> String {
        let suffix = expert.suffix();
        match self {
            Self::NormQkv => format!("layers.{layer}.input_layernorm{suffix}"),
            Self::VO => Proj::VProj.path(layer, expert),
            Self::NormGateUp => format!("layers.{layer}.post_attention_layernorm{suffix}"),
            Self::UpDown => Proj::UpProj.path(layer, expert),
            Self::NormHead => format!("norm{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_checkpoint() {
        let names = [
            (Proj::QProj.path(3, Expert::Und), "layers.3.self_attn.q_proj"),
            (Proj::OProj.path(3, Expert::Gen), "layers.3.self_attn.o_proj_moe_gen"),
            (Proj::DownProj.path(0, Expert::Und), "layers.0.mlp.down_proj"),
            (Proj::GateProj.path(35, Expert::Gen), "layers.35.mlp_moe_gen.gate_proj"),
            (FusionGroup::NormQkv.producer(1, Expert::Gen), "layers.1.input_layernorm_moe_gen"),
            (FusionGroup::NormGateUp.producer(1, Expert::Und), "layers.1.post_attention_layernorm"),
            (FusionGroup::VO.producer(1, Expert::Gen), "layers.1.self_attn.v_proj_moe_gen"),
            (input_path(LinearInput::Gated, 2, Expert::Gen), "layers.2.mlp.gated_moe_gen"),
        ];
        for (found, expected) in names {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn every_linear_is_consumed_by_one_pair_of_its_input() {
        let mut seen: Vec<Proj> = Vec::new();
        for (group, input) in FusionGroup::LAYER.iter().zip(LinearInput::ALL) {
            assert!(group.consumers().iter().all(|p| p.input() == input));
            seen.extend(group.consumers());
        }
        assert_eq!(seen, Proj::ALL);
    }
}
