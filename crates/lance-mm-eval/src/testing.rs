//! The nano checkpoint in bf16, of which the bundled one is a quantization, and the demo images.

use lance_mm_pipelines::{Checkpoint, CheckpointBytes, Lance};
use lance_mm_tensor::ActivationPrecision;

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

/// The nano model with tensors of the language model changed; values are widened to f32.
pub(crate) fn changed(change: impl Fn(&str, &mut [f32], &[usize])) -> Lance {
    let file = safetensors::SafeTensors::deserialize(NANO.model).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let mut values: Vec<f32> = match view.dtype() {
            safetensors::Dtype::F32 => {
                view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            _ => {
                let widened = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                view.data().as_chunks().0.iter().map(widened).collect()
            }
        };
        change(&name, &mut values, view.shape());
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((name, view.shape().to_vec(), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    let model = safetensors::serialize(views, None).unwrap().leak();
    let files = CheckpointBytes { model, ..NANO };
    Lance::new(Checkpoint::in_memory(&files).unwrap().with_activations(ActivationPrecision::Split)).unwrap()
}

/// The nano model with NaN in its final norm.
pub(crate) fn broken() -> Lance {
    changed(|name, values, _| {
        if name == "norm.weight" {
            values[0] = f32::NAN;
        }
    })
}
