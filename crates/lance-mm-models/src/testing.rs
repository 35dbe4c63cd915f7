//! Checkpoints with random weights for the tests of this crate.

use std::collections::HashMap;

use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{ActivationPrecision, Error, Weights};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::{Config, Experts, LatentLayers, Llm, Vae, VaeConfig, Vit};

pub(crate) type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

pub(crate) fn config() -> Config {
    Config::from_json(crate::config::tests::toy().to_string().as_bytes()).unwrap()
}

/// Seeded values for every tensor that `load` asks for.
fn tensors(load: impl Fn(&Weights) -> Result<(), Error>) -> Tensors {
    let with_values = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let n: usize = shape.iter().product();
        let scale = if shape.len() == 1 { 1.0 } else { 2.0 / (n as f32 / shape[0] as f32).sqrt() };
        (name, shape, seeded(n, i as u64).iter().map(|v| v * scale).collect())
    };
    crate::required(load).unwrap().into_iter().enumerate().map(with_values).collect()
}

pub(crate) fn llm_tensors(config: &Config) -> Tensors {
    tensors(|weights| Llm::load(config, weights, Experts::Both).map(drop))
}

pub(crate) fn latent_tensors(config: &Config) -> Tensors {
    tensors(|weights| LatentLayers::load(config, weights).map(drop))
}

pub(crate) fn vit_tensors(config: &Config) -> Tensors {
    tensors(|weights| Vit::load(&config.vision, weights).map(drop))
}

pub(crate) fn vae_tensors(config: &VaeConfig) -> Tensors {
    tensors(|weights| Vae::load(config, weights).map(drop))
}

/// Weights as if read from a file with these tensors, activations nearly exact.
pub(crate) fn weights(tensors: &Tensors) -> Weights {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None::<HashMap<String, String>>).unwrap();
    Weights::from_static("test", file.leak()).unwrap().with_activation_precision(ActivationPrecision::Split)
}
