//! The nano checkpoint in bf16, of which the bundled one is a quantization, for the tests of this crate.

use crate::{Checkpoint, CheckpointBytes, Tokenizer};

pub(crate) const NANO: CheckpointBytes = CheckpointBytes {
    name: "nano",
    config: include_bytes!("../../../tests/fixtures/nano-bf16/config.json"),
    generation_config: lance_mm_nano::GENERATION_CONFIG,
    tokenizer: lance_mm_nano::TOKENIZER,
    model: include_bytes!("../../../tests/fixtures/nano-bf16/model.safetensors"),
    vit: lance_mm_nano::VIT,
};

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(NANO.tokenizer, "nano").unwrap()
}

pub(crate) fn checkpoint() -> Checkpoint {
    Checkpoint::in_memory(&NANO).unwrap()
}
