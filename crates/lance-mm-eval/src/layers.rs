//! Quantization error of each layer and linear layer.

mod linear;
mod scale;
mod tokens;

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use lance_mm_models::{Config, Cursor, Llm, Segment, Sequence};
use serde::Serialize;

use super::dataset::{Dataset, Sample};
use super::parity::{given_ids, require_same_tokens};
use super::{Relative, SMALL_SAMPLE, SampleProgress, finite};
use crate::error::{Error, Result};
use lance_mm_pipelines::prompt::{self, Turn, TurnContent};
use lance_mm_pipelines::{AskOptions, ImageFeatures, Lance};
pub use linear::LinearReport;
use linear::{Comparison, SITES};
pub use tokens::TokenClass;
use tokens::{Cosines, by_class, spread};

/// Options of [`layers()`].
#[derive(Clone, Debug, PartialEq)]
pub struct LayerOptions {
    /// Prompt and decoding of the questions.
    pub asking: AskOptions,
    /// Tokens of each sample that linear layers are compared on, evenly spaced; everything else is compared on
    /// all tokens.
    pub linear_tokens: usize,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { asking: AskOptions::default(), linear_tokens: 64 }
    }
}

/// Layers of a candidate's UND expert against its reference's. Take samples that no calibration used: the
/// errors of calibrated samples are too small.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// Samples.
    pub samples: usize,
    /// `small sample` below [`SMALL_SAMPLE`].
    pub note: Option<&'static str>,
    /// Tokens of all sequences, prompt and answer.
    pub tokens: usize,
    /// Tokens that the linear layers within layers were compared on.
    pub linear_tokens: usize,
    /// Input tokens: image features of the vision encoders, embeddings of text.
    pub inputs: BTreeMap<TokenClass, Relative>,
    /// First to last.
    pub layers: Vec<OneLayer>,
    /// The output head, on the tokens that predict the answer.
    pub lm_head: LinearReport,
    /// Mean cosine of the residual stream after the last layer, before the final norm, by class of token.
    pub final_cosine: BTreeMap<TokenClass, f64>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OneLayer {
    /// Its number.
    pub layer: usize,
    /// Queries after their norm, the input of attention.
    pub q_norm: Compounding,
    /// Keys after their norm.
    pub k_norm: Compounding,
    /// Output of attention.
    pub self_attn: Compounding,
    /// Output of the MLP.
    pub mlp: Compounding,
    /// Output of the layer, the residual stream.
    pub output: Compounding,
    /// Its linear layers, each alone, on the reference's input activations.
    pub linears: Vec<LinearReport>,
}

/// An error of one layer, and of all layers before it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Compounding {
    /// The candidate's layer on the reference's input.
    pub local: Relative,
    /// The candidate's layer on the candidate's own input.
    pub accumulated: Relative,
    /// Accumulated over local error; `None` without a local one, or where either is infinite.
    pub ratio: Option<f64>,
}

/// Runs prompts and answers of a data set through both models, layer by layer. An answer that the data does
/// not give is the reference's own.
///
/// A checkpoint may hold its weights in a scaled space: an input column times s where the producer of that
/// input is divided by s. Linear layers are compared in the reference's space, see [`LinearReport`]; all else
/// is the same in both spaces.
///
/// # Errors
/// Models of different shape or with different tokenizers, images that cannot be read or used.
pub fn layers(
    reference: &Lance,
    candidate: &Lance,
    data: &Dataset,
    options: &LayerOptions,
    progress: &mut SampleProgress<'_>,
) -> Result<LayerReport> {
    require_same_tokens(reference.tokenizer(), candidate.tokenizer())?;
    require_same_shape(reference.config(), candidate.config())?;
    if options.linear_tokens == 0 {
        return Err(Error::option("linear_tokens", "at least 1", 0));
    }
    let mut sums = Sums::new(reference.llm(), candidate.llm())?;
    progress(0, data.samples.len());
    for (i, sample) in data.samples.iter().enumerate() {
        let run = Run::new(reference, candidate, sample, &options.asking);
        let run = run.map_err(|error| sample.located(error))?;
        let added = sums.add(&run, reference.llm(), candidate.llm(), options.linear_tokens);
        added.map_err(|error| sample.located(error))?;
        progress(i + 1, data.samples.len());
    }
    Ok(sums.report(data.samples.len()))
}

fn require_same_shape(a: &Config, b: &Config) -> Result<()> {
    let shape = |c: &Config| {
        let heads = (c.num_attention_heads, c.num_key_value_heads);
        (c.hidden_size, c.num_hidden_layers, heads, c.intermediate_size, c.vocab_size)
    };
    if shape(a) == shape(b) {
        return Ok(());
    }
    let text = |c: &Config| {
        let (d, layers, (heads, kv), mlp, vocabulary) = shape(c);
        format!("{layers} layers of {d}, {heads} and {kv} heads, MLP {mlp}, vocabulary {vocabulary}")
    };
    Err(Error::data("candidate", format!("expected {}, found {}", text(a), text(b))))
}

/// The tokens of one sample in both models.
struct Run {
    sequence: Sequence,
    /// Tokens of the prompt; those after it are the answer's.
    prompt: usize,
    x: Tensor,
    x_candidate: Tensor,
}

impl Run {
    fn new(reference: &Lance, candidate: &Lance, sample: &Sample, options: &AskOptions) -> Result<Self> {
        let visuals = sample.encode(reference, options)?;
        let other = sample.encode(candidate, options)?;
        let contents = visuals.iter().map(|visual| TurnContent::Visual(visual.grid()));
        let contents = contents.chain([TurnContent::Text(&sample.question)]).collect();
        let medium = visuals.iter().map(ImageFeatures::medium).next_back().unwrap_or(prompt::Medium::Text);
        let system_message = options.system_message.clone();
        let system_message =
            system_message.unwrap_or_else(|| prompt::system_message(medium, sample.has_question()));
        let turns = [Turn::User(contents)];
        let mut segments = prompt::conversation(reference.tokenizer(), system_message.as_str(), &turns)?;
        let ids = match sample.answer {
            Some(_) => given_ids(reference.tokenizer(), sample)?,
            None => greedy_ids(reference, &visuals, sample, options)?,
        };
        let layout = reference.config().layout();
        let prompt = Sequence::new(&segments, &layout, Cursor::default()).len();
        // Nothing is predicted from the last token.
        segments.push(Segment::Text(ids[..ids.len() - 1].to_vec()));
        let sequence = Sequence::new(&segments, &layout, Cursor::default());
        let max = reference.config().max_position_embeddings;
        if sequence.len() > max {
            return Err(sample.error(format!("expected at most {max} tokens, found {}", sequence.len())));
        }
        let embed = |lance: &Lance, visuals: &[ImageFeatures]| {
            let features: Vec<Tensor> = visuals.iter().map(|visual| visual.features().clone()).collect();
            lance.llm().embed(&sequence, &features)
        };
        let (x, x_candidate) = (embed(reference, &visuals)?, embed(candidate, &other)?);
        for (model, x) in [("reference", &x), ("candidate", &x_candidate)] {
            finite::values(x, || format!("{model}: input of the first layer"))?;
        }
        Ok(Self { prompt, x, x_candidate, sequence })
    }
}

fn greedy_ids(
    lance: &Lance,
    visuals: &[ImageFeatures],
    sample: &Sample,
    options: &AskOptions,
) -> Result<Vec<u32>> {
    let mut options = options.clone();
    options.decode.sampling = Default::default();
    let mut context = sample.context(lance, visuals, &options)?;
    Ok(context.ask(&sample.question, &options)?.ids)
}

/// Sums over the samples so far.
struct Sums {
    tokens: usize,
    linear_tokens: usize,
    inputs: BTreeMap<TokenClass, Relative>,
    layers: Vec<LayerSums>,
    lm_head: Comparison,
    cosines: Cosines,
}

#[derive(Default)]
struct LayerSums {
    /// Local and accumulated errors of the names in [`COMPARED`].
    errors: [[Relative; 2]; COMPARED.len()],
    linears: Vec<Comparison>,
}

/// Probes of a layer that are compared; "" is its output.
const COMPARED: [&str; 5] = ["self_attn.q_norm", "self_attn.k_norm", "self_attn", "mlp", ""];

impl Sums {
    fn new(reference: &Llm, candidate: &Llm) -> Result<Self> {
        let layer = |i: usize| -> Result<LayerSums> {
            let linears = linear::of_layer(reference, candidate, i)?;
            Ok(LayerSums { linears, ..LayerSums::default() })
        };
        Ok(Self {
            tokens: 0,
            linear_tokens: 0,
            inputs: BTreeMap::new(),
            layers: (0..reference.config().num_hidden_layers).map(layer).collect::<Result<_>>()?,
            lm_head: linear::lm_head(reference, candidate)?,
            cosines: Cosines::default(),
        })
    }

    fn add(&mut self, run: &Run, reference: &Llm, candidate: &Llm, max_tokens: usize) -> Result<()> {
        let classes = tokens::classes(&run.sequence, run.prompt);
        let kept = spread(run.sequence.len(), max_tokens);
        self.tokens += run.sequence.len();
        self.linear_tokens += kept.len();
        by_class(&classes, &run.x, &run.x_candidate, &mut self.inputs)?;
        let (mut x, mut own) = (run.x.clone(), run.x_candidate.clone());
        for (i, sums) in self.layers.iter_mut().enumerate() {
            let probe = |llm: &Llm, x: &Tensor| LayerProbe::new(llm, i, x, &run.sequence);
            let (expected, local, accumulated) =
                (probe(reference, &x)?, probe(candidate, &x)?, probe(candidate, &own)?);
            for (name, [here, so_far]) in COMPARED.iter().zip(&mut sums.errors) {
                let expected = expected.values(name, "reference")?;
                here.push(&expected, &local.values(name, "candidate, on the reference's input")?);
                so_far.push(&expected, &accumulated.values(name, "candidate")?);
            }
            for (linear, site) in sums.linears.iter_mut().zip(SITES) {
                linear.add(reference, candidate, &kept.of(expected.get(site.input)?)?)?;
            }
            (x, own) = (expected.get("")?.clone(), accumulated.get("")?.clone());
        }
        self.cosines.add(&classes, &x, &own)?;
        let predicting = run.prompt - 1;
        let normed = reference.norm(&x, &run.sequence)?;
        let normed = normed.narrow(0, predicting, run.sequence.len() - predicting)?;
        self.lm_head.add(reference, candidate, &normed)
    }

    fn report(self, samples: usize) -> LayerReport {
        let layer = |(i, sums): (usize, LayerSums)| {
            let [q_norm, k_norm, self_attn, mlp, output] = sums.errors.map(Compounding::of);
            let linears = sums.linears.into_iter().map(Comparison::report).collect();
            OneLayer { layer: i, q_norm, k_norm, self_attn, mlp, output, linears }
        };
        LayerReport {
            samples,
            note: (samples < SMALL_SAMPLE).then_some("small sample"),
            tokens: self.tokens,
            linear_tokens: self.linear_tokens,
            inputs: self.inputs,
            layers: self.layers.into_iter().enumerate().map(layer).collect(),
            lm_head: self.lm_head.report(),
            final_cosine: self.cosines.means(),
        }
    }
}

impl Compounding {
    fn of([local, accumulated]: [Relative; 2]) -> Self {
        let ratio = Some(accumulated.error() / local.error()).filter(|ratio| ratio.is_finite());
        Self { local, accumulated, ratio }
    }
}

/// Probed tensors of a layer, by their name within it.
struct LayerProbe {
    layer: usize,
    tensors: HashMap<String, Tensor>,
}

impl LayerProbe {
    fn new(llm: &Llm, layer: usize, x: &Tensor, sequence: &Sequence) -> Result<Self> {
        let prefix = format!("layers.{layer}");
        let mut tensors = HashMap::new();
        llm.run_layer(layer, x, sequence, &mut |name, tensor| {
            let name = name.to_string();
            let name = name.strip_prefix(&prefix).unwrap_or(&name).trim_start_matches('.');
            if COMPARED.contains(&name) || SITES.iter().any(|site| site.input == name) {
                tensors.insert(name.to_owned(), tensor.clone());
            }
            Ok(())
        })?;
        Ok(Self { layer, tensors })
    }

    /// Values of a probe in `model`.
    fn values(&self, name: &str, model: &str) -> Result<Vec<f32>> {
        let layer = self.layer;
        let part = if name.is_empty() { "output" } else { name };
        finite::values(self.get(name)?, || format!("{model}: layer {layer}, {part}"))
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| {
            Error::data(format!("layer {}", self.layer), format!("expected a probe of {name:?}, found none"))
        })
    }
}

#[cfg(test)]
mod tests;
