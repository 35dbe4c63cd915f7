//! The nano checkpoint in bf16, of which the bundled one is a quantization, and the demo images.

use lance_mm_pipelines::{Checkpoint, CheckpointBytes};

use crate::dataset::{Dataset, Sample};

pub(crate) const NANO: CheckpointBytes = CheckpointBytes {
    name: "nano",
    config: include_bytes!("../../../tests/fixtures/nano-bf16/config.json"),
    generation_config: lance_mm_nano::GENERATION_CONFIG,
    tokenizer: lance_mm_nano::TOKENIZER,
    model: include_bytes!("../../../tests/fixtures/nano-bf16/model.safetensors"),
    vit: lance_mm_nano::VIT,
};

pub(crate) fn checkpoint() -> Checkpoint {
    Checkpoint::in_memory(&NANO).unwrap()
}

/// The demo images with their questions.
pub(crate) fn demos() -> Dataset {
    let sample =
        |demo: &lance_mm_nano::Demo| Sample::of_image(demo.file, demo.png, demo.question, demo.answer);
    Dataset { name: "demos".into(), samples: lance_mm_nano::DEMOS.iter().map(sample).collect() }
}
