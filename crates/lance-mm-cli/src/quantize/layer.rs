//! Quantizing one layer, the embedding and the head; each result is a file of the work folder.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::Tensor;
use lance_mm::Checkpoint;
use lance_mm::models::Config;
use lance_mm::quant::{
    Expert, ExpertResult, ExpertWeights, Form, Heads, LayerWeights, LinearReport, Matrix, PairReport, Proj,
    Recipe, Rows, SiteRows, quantize_head, quantize_layer, quantize_linear,
};
use lance_mm::tensor::{AffineWeight, Weight, Weights};
use safetensors::{Dtype, View};
use serde::Serialize;

use super::scheme::Schemes;
use super::workdir::WorkDir;

/// A tensor that is ready to be written.
pub(super) struct Stored {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl View for Stored {
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

/// What is said of a part in the report.
#[derive(Default, Serialize)]
struct Part {
    pairs: Vec<PairReport>,
    linears: Vec<LinearReport>,
}

pub(super) fn layer_name(index: usize) -> String {
    format!("layer_{index:03}")
}

/// The embedding and the head.
pub(super) const ENDS: &str = "ends";

/// Quantizes layer `index`. `gen_`: the GEN expert too, fitted to its weights.
pub(super) fn quantize(
    source: &Checkpoint,
    schemes: &Schemes,
    recipe: &Recipe,
    index: usize,
    sites: Option<SiteRows>,
    gen_: bool,
    work: &WorkDir,
) -> Result<()> {
    let config = source.config();
    let heads = heads(config);
    let mut experts = vec![read(source, index, Expert::Und)?];
    let mut rows = vec![sites];
    if gen_ {
        experts.push(read(source, index, Expert::Gen)?);
        rows.push(None);
    }
    let before: HashMap<String, Stored> = experts
        .iter()
        .flat_map(|e| {
            let v_bias = e.v_bias.as_deref();
            vectors(index, e.expert, &e.input_layernorm, &e.post_attention_layernorm, v_bias)
        })
        .collect();
    let scheme = |expert: Expert, proj: Proj| {
        let cols = match proj {
            Proj::DownProj => config.intermediate_size,
            _ => config.hidden_size,
        };
        schemes.linear(&proj.path(index, expert), cols)
    };
    let result = quantize_layer(LayerWeights { layer: index, heads, experts }, rows, &scheme, recipe)?;
    let mut tensors = HashMap::new();
    let mut part = Part { pairs: result.pairs, linears: Vec::new() };
    for expert in result.experts {
        part.linears.extend(store(index, expert, bf16s, &mut tensors));
    }
    // What no scale has changed stays in the file as it was, in its own type.
    tensors.retain(|name, new| before.get(name).is_none_or(|old| old.bytes != new.bytes));
    finish(work, &layer_name(index), &tensors, &part)
}

/// Adds all tensors of one expert's layer; `dense` stores what is not packed.
pub(super) fn store(
    index: usize,
    expert: ExpertResult,
    dense: fn(&Matrix) -> Stored,
    tensors: &mut HashMap<String, Stored>,
) -> Vec<LinearReport> {
    let ExpertResult { expert, input_layernorm, post_attention_layernorm, v_bias, linears } = expert;
    tensors.extend(vectors(index, expert, &input_layernorm, &post_attention_layernorm, v_bias.as_deref()));
    let mut reports = Vec::new();
    for linear in linears {
        match linear.form {
            Form::Packed(weight) => packed(&linear.name, &weight, tensors),
            Form::Dense(matrix) => drop(tensors.insert(format!("{}.weight", linear.name), dense(&matrix))),
        }
        reports.extend(linear.report);
    }
    reports
}

/// The tensors of a layer that scales are moved into.
fn vectors(
    index: usize,
    expert: Expert,
    input_layernorm: &[f32],
    post_attention_layernorm: &[f32],
    v_bias: Option<&[f32]>,
) -> Vec<(String, Stored)> {
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

/// The heads of a layer.
pub(super) fn heads(config: &Config) -> Heads {
    Heads {
        n_heads: config.num_attention_heads,
        n_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim(),
    }
}

/// Quantizes embedding and head. The embedding has no inputs and is fitted to its weights.
pub(super) fn quantize_ends(
    source: &Checkpoint,
    schemes: &Schemes,
    recipe: &Recipe,
    head_rows: Option<Rows>,
    work: &WorkDir,
) -> Result<()> {
    let config = source.config();
    let (d, vocab) = (config.hidden_size, config.vocab_size);
    let (mut tensors, mut part) = (HashMap::new(), Part::default());
    if let Some(scheme) = schemes.embed(d) {
        let name = "embed_tokens";
        let weight = Weight::load(&source.model().pp(name), vocab, d)?;
        let result = quantize_linear(name, &weight, None, scheme, recipe)?;
        part.linears.push(LinearReport::new(name.to_owned(), &result, None));
        packed(name, &result.weight, &mut tensors);
    }
    let name = "lm_head";
    if let Some(scheme) = schemes.head(d).filter(|_| source.model().pp(name).has("weight")) {
        let weight = Weight::load(&source.model().pp(name), vocab, d)?;
        match head_rows {
            Some(rows) => {
                let mut norm = values(&source.model().tensor("norm.weight", &[d])?)?;
                let result = quantize_head(name, &mut norm, &weight, rows, scheme, recipe)?;
                part.pairs.extend(result.pair);
                part.linears.push(result.report);
                tensors.insert("norm.weight".to_owned(), f32s(&norm));
                packed(name, &result.weight, &mut tensors);
            }
            None => {
                let result = quantize_linear(name, &weight, None, scheme, recipe)?;
                part.linears.push(LinearReport::new(name.to_owned(), &result, None));
                packed(name, &result.weight, &mut tensors);
            }
        }
    }
    source.model().check()?;
    finish(work, ENDS, &tensors, &part)
}

/// Reads one expert's layer in f32.
pub(super) fn read(source: &Checkpoint, index: usize, expert: Expert) -> Result<ExpertWeights> {
    let (config, weights) = (source.config(), source.model());
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let kv = config.num_key_value_heads * config.head_dim();
    let norm = |name: &str| -> Result<Vec<f32>> {
        values(&weights.tensor(&format!("layers.{index}.{name}{}.weight", expert.suffix()), &[d])?)
    };
    let linear = |proj: Proj| -> Result<Matrix> {
        let (rows, cols) = match proj {
            Proj::QProj | Proj::OProj => (d, d),
            Proj::KProj | Proj::VProj => (kv, d),
            Proj::GateProj | Proj::UpProj => (f, d),
            Proj::DownProj => (d, f),
        };
        let path = proj.path(index, expert);
        let weight = Weight::load(&weights.pp(&path), rows, cols)?;
        weights.check()?;
        Ok(Matrix::read(&path, &weight)?)
    };
    let linears: Vec<Matrix> = Proj::ALL.into_iter().map(linear).collect::<Result<_>>()?;
    let v_bias = format!("{}.bias", Proj::VProj.path(index, expert));
    Ok(ExpertWeights {
        expert,
        input_layernorm: norm("input_layernorm")?,
        post_attention_layernorm: norm("post_attention_layernorm")?,
        v_bias: Some(values(&weights.tensor(&v_bias, &[kv])?)?),
        linears: linears.try_into().ok().context("seven linear layers")?,
    })
}

pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// A packed module under its three names.
pub(super) fn packed(name: &str, weight: &AffineWeight, tensors: &mut HashMap<String, Stored>) {
    let (rows, scheme) = (weight.n_rows(), weight.scheme());
    let groups = weight.n_cols() / scheme.group_size();
    let words = weight.word_bytes().to_vec();
    let shape = vec![rows, words.len() / 4 / rows];
    tensors.insert(format!("{name}.weight"), Stored { dtype: Dtype::U32, shape, bytes: words });
    for (part, bytes) in [("scales", weight.scale_bytes()), ("biases", weight.bias_bytes())] {
        let stored = Stored { dtype: Dtype::BF16, shape: vec![rows, groups], bytes: bytes.to_vec() };
        tensors.insert(format!("{name}.{part}"), stored);
    }
}

pub(super) fn f32s(values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Stored { dtype: Dtype::F32, shape: vec![values.len()], bytes }
}

/// Values as they are, to try them out.
pub(super) fn f32_matrix(matrix: &Matrix) -> Stored {
    Stored { shape: vec![matrix.n_rows(), matrix.n_cols()], ..f32s(matrix.values()) }
}

fn bf16s(matrix: &Matrix) -> Stored {
    let bytes = matrix.values().iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    Stored { dtype: Dtype::BF16, shape: vec![matrix.n_rows(), matrix.n_cols()], bytes }
}

/// Whether an earlier run has quantized a part.
pub(super) fn is_done(work: &WorkDir, name: &str) -> bool {
    work.has(&format!("{name}.safetensors"))
}

/// The report first: tensors that have their name are whole and have one.
fn finish(work: &WorkDir, name: &str, tensors: &HashMap<String, Stored>, part: &Part) -> Result<()> {
    work.write(&format!("{name}.json"), &serde_json::to_vec(part)?)?;
    work.write_with(&format!("{name}.safetensors"), |path| {
        Ok(safetensors::serialize_to_file(tensors.iter().map(|(n, t)| (n, Shared(t))), None, path)?)
    })
}

/// A tensor that is written without a copy.
pub(super) struct Shared<'a>(pub(super) &'a Stored);

impl View for Shared<'_> {
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

/// The tensors of a finished part.
pub(super) fn open(work: &WorkDir, name: &str) -> Result<Weights> {
    Ok(Weights::open(&[work.file(&format!("{name}.safetensors"))])?)
}
