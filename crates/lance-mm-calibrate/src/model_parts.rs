//! Quantizing the embedding, the layers and the head; each result is a file of the work folder.

use std::collections::HashMap;

use lance_mm_models::{Config, Expert, Llm};
use lance_mm_pipelines::Checkpoint;
use lance_mm_quant::{Matrix, RoundingReport, quantize_linear};
use lance_mm_tensor::{Weight, Weights};
use serde::Serialize;

use crate::capture::Capture;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::expert_weights::{ExpertWeights, Heads};
use crate::fusion_report::FusionReport;
use crate::layer_quantizer::{ExpertResult, LayerActivations, LayerQuantizer, LayerWeights};
use crate::module_schemes::ModuleSchemes;
use crate::names::Proj;
use crate::output_head::{HeadActivations, quantize_head};
use crate::progress::{Monitor, Progress};
use crate::stored_tensors::{
    BorrowedTensor, StoredTensor, bf16s, f32s, in_memory, packed, store, values, vectors,
};
use crate::work_folder::WorkFolder;

/// A part of the model in the report.
#[derive(Default, Serialize)]
struct Part {
    #[serde(rename = "pairs")]
    fusions: Vec<FusionReport>,
    linears: Vec<RoundingReport>,
}

pub(crate) fn layer_name(index: usize) -> String {
    format!("layer_{index:03}")
}

/// Names of the parts before and after the layers.
pub(crate) const EMBED: &str = "embed";
pub(crate) const HEAD: &str = "head";

/// Names of all parts of a model.
pub(crate) fn parts(layers: usize) -> Vec<String> {
    let ends = [EMBED, HEAD].map(str::to_owned).into_iter();
    ends.chain((0..layers).map(layer_name)).collect()
}

/// Quantizes one part of a model after another.
#[derive(Clone, Copy)]
pub(crate) struct PartQuantizer<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) schemes: &'a ModuleSchemes,
    /// Experts that are quantized.
    pub(crate) quantized: &'a [Expert],
}

impl PartQuantizer<'_> {
    /// The language model with a finished part in place.
    fn with_part(&self, name: &str) -> Result<Llm> {
        self.context.llm(&open(self.context.work, name)?)
    }

    fn is_done(&self, name: &str) -> bool {
        self.context.work.has(&format!("{name}.safetensors"))
    }

    /// Quantizes every part that no earlier run has finished, in the order of the model.
    pub(crate) fn run(
        &self,
        capture: &mut Capture<'_>,
        layers: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<()> {
        if !self.is_done(EMBED) {
            monitor.begin(Progress::Embedding)?;
            self.embedding()?;
        }
        if self.context.steps.compensate && capture.awaits(0) {
            capture.follow(&self.with_part(EMBED)?)?;
        }
        // A layer that an earlier run has finished is no stage.
        let is_left = |index: &usize| capture.awaits(*index) || !self.is_done(&layer_name(*index));
        let first = (0..layers).find(is_left).unwrap_or(layers);
        for index in 0..layers {
            if index >= first {
                monitor.begin(Progress::Layer { index, total: layers })?;
            }
            let inputs = if capture.awaits(index) {
                capture.layer(&self.context.original()?, index)?
            } else {
                [None, None]
            };
            let name = layer_name(index);
            if !self.is_done(&name) {
                self.layer(index, inputs, capture)?;
            }
            let is_next = capture.follows() && capture.awaits(index);
            let quantized = is_next.then(|| self.with_part(&name)).transpose()?;
            capture.advance(index, quantized.as_ref())?;
        }
        monitor.begin(Progress::Head)?;
        if !self.is_done(HEAD) {
            let inputs =
                if capture.awaits(layers) { capture.head_inputs(&self.context.original()?)? } else { None };
            self.head(inputs)?;
        }
        Ok(())
    }

    /// Quantizes layer `index`. `inputs` are those recorded of each expert in the original model; `capture` records
    /// those of the model quantized so far.
    fn layer(
        &self,
        index: usize,
        inputs: [Option<LayerActivations>; 2],
        capture: &Capture<'_>,
    ) -> Result<()> {
        let source = (self.context.open)()?;
        let config = source.config();
        let experts = self.quantized.iter().map(|expert| read(&source, index, *expert));
        let experts: Vec<ExpertWeights> = experts.collect::<Result<_>>()?;
        let inputs = inputs.into_iter().take(experts.len()).collect();
        let before: HashMap<String, StoredTensor> = experts
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
            self.schemes.linear(&proj.path(index, expert), cols)
        };
        let weights = LayerWeights { layer: index, heads: heads(config), experts };
        let mut layer = LayerQuantizer::new(weights, inputs, &scheme, self.context.steps)?;
        while let Some(input) = layer.next() {
            self.context.stop.check()?;
            let actual = if capture.follows() {
                capture.input(&self.so_far(index, layer.experts())?, index, input)?
            } else {
                Vec::new()
            };
            layer.round(actual)?;
        }
        let result = layer.finish();
        let mut tensors = HashMap::new();
        let mut part = Part { fusions: result.fusions, linears: Vec::new() };
        for expert in &result.experts {
            part.linears.extend(store(index, expert, bf16s, &mut tensors));
        }
        // What no scale has changed stays in the file as it was, in its own type.
        tensors.retain(|name, new| before.get(name).is_none_or(|old| old.bytes != new.bytes));
        self.finish(&layer_name(index), &tensors, &part)
    }

    /// The language model with the finished linear layers of a layer in place.
    fn so_far<'b>(&self, index: usize, experts: impl Iterator<Item = &'b ExpertResult>) -> Result<Llm> {
        let mut tensors = HashMap::new();
        for expert in experts {
            store(index, expert, bf16s, &mut tensors);
        }
        self.context.llm(&in_memory(&tensors)?)
    }

    /// Quantizes the embedding, which has no input activations, by its weights.
    fn embedding(&self) -> Result<()> {
        let source = (self.context.open)()?;
        let (d, name) = (source.config().hidden_size, "embed_tokens");
        let (mut tensors, mut part) = (HashMap::new(), Part::default());
        if let Some(scheme) = self.schemes.embed(d) {
            let weight = Weight::load(&source.model().pp(name), source.config().vocab_size, d)?;
            let result = quantize_linear(name, &weight, None, scheme, &self.context.steps.rounding)?;
            part.linears.push(RoundingReport::new(name.to_owned(), &result, None));
            packed(name, &result.weight, &mut tensors);
        }
        self.finish(EMBED, &tensors, &part)
    }

    /// Quantizes the output head, if the model has one of its own.
    fn head(&self, inputs: Option<HeadActivations>) -> Result<()> {
        let source = (self.context.open)()?;
        let (d, name) = (source.config().hidden_size, "lm_head");
        let (mut tensors, mut part) = (HashMap::new(), Part::default());
        if let Some(scheme) = self.schemes.head(d).filter(|_| source.model().pp(name).has("weight")) {
            let weight = Weight::load(&source.model().pp(name), source.config().vocab_size, d)?;
            let mut norm = values(&source.model().tensor("norm.weight", &[d])?)?;
            match inputs {
                Some(inputs) => {
                    let result = quantize_head(name, &mut norm, &weight, inputs, scheme, self.context.steps)?;
                    part.fusions.extend(result.group);
                    part.linears.push(result.report);
                    tensors.insert("norm.weight".to_owned(), f32s(&norm));
                    packed(name, &result.weight, &mut tensors);
                }
                None => {
                    let result = quantize_linear(name, &weight, None, scheme, &self.context.steps.rounding)?;
                    part.linears.push(RoundingReport::new(name.to_owned(), &result, None));
                    packed(name, &result.weight, &mut tensors);
                }
            }
        }
        self.finish(HEAD, &tensors, &part)
    }

    /// Writes the report first, so that tensors that have their name are whole and have one.
    fn finish(&self, name: &str, tensors: &HashMap<String, StoredTensor>, part: &Part) -> Result<()> {
        self.context.work.write_json(&format!("{name}.json"), part)?;
        self.context.work.write_with(&format!("{name}.safetensors"), |path| {
            safetensors::serialize_to_file(tensors.iter().map(|(n, t)| (n, BorrowedTensor(t))), None, path)
                .map_err(Error::at(path))
        })
    }
}

/// The heads of a layer.
pub(crate) fn heads(config: &Config) -> Heads {
    Heads {
        n_heads: config.num_attention_heads,
        n_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim(),
    }
}

/// Reads one expert's layer in f32.
pub(crate) fn read(source: &Checkpoint, index: usize, expert: Expert) -> Result<ExpertWeights> {
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
        Ok(Matrix::read(&path, &weight)?)
    };
    let linears: Vec<Matrix> = Proj::ALL.into_iter().map(linear).collect::<Result<_>>()?;
    let v_bias = format!("{}.bias", Proj::VProj.path(index, expert));
    Ok(ExpertWeights {
        expert,
        input_layernorm: norm("input_layernorm")?,
        post_attention_layernorm: norm("post_attention_layernorm")?,
        v_bias: Some(values(&weights.tensor(&v_bias, &[kv])?)?),
        linears: linears.try_into().expect("one matrix for each of the seven"),
    })
}

/// The tensors of a finished part.
pub(crate) fn open(work: &WorkFolder, name: &str) -> Result<Weights> {
    Ok(Weights::open(&[work.file(&format!("{name}.safetensors"))])?)
}
