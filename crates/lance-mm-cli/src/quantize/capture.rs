//! Recording the inputs of linear layers, one layer after another.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use lance_mm::Understanding;
use lance_mm::quant::{Rows, SiteRows};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::samples::Samples;
use super::workdir::WorkDir;

/// The residual streams of all samples before some layer.
pub(super) struct Capture<'a> {
    samples: Option<&'a Samples>,
    work: &'a WorkDir,
    hidden: Vec<Tensor>,
    /// The layer that `hidden` is the input of.
    at: usize,
}

/// Values of the recorded rows of one site.
#[derive(Default)]
struct Site {
    search: Vec<f32>,
    held_back: Vec<f32>,
}

fn hidden_file(layer: usize) -> String {
    format!("hidden_{layer:03}.safetensors")
}

impl<'a> Capture<'a> {
    /// Begins with `inputs`, or where an earlier run stopped.
    pub(super) fn new(
        layers: usize,
        samples: Option<(&'a Samples, Option<Vec<Tensor>>)>,
        work: &'a WorkDir,
    ) -> Result<Self> {
        let mut capture = Self { samples: None, work, hidden: Vec::new(), at: 0 };
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
                    at.with_context(|| format!("{}: missing", work.file(&hidden_file(0)).display()))?;
                capture.hidden = load(work, &hidden_file(capture.at), samples.runs.len())?;
            }
        }
        Ok(capture)
    }

    /// Whether the samples are still to be run through a layer: there are any, and no earlier run did.
    pub(super) fn awaits(&self, index: usize) -> bool {
        self.samples.is_some() && self.at == index
    }

    /// Runs the samples through a layer and returns what its linear layers read; `None` without samples, or
    /// where an earlier run was further.
    pub(super) fn layer(&mut self, lance: &Understanding, index: usize) -> Result<Option<SiteRows>> {
        let Some(samples) = self.samples.filter(|_| self.at == index) else { return Ok(None) };
        let names = ["input_layernorm", "self_attn.heads", "post_attention_layernorm", "mlp.gated"];
        let mut sites: HashMap<String, Site> = HashMap::new();
        let mut next = Vec::with_capacity(self.hidden.len());
        for (run, x) in samples.runs.iter().zip(&self.hidden) {
            let sequence = run.sequence(lance);
            let picks: Vec<u32> = run.picks.iter().map(|row| *row as u32).collect();
            let picks = Tensor::new(picks.as_slice(), x.device())?;
            let mut probe = |name: std::fmt::Arguments<'_>, rows: &Tensor| {
                let name = name.to_string();
                let Some(site) = names.iter().find(|site| name.ends_with(*site)) else { return Ok(()) };
                let site = sites.entry((*site).to_owned()).or_default();
                let into = if run.held_back { &mut site.held_back } else { &mut site.search };
                if picks.elem_count() > 0 {
                    into.extend(rows.index_select(&picks, 0)?.flatten_all()?.to_vec1::<f32>()?);
                }
                Ok(())
            };
            next.push(lance.llm().run_layer(index, x, &sequence, &mut probe)?);
        }
        self.hidden = next;
        let config = lance.config();
        let mut rows = |name: &str, cols: usize| -> Result<Rows> {
            let site = sites.remove(name).unwrap_or_default();
            Ok(Rows::new(&format!("layers.{index}.{name}"), site.search, &site.held_back, cols)?)
        };
        let d = config.hidden_size;
        Ok(Some(SiteRows {
            a: rows(names[0], d)?,
            b: rows(names[1], d)?,
            c: rows(names[2], d)?,
            d: rows(names[3], config.intermediate_size)?,
        }))
    }

    /// Stores the next layer's inputs once layer `index` is finished.
    pub(super) fn advance(&mut self, index: usize) -> Result<()> {
        self.advance_keeping_first(index)?;
        self.work.forget(&hidden_file(index))
    }

    /// As [`advance`](Self::advance), the first layer's inputs left for another pass.
    pub(super) fn advance_keeping_first(&mut self, index: usize) -> Result<()> {
        if self.samples.is_none() || self.at != index {
            return Ok(());
        }
        self.at = index + 1;
        self.store(self.at)?;
        match index {
            0 => Ok(()),
            _ => self.work.forget(&hidden_file(index)),
        }
    }

    /// Goes back to the first layer's inputs.
    pub(super) fn rewind(&mut self) -> Result<()> {
        self.hidden = self.inputs()?;
        for layer in 1..=self.at {
            self.work.forget(&hidden_file(layer))?;
        }
        self.at = 0;
        Ok(())
    }

    /// The inputs of the layer that was reached.
    pub(super) fn hidden(&self) -> &[Tensor] {
        &self.hidden
    }

    /// The first layer's inputs.
    pub(super) fn inputs(&self) -> Result<Vec<Tensor>> {
        match self.at {
            0 => Ok(self.hidden.clone()),
            _ => load(self.work, &hidden_file(0), self.hidden.len()),
        }
    }

    /// What the output head reads, after the final norm.
    pub(super) fn head_rows(&self, lance: &Understanding) -> Result<Option<Rows>> {
        let Some(samples) = self.samples else { return Ok(None) };
        let mut site = Site::default();
        for (run, x) in samples.runs.iter().zip(&self.hidden).filter(|(run, _)| !run.head_picks.is_empty()) {
            let normed = lance.llm().norm(x, &run.sequence(lance))?;
            let picks: Vec<u32> = run.head_picks.iter().map(|row| *row as u32).collect();
            let rows = normed.index_select(&Tensor::new(picks.as_slice(), x.device())?, 0)?;
            let into = if run.held_back { &mut site.held_back } else { &mut site.search };
            into.extend(rows.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(Some(Rows::new("lm_head", site.search, &site.held_back, lance.config().hidden_size)?))
    }

    fn store(&self, layer: usize) -> Result<()> {
        let mut bytes: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (i, x) in self.hidden.iter().enumerate() {
            let values = x.flatten_all()?.to_vec1::<f32>()?;
            let values = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.push((format!("{i:06}"), x.dims().to_vec(), values));
        }
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        self.work.write_with(&hidden_file(layer), |path| {
            Ok(safetensors::serialize_to_file(views, None::<HashMap<String, String>>, path)?)
        })
    }
}

fn load(work: &WorkDir, file: &str, n: usize) -> Result<Vec<Tensor>> {
    let path = work.file(file);
    let bytes = super::read(&path)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    let tensor = |i: usize| {
        let view = tensors.tensor(&format!("{i:06}"))?;
        let values: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok(Tensor::from_vec(values, view.shape(), &Device::Cpu)?)
    };
    (0..n).map(tensor).collect::<Result<_>>().with_context(|| path.display().to_string())
}
