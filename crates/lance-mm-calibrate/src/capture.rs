//! Recording the input activations of linear layers, one layer after another.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use lance_mm_models::{Config, Expert, LinearInput, Llm};
use lance_mm_quant::Activations;
use lance_mm_tensor::StopFlag;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::calibration_set::CalibrationSet;
use crate::error::{Error, Result};
use crate::layer_quantizer::LayerActivations;
use crate::names::input_path;
use crate::output_head::HeadActivations;
use crate::work_folder::WorkFolder;

/// The hidden states of all samples before some layer.
pub(crate) struct Capture<'a> {
    samples: Option<&'a CalibrationSet>,
    work: &'a WorkFolder,
    stop: &'a StopFlag,
    hidden: Vec<Tensor>,
    /// Those in the model quantized so far, if it is followed.
    quantized: Option<Vec<Tensor>>,
    /// Index of the layer that both are the input of.
    at: usize,
}

/// Recorded activations of one linear input.
#[derive(Default)]
struct Recorded {
    search: Vec<f32>,
    held_out: Vec<f32>,
}

impl Recorded {
    /// Adds `tokens` of the activations `x` of a sample.
    fn add(&mut self, x: &Tensor, tokens: &[usize], held_out: bool) -> candle_core::Result<()> {
        let tokens: Vec<u32> = tokens.iter().map(|token| *token as u32).collect();
        if !tokens.is_empty() {
            let x = x.index_select(&Tensor::new(tokens.as_slice(), x.device())?, 0)?;
            self.extend(&x, held_out)?;
        }
        Ok(())
    }

    fn extend(&mut self, x: &Tensor, held_out: bool) -> candle_core::Result<()> {
        let into = if held_out { &mut self.held_out } else { &mut self.search };
        into.extend(x.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }

    fn activations(
        self,
        index: usize,
        input: LinearInput,
        expert: Expert,
        config: &Config,
    ) -> Result<Activations> {
        let cols = if input == LinearInput::Gated { config.intermediate_size } else { config.hidden_size };
        Ok(Activations::new(&input_path(input, index, expert), self.search, &self.held_out, cols)?)
    }
}

fn hidden_file(layer: usize) -> String {
    format!("hidden_{layer:03}.safetensors")
}

impl<'a> Capture<'a> {
    /// Begins with the `inputs` of the first layer, or where an earlier run stopped.
    pub(crate) fn new(
        layers: usize,
        samples: Option<(&'a CalibrationSet, Option<Vec<Tensor>>)>,
        work: &'a WorkFolder,
        stop: &'a StopFlag,
    ) -> Result<Self> {
        let mut capture = Self { samples: None, work, stop, hidden: Vec::new(), quantized: None, at: 0 };
        let Some((samples, inputs)) = samples else { return Ok(capture) };
        capture.samples = Some(samples);
        match inputs {
            Some(inputs) => {
                capture.hidden = inputs;
                capture.store(0)?;
                samples.store(work)?;
            }
            None => {
                let at = (0..=layers).rev().find(|layer| work.has(&hidden_file(*layer)));
                capture.at =
                    at.ok_or_else(|| Error::file(work.file(&hidden_file(0)).display(), "missing"))?;
                (capture.hidden, capture.quantized) = capture.load(capture.at)?;
            }
        }
        Ok(capture)
    }

    /// Whether the samples are still to be run through a layer.
    pub(crate) fn awaits(&self, index: usize) -> bool {
        self.samples.is_some() && self.at == index
    }

    /// Runs the samples through the quantized model too, from the first layer on; `llm` has its embedding.
    pub(crate) fn follow(&mut self, llm: &Llm) -> Result<()> {
        let Some(samples) = self.samples.filter(|_| self.at == 0) else { return Ok(()) };
        let inputs = samples.sequences.iter().zip(&self.hidden).map(|(run, x)| run.embedded_by(llm, x));
        self.quantized = Some(inputs.collect::<Result<_>>()?);
        Ok(())
    }

    /// Whether the quantized model is followed.
    pub(crate) fn follows(&self) -> bool {
        self.quantized.is_some()
    }

    /// Runs the samples through a layer and returns the input activations of each expert; none without samples, or
    /// where an earlier run was further.
    pub(crate) fn layer(&mut self, llm: &Llm, index: usize) -> Result<[Option<LayerActivations>; 2]> {
        let Some(samples) = self.samples.filter(|_| self.awaits(index)) else { return Ok([None, None]) };
        let (experts, next) = self.run(samples, llm, index)?;
        self.hidden = next;
        Ok(experts)
    }

    /// Records one input in the quantized model, of which `llm` has the part before it; empty if it is not followed.
    pub(crate) fn input(
        &self,
        llm: &Llm,
        index: usize,
        input: LinearInput,
    ) -> Result<Vec<Option<Activations>>> {
        let (Some(samples), Some(quantized)) =
            (self.samples, self.quantized.as_ref().filter(|_| self.at == index))
        else {
            return Ok(Vec::new());
        };
        let config = llm.config();
        let mut recorded = [Recorded::default(), Recorded::default()];
        for (run, x) in samples.sequences.iter().zip(quantized).filter(|(run, _)| !run.tokens.is_empty()) {
            self.stop.check()?;
            let tokens: Vec<u32> = run.tokens.iter().map(|token| *token as u32).collect();
            let x = llm.layer_input(index, x, &run.sequence(config), (&tokens, run.expert()), input)?;
            recorded[run.expert() as usize].extend(&x, run.held_out)?;
        }
        let each = |(expert, recorded): (Expert, Recorded)| {
            samples.records(expert).then(|| recorded.activations(index, input, expert, config)).transpose()
        };
        Expert::ALL.into_iter().zip(recorded).map(each).collect()
    }

    /// Runs the samples through a layer: its input activations, for each expert whose are recorded, and its outputs.
    fn run(
        &self,
        samples: &CalibrationSet,
        llm: &Llm,
        index: usize,
    ) -> Result<([Option<LayerActivations>; 2], Vec<Tensor>)> {
        let config = llm.config();
        let mut recorded: [[Recorded; 4]; 2] = Default::default();
        let mut next = Vec::with_capacity(self.hidden.len());
        for (run, x) in samples.sequences.iter().zip(&self.hidden) {
            self.stop.check()?;
            let recorded = &mut recorded[run.expert() as usize];
            let mut probe = |name: std::fmt::Arguments<'_>, x: &Tensor| {
                let name = name.to_string();
                match LinearInput::ALL.into_iter().find(|input| name.ends_with(input.name())) {
                    Some(input) => Ok(recorded[input as usize].add(x, &run.tokens, run.held_out)?),
                    None => Ok(()),
                }
            };
            next.push(llm.run_layer(index, x, &run.sequence(config), &mut probe)?);
        }
        let mut experts = [None, None];
        for (expert, recorded) in Expert::ALL.into_iter().zip(recorded) {
            if samples.records(expert) {
                let finish = |recorded: Recorded, input| recorded.activations(index, input, expert, config);
                let [qkv, o, gate_up, down] = recorded;
                experts[expert as usize] = Some(LayerActivations {
                    qkv: finish(qkv, LinearInput::Normed)?,
                    o: finish(o, LinearInput::Heads)?,
                    gate_up: finish(gate_up, LinearInput::Attended)?,
                    down: finish(down, LinearInput::Gated)?,
                });
            }
        }
        Ok((experts, next))
    }

    /// Stores the next layer's inputs once layer `index` is finished; `llm` has the quantized layer, if it is followed.
    pub(crate) fn advance(&mut self, index: usize, llm: Option<&Llm>) -> Result<()> {
        if let (true, Some(llm), Some(quantized)) = (self.awaits(index), llm, &self.quantized) {
            let samples = self.samples.into_iter().flat_map(|samples| &samples.sequences).zip(quantized);
            let next = samples.map(|(run, x)| {
                Ok(llm.run_layer(index, x, &run.sequence(llm.config()), &mut |_, _| Ok(()))?)
            });
            self.quantized = Some(next.collect::<Result<_>>()?);
        }
        self.advance_keeping_first(index)?;
        self.work.forget(&hidden_file(index))
    }

    /// Stores the next layer's inputs and keeps the first layer's for another pass.
    pub(crate) fn advance_keeping_first(&mut self, index: usize) -> Result<()> {
        if !self.awaits(index) {
            return Ok(());
        }
        self.at = index + 1;
        self.store(self.at)?;
        if index == 0 { Ok(()) } else { self.work.forget(&hidden_file(index)) }
    }

    /// Goes back to the first layer's inputs.
    pub(crate) fn rewind(&mut self) -> Result<()> {
        self.hidden = self.inputs()?;
        for layer in 1..=self.at {
            self.work.forget(&hidden_file(layer))?;
        }
        self.at = 0;
        Ok(())
    }

    /// The inputs of the layer that was reached.
    pub(crate) fn hidden(&self) -> &[Tensor] {
        &self.hidden
    }

    /// The first layer's inputs.
    pub(crate) fn inputs(&self) -> Result<Vec<Tensor>> {
        if self.at == 0 { Ok(self.hidden.clone()) } else { Ok(self.load(0)?.0) }
    }

    /// Input activations of the output head, after the original final norm.
    pub(crate) fn head_inputs(&self, llm: &Llm) -> Result<Option<HeadActivations>> {
        let Some(samples) = self.samples else { return Ok(None) };
        let record = |hidden: &[Tensor]| -> Result<Activations> {
            let mut recorded = Recorded::default();
            for (run, x) in
                samples.sequences.iter().zip(hidden).filter(|(run, _)| !run.head_tokens.is_empty())
            {
                let normed = llm.norm(x, &run.sequence(llm.config()))?;
                recorded.add(&normed, &run.head_tokens, run.held_out)?;
            }
            Ok(Activations::new("lm_head", recorded.search, &recorded.held_out, llm.config().hidden_size)?)
        };
        let actual = self.quantized.as_deref().map(record).transpose()?;
        Ok(Some(HeadActivations { original: record(&self.hidden)?, actual }))
    }

    fn store(&self, layer: usize) -> Result<()> {
        let mut bytes: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (stream, tensors) in [("", Some(&self.hidden)), (QUANTIZED, self.quantized.as_ref())] {
            for (i, x) in tensors.into_iter().flatten().enumerate() {
                let values = x.flatten_all()?.to_vec1::<f32>()?;
                let values = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                bytes.push((format!("{stream}{i:06}"), x.dims().to_vec(), values));
            }
        }
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
        self.work.write_with(&hidden_file(layer), |path| {
            let views = views.map_err(Error::at(path))?;
            safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path)
                .map_err(Error::at(path))
        })
    }

    /// Both hidden states before a layer, as they were stored.
    fn load(&self, layer: usize) -> Result<(Vec<Tensor>, Option<Vec<Tensor>>)> {
        let path = self.work.file(&hidden_file(layer));
        let bytes = crate::files::read(&path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(Error::at(&path))?;
        let tensor = |name: String| {
            let view = tensors.tensor(&name).map_err(Error::at(&path))?;
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Ok(Tensor::from_vec(values, view.shape(), &Device::Cpu)?)
        };
        let n = self.samples.map_or(0, |samples| samples.sequences.len());
        let stream = |prefix: &str| -> Result<Vec<Tensor>> {
            let tensors = (0..n).map(|i| tensor(format!("{prefix}{i:06}")));
            tensors.collect::<Result<_>>()
        };
        let followed = tensors.names().iter().any(|name| name.starts_with(QUANTIZED));
        Ok((stream("")?, followed.then(|| stream(QUANTIZED)).transpose()?))
    }
}

/// Prefix of the quantized model's hidden states in the file.
const QUANTIZED: &str = "quantized.";
