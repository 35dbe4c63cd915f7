//! Bits and group size of every matrix under a budget: its rounding error at every width, and the sensitivity of
//! answers to it.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use lance_mm_models::{Expert, is_generation};
use lance_mm_pipelines::{Checkpoint, Lance};
use lance_mm_quant::{Choice, Item, allocate, quantize_linear, stored_bytes, width_errors, widths};
use lance_mm_tensor::{Scheme, TensorInfo, Weight};
use serde::{Deserialize, Serialize};

use crate::answer_divergence::ReferenceAnswers;
use crate::calibration_set::CalibrationSet;
use crate::capture::Capture;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer_quantizer::{ExpertResult, LayerActivations, LayerWeights, measure_layer};
use crate::model_parts;
use crate::module_schemes::ModuleSchemes;
use crate::names::Proj;
use crate::options::{GenExpert, Sensitivity};
use crate::output_head::{HeadActivations, measure_head};
use crate::progress::{Monitor, Progress};
use crate::stored_tensors::{StoredTensor, f32_matrix, f32s, in_memory, packed, store, values};
use crate::work_folder::WorkFolder;

/// File of the allocated widths, for resumed runs and the report.
pub(crate) const FILE: &str = "widths.json";

/// Tokens that are measured with: fewer than those that weights are fitted to.
const TOKENS: usize = 2048;

/// A matrix with its sensitivity and errors.
#[derive(Serialize, Deserialize)]
struct Measured {
    name: String,
    rows: usize,
    cols: usize,
    /// Divergence of answers per relative output error, in nats.
    sensitivity: f64,
    /// Relative output error in each scheme of [`widths`].
    errors: Vec<Option<f64>>,
}

/// The width of a matrix; `None` leaves it in bf16.
#[derive(Serialize, Deserialize)]
struct Width {
    name: String,
    bits: Option<usize>,
    group_size: Option<usize>,
    sensitivity: f64,
    /// Divergence that is expected of it, in nats.
    damage: f64,
}

/// Measures sensitivities and errors, matrix by matrix.
pub(crate) struct SensitivityMeasurement<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) schemes: &'a ModuleSchemes,
    pub(crate) sensitivity: Sensitivity,
    pub(crate) samples: &'a CalibrationSet,
}

impl SensitivityMeasurement<'_> {
    /// Measures every matrix of the UND expert that no earlier run has measured, layer by layer.
    pub(crate) fn run(
        &self,
        capture: &mut Capture<'_>,
        layers: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<()> {
        let reference = match self.sensitivity {
            Sensitivity::None => None,
            _ => {
                monitor.begin(Progress::Reference)?;
                let inputs = capture.inputs()?;
                Some(ReferenceAnswers::new(&Lance::new((self.context.open)()?)?, self.samples, &inputs)?)
            }
        };
        let reference = reference.as_ref();
        monitor.begin(Progress::MeasureEmbedding)?;
        self.part("embed", || self.embedding(reference, capture))?;
        for index in 0..layers {
            monitor.begin(Progress::MeasureLayer { index, total: layers })?;
            let before = capture.hidden().to_vec();
            let [und, _] = capture.layer(&self.context.original()?, index)?;
            if let Some(inputs) = und {
                self.part(&index.to_string(), || self.layer(reference, index, &inputs, &before))?;
            }
            capture.advance_keeping_first(index)?;
        }
        monitor.begin(Progress::MeasureHead)?;
        self.part("head", || self.head(reference, capture, layers))
    }

    /// Writes the measurement of a part, unless an earlier run did.
    fn part(&self, name: &str, measure: impl FnOnce() -> Result<Vec<Measured>>) -> Result<()> {
        let file = part_file(name);
        if self.context.work.has(&file) {
            return Ok(());
        }
        self.context.work.write_json(&file, &measure()?)
    }

    /// Divergence of answers with some tensors replaced, from layer `first` on.
    fn divergence(
        &self,
        reference: Option<&ReferenceAnswers>,
        changed: &HashMap<String, StoredTensor>,
        first: usize,
        hidden: &[Tensor],
    ) -> Result<f64> {
        let Some(reference) = reference else { return Ok(0.0) };
        let llm = self.context.llm(&in_memory(changed)?)?;
        reference.divergence(&llm, first, &|at, _| Ok(hidden[at].clone()))
    }

    /// Measures the matrices of a layer, whose `inputs` were recorded and whose own input is `hidden`.
    fn layer(
        &self,
        reference: Option<&ReferenceAnswers>,
        index: usize,
        inputs: &LayerActivations,
        hidden: &[Tensor],
    ) -> Result<Vec<Measured>> {
        let source = (self.context.open)()?;
        let heads = model_parts::heads(source.config());
        let inputs = &inputs.subsampled(TOKENS);
        let und = model_parts::read(&source, index, Expert::Und)?;
        let shapes: Vec<(usize, usize)> = und.linears.iter().map(|w| (w.n_rows(), w.n_cols())).collect();
        // Rounds the matrices that `which` selects; the others only take scales.
        let round = |which: &dyn Fn(Proj) -> bool, others: &[Scheme]| {
            let weights = LayerWeights { layer: index, heads, experts: vec![und.clone()] };
            let scheme = |expert: Expert, proj: Proj| {
                let cols = shapes[proj as usize].1;
                self.schemes.linear(&proj.path(index, expert), cols).filter(|_| which(proj))
            };
            let mut result =
                measure_layer(weights, vec![Some(inputs.clone())], &scheme, self.context.steps, others)?;
            Ok::<_, Error>(result.experts.remove(0))
        };
        let sensitivity = |expert: ExpertResult| -> Result<f64> {
            let mut tensors = HashMap::new();
            let reports = store(index, &expert, f32_matrix, &mut tensors);
            let error: f64 = reports.iter().map(|report| report.final_error).sum();
            Ok(ratio(self.divergence(reference, &tensors, index, hidden)?, error))
        };
        let all = round(&|_| true, &widths())?;
        let errors: Vec<Vec<Option<f64>>> = all.linears.iter().map(|l| l.errors.clone()).collect();
        let sensitivities = match self.sensitivity {
            Sensitivity::None => shapes.iter().map(|(rows, cols)| (rows * cols) as f64).collect(),
            Sensitivity::Layer => {
                vec![sensitivity(all)?; Proj::ALL.len()]
            }
            Sensitivity::Linear => {
                let each = |proj: Proj| sensitivity(round(&|other| other == proj, &[])?);
                Proj::ALL.into_iter().map(each).collect::<Result<Vec<f64>>>()?
            }
        };
        let parts = Proj::ALL.into_iter().zip(shapes.iter().copied()).zip(sensitivities).zip(errors);
        Ok(parts
            .map(|(((proj, (rows, cols)), sensitivity), errors)| Measured {
                name: proj.path(index, Expert::Und),
                rows,
                cols,
                sensitivity,
                errors,
            })
            .collect())
    }

    /// Measures the embedding, by the error of its weights; only text tokens read it.
    fn embedding(
        &self,
        reference: Option<&ReferenceAnswers>,
        capture: &Capture<'_>,
    ) -> Result<Vec<Measured>> {
        let name = "embed_tokens";
        let source = (self.context.open)()?;
        let (rows, cols) = (source.config().vocab_size, source.config().hidden_size);
        let weight = Weight::load(&source.model().pp(name), rows, cols)?;
        let errors = width_errors(name, &weight, None, &widths(), &self.context.steps.rounding)?;
        let sensitivity = match (reference, self.schemes.embed(cols)) {
            (Some(reference), Some(scheme)) => {
                let result = quantize_linear(name, &weight, None, scheme, &self.context.steps.rounding)?;
                let mut tensors = HashMap::new();
                packed(name, &result.weight, &mut tensors);
                let llm = self.context.llm(&in_memory(&tensors)?)?;
                let divergence = reference.divergence(&llm, 0, &|at, _| {
                    self.samples.sequences[at].embedded_by(&llm, &capture.hidden()[at])
                })?;
                ratio(divergence, result.trial().held_out)
            }
            _ => (rows * cols) as f64,
        };
        Ok(vec![Measured { name: name.into(), rows, cols, sensitivity, errors }])
    }

    /// Measures the output head, if the model has one of its own.
    fn head(
        &self,
        reference: Option<&ReferenceAnswers>,
        capture: &Capture<'_>,
        layers: usize,
    ) -> Result<Vec<Measured>> {
        let name = "lm_head";
        let source = (self.context.open)()?;
        let (rows, cols) = (source.config().vocab_size, source.config().hidden_size);
        let Some(scheme) = self.schemes.head(cols).filter(|_| source.model().pp(name).has("weight")) else {
            return Ok(Vec::new());
        };
        let Some(inputs) = capture.head_inputs(&self.context.original()?)? else { return Ok(Vec::new()) };
        let inputs = HeadActivations { original: inputs.original.subsampled(TOKENS), actual: None };
        let weight = Weight::load(&source.model().pp(name), rows, cols)?;
        let mut norm = values(&source.model().tensor("norm.weight", &[cols])?)?;
        let result = measure_head(name, &mut norm, &weight, inputs, scheme, self.context.steps, &widths())?;
        let sensitivity = match reference {
            None => (rows * cols) as f64,
            Some(_) => {
                let mut tensors = HashMap::new();
                packed(name, &result.weight, &mut tensors);
                tensors.insert("norm.weight".to_owned(), f32s(&norm));
                ratio(
                    self.divergence(reference, &tensors, layers, capture.hidden())?,
                    result.report.final_error,
                )
            }
        };
        Ok(vec![Measured { name: name.into(), rows, cols, sensitivity, errors: result.errors }])
    }
}

fn part_file(name: &str) -> String {
    format!("widths_{name}.json")
}

/// A matrix without error has no measurable sensitivity.
fn ratio(divergence: f64, error: f64) -> f64 {
    if error > 0.0 { divergence / error } else { 0.0 }
}

/// Divides `bits` per weight of the file among the measured matrices, and writes the result.
pub(crate) fn allocate_bits(
    source: &Checkpoint,
    schemes: &ModuleSchemes,
    gen_expert: &GenExpert,
    bits: f64,
    layers: usize,
    work: &WorkFolder,
) -> Result<()> {
    let mut measured: Vec<Measured> = Vec::new();
    for name in ["embed".to_owned(), "head".to_owned()].into_iter().chain((0..layers).map(|i| i.to_string()))
    {
        measured.extend(work.require::<Vec<Measured>>(&part_file(&name))?);
    }
    let items: Vec<Item> = measured.iter().map(|m| item(m, source)).collect();
    let fixed = FixedSize::new(source, &measured, schemes, gen_expert);
    let least = fixed.others + items.iter().map(smallest).sum::<u64>();
    let budget = (bits * fixed.parameters as f64 / 8.0).floor() as u64;
    if least > budget {
        // Rounded up, so that the number can be asked for.
        let smallest = (8000.0 * least as f64 / fixed.parameters as f64).ceil() / 1000.0;
        let expected = format!("{smallest} or more, the least this model takes");
        return Err(Error::option("bits_per_weight", expected, bits));
    }
    let picked = allocate(&items, budget - fixed.others)?;
    let widths: Vec<Width> = measured
        .iter()
        .zip(items.iter().zip(picked))
        .map(|(m, (item, at))| {
            let Choice { scheme, damage, .. } = item.choices[at];
            let (bits, group_size) = (scheme.map(|s| s.bits()), scheme.map(|s| s.group_size()));
            Width { name: m.name.clone(), bits, group_size, sensitivity: m.sensitivity, damage }
        })
        .collect();
    work.write_json(FILE, &widths)
}

/// Reads the result of [`allocate_bits`].
pub(crate) fn read(work: &WorkFolder) -> Result<Option<BTreeMap<String, Option<Scheme>>>> {
    let Some(widths) = work.read_json::<Vec<Width>>(FILE)? else { return Ok(None) };
    let scheme = |width: Width| {
        let scheme = match (width.bits, width.group_size) {
            (Some(bits), Some(group)) => Some(Scheme::affine(bits, group)?),
            _ => None,
        };
        Ok((width.name, scheme))
    };
    widths.into_iter().map(scheme).collect::<Result<_>>().map(Some)
}

fn item(measured: &Measured, source: &Checkpoint) -> Item {
    let Measured { name, rows, cols, sensitivity, errors } = measured;
    let mut choices: Vec<Choice> = widths()
        .into_iter()
        .zip(errors)
        .filter_map(|(scheme, error)| {
            let bytes = stored_bytes(*rows, *cols, Some(scheme));
            Some(Choice { scheme: Some(scheme), bytes, damage: sensitivity * (*error)? })
        })
        .collect();
    // Embedding and head stay in the type of their file.
    let whole = source.model().info(&format!("{name}.weight")).filter(|_| !name.starts_with("layers."));
    let bytes = whole.map_or(stored_bytes(*rows, *cols, None), |info| info.bytes as u64);
    choices.push(Choice { scheme: None, bytes, damage: 0.0 });
    Item { name: name.clone(), choices }
}

fn smallest(item: &Item) -> u64 {
    item.choices.iter().map(|choice| choice.bytes).min().unwrap_or(0)
}

/// Size of the model file apart from the matrices that share the budget.
struct FixedSize {
    /// Weights of the whole file.
    parameters: u64,
    /// Bytes of the other tensors.
    others: u64,
}

impl FixedSize {
    fn new(
        source: &Checkpoint,
        measured: &[Measured],
        schemes: &ModuleSchemes,
        gen_expert: &GenExpert,
    ) -> Self {
        let mut fixed = Self { parameters: 0, others: 0 };
        let shared: Vec<String> = measured.iter().map(|m| format!("{}.weight", m.name)).collect();
        let kept = |t: &TensorInfo| !gen_expert.is_dropped() || !is_generation(&t.name);
        for tensor in source.model().tensors().into_iter().filter(kept) {
            fixed.parameters += tensor.shape.iter().product::<usize>() as u64;
            if !shared.contains(&tensor.name) {
                fixed.others += stored(&tensor, schemes, gen_expert);
            }
        }
        fixed
    }
}

/// Bytes, at most, of a tensor that has no share in the budget.
fn stored(tensor: &TensorInfo, schemes: &ModuleSchemes, gen_expert: &GenExpert) -> u64 {
    let is_in_layer = tensor.name.starts_with("layers.");
    match tensor.shape[..] {
        // Vectors that take scales are written in f32.
        [n] if tensor.name.contains("norm") || tensor.name.contains("v_proj") => n as u64 * 4,
        // The matrices of the UND expert have their share.
        [rows, cols] if is_in_layer && gen_expert.is_quantized() => {
            stored_bytes(rows, cols, schemes.linear(&tensor.name, cols))
        }
        _ => tensor.bytes as u64,
    }
}
