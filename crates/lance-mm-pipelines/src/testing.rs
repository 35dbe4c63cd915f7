//! The bundled nano checkpoint for the tests of this crate.

use crate::{Checkpoint, Files, Tokenizer};

pub(crate) const NANO: Files = Files {
    name: "nano",
    config: lance_mm_nano::CONFIG,
    generation_config: lance_mm_nano::GENERATION_CONFIG,
    tokenizer: lance_mm_nano::TOKENIZER,
    model: lance_mm_nano::MODEL,
    vit: lance_mm_nano::VIT,
};

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(NANO.tokenizer, "nano").unwrap()
}

pub(crate) fn checkpoint() -> Checkpoint {
    Checkpoint::in_memory(&NANO).unwrap()
}
