//! Tensors in memory, to write or to run.

use std::borrow::Cow;
use std::collections::HashMap;

use candle_core::Tensor;
use lance_mm_models::Expert;
use lance_mm_quant::{Matrix, RoundingReport};
use lance_mm_tensor::{AffineWeight, Weights};
use safetensors::{Dtype, View};

use crate::error::{Error, Result};
use crate::layer_quantizer::{ExpertResult, LinearWeight};
use crate::names::Proj;

/// A tensor in memory.
pub(crate) struct StoredTensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl View for StoredTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A tensor to write without a copy.
pub(crate) struct BorrowedTensor<'a>(pub(crate) &'a StoredTensor);

impl View for BorrowedTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.0.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.0.bytes)
    }

    fn data_len(&self) -> usize {
        self.0.bytes.len()
    }
}

/// Adds all tensors of one expert's layer; `dense` converts matrices that are not packed. Returns the reports.
pub(crate) fn store(
    index: usize,
    expert: &ExpertResult,
    dense: fn(&Matrix) -> StoredTensor,
    tensors: &mut HashMap<String, StoredTensor>,
) -> Vec<RoundingReport> {
    let ExpertResult { expert, input_layernorm, post_attention_layernorm, v_bias, linears } = expert;
    tensors.extend(vectors(index, *expert, input_layernorm, post_attention_layernorm, v_bias.as_deref()));
    let mut reports = Vec::new();
    for linear in linears {
        match &linear.weight {
            LinearWeight::Packed(weight) => packed(&linear.name, weight, tensors),
            LinearWeight::Dense(matrix) => {
                drop(tensors.insert(format!("{}.weight", linear.name), dense(matrix)))
            }
        }
        reports.extend(linear.report.clone());
    }
    reports
}

/// The norms and biases of a layer, which take scales.
pub(crate) fn vectors(
    index: usize,
    expert: Expert,
    input_layernorm: &[f32],
    post_attention_layernorm: &[f32],
    v_bias: Option<&[f32]>,
) -> Vec<(String, StoredTensor)> {
    let norm = |name: &str| format!("layers.{index}.{name}{}.weight", expert.suffix());
    let mut vectors = vec![
        (norm("input_layernorm"), f32s(input_layernorm)),
        (norm("post_attention_layernorm"), f32s(post_attention_layernorm)),
    ];
    if let Some(bias) = v_bias {
        vectors.push((format!("{}.bias", Proj::VProj.path(index, expert)), f32s(bias)));
    }
    vectors
}

/// All values of an f32 tensor.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Adds a packed module under its three names.
pub(crate) fn packed(name: &str, weight: &AffineWeight, tensors: &mut HashMap<String, StoredTensor>) {
    let (rows, scheme) = (weight.n_rows(), weight.scheme());
    let groups = weight.n_cols() / scheme.group_size();
    let words = weight.word_bytes().to_vec();
    let shape = vec![rows, words.len() / 4 / rows];
    tensors.insert(format!("{name}.weight"), StoredTensor { dtype: Dtype::U32, shape, bytes: words });
    for (part, bytes) in [("scales", weight.scale_bytes()), ("biases", weight.bias_bytes())] {
        let stored = StoredTensor { dtype: Dtype::BF16, shape: vec![rows, groups], bytes: bytes.to_vec() };
        tensors.insert(format!("{name}.{part}"), stored);
    }
}

/// A vector in f32.
pub(crate) fn f32s(values: &[f32]) -> StoredTensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    StoredTensor { dtype: Dtype::F32, shape: vec![values.len()], bytes }
}

/// A matrix in f32, to measure with.
pub(crate) fn f32_matrix(matrix: &Matrix) -> StoredTensor {
    StoredTensor { shape: vec![matrix.n_rows(), matrix.n_cols()], ..f32s(matrix.values()) }
}

/// A matrix rounded to bf16.
pub(crate) fn bf16s(matrix: &Matrix) -> StoredTensor {
    let bytes = matrix.values().iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    StoredTensor { dtype: Dtype::BF16, shape: vec![matrix.n_rows(), matrix.n_cols()], bytes }
}

/// Tensors as a weights file.
pub(crate) fn in_memory(tensors: &HashMap<String, StoredTensor>) -> Result<Weights> {
    let views = tensors.iter().map(|(name, tensor)| (name, BorrowedTensor(tensor)));
    let name = "changed weights";
    let bytes = safetensors::serialize(views, None).map_err(|error| Error::file(name, error))?;
    Ok(Weights::from_vec(name, bytes)?)
}
