//! What is run to record inputs: prompts with their answers, and which of their rows are kept.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use lance_mm::eval::{Dataset, Sample};
use lance_mm::models::{Config, Cursor, Grid, Segment, Sequence};
use lance_mm::prompt::{self, Content, Medium, Turn};
use lance_mm::{Decoding, Options, Part, Understanding};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};

use super::workdir::WorkDir;
use crate::output::Hints;

/// Tokens of an answer that the model is asked for.
const MAX_ANSWER: usize = 64;
/// Shares of the recorded rows: of pictures, of the prompt's text, of the answer.
const SHARES: [usize; 3] = [40, 30, 30];
const FILE: &str = "samples.json";

/// The samples of a run.
pub(super) struct Samples {
    pub(super) runs: Vec<Run>,
}

/// One sample, laid out.
pub(super) struct Run {
    segments: Vec<Segment>,
    /// Tokens of the answer, at the end.
    pub(super) n_answer: usize,
    /// Rows that are recorded, rising.
    pub(super) picks: Vec<usize>,
    /// Rows after which a token of the answer is chosen, recorded for the output head.
    pub(super) head_picks: Vec<usize>,
    /// Whether the sample is only judged by.
    pub(super) held_back: bool,
}

/// One number for each sample, which tells samples apart and not what is in them.
pub(super) fn hashes(dataset: &Dataset) -> Result<Vec<String>> {
    let hash = |sample: &Sample| {
        let question = format!("{}\n{}", sample.question, sample.answer.as_deref().unwrap_or_default());
        Ok(sample.shown.hash(&question)?)
    };
    dataset.samples.iter().map(hash).collect()
}

impl Samples {
    /// What an earlier run chose.
    pub(super) fn stored(work: &WorkDir) -> Result<Option<Self>> {
        work.read_json(FILE)?.as_ref().map(Self::from_json).transpose()
    }

    /// Lays all samples out and chooses rows. The second value is the input of the first layer.
    pub(super) fn prepare(
        lance: &Understanding,
        dataset: &Dataset,
        (rows, seed): (usize, u64),
        hints: Hints,
    ) -> Result<(Self, Vec<Tensor>)> {
        if dataset.samples.len() < 4 {
            bail!(
                "{}: expected 4 samples or more, of which a quarter is held back, found {}",
                dataset.name,
                dataset.samples.len()
            );
        }
        if dataset.samples.len() < 32 {
            hints.note(&format!("note: {} samples are few; 32 or more are advised", dataset.samples.len()));
        }
        let (mut runs, mut inputs) = (Vec::new(), Vec::new());
        for (i, sample) in dataset.samples.iter().enumerate() {
            let _busy = hints.busy(&format!("sample {} of {}", i + 1, dataset.samples.len()));
            let (run, x) = Run::lay_out(lance, sample, i % 4 == 3)?;
            runs.push(run);
            inputs.push(x);
        }
        let mut samples = Self { runs };
        samples.choose(lance.config(), rows, seed)?;
        Ok((samples, inputs))
    }

    /// Keeps what was chosen, once the first layer's input is stored.
    pub(super) fn store(&self, work: &WorkDir) -> Result<()> {
        let runs: Vec<Value> = self.runs.iter().map(Run::to_json).collect();
        work.write(FILE, Value::from(runs).to_string().as_bytes())
    }

    fn from_json(stored: &Value) -> Result<Self> {
        let runs = stored.as_array().context("samples.json: expected a list")?;
        let runs = runs.iter().map(|run| Run::from_json(run).context("samples.json: expected a sample"));
        Ok(Self { runs: runs.collect::<Result<_>>()? })
    }

    fn choose(&mut self, config: &Config, rows: usize, seed: u64) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for held_back in [false, true] {
            let total = if held_back { rows / 4 } else { rows - rows / 4 };
            let mut strata: [Vec<(usize, usize)>; 3] = Default::default();
            let mut head = Vec::new();
            for (i, run) in self.runs.iter().enumerate().filter(|(_, run)| run.held_back == held_back) {
                let sequence = run.sequence(config);
                for row in 0..sequence.len() {
                    let visual = sequence.visual().iter().any(|range| range.contains(&row));
                    let answer = row + run.n_answer >= sequence.len();
                    strata[if visual {
                        0
                    } else if answer {
                        2
                    } else {
                        1
                    }]
                    .push((i, row));
                    if answer || row + run.n_answer + 1 == sequence.len() {
                        head.push((i, row));
                    }
                }
            }
            let found: usize = strata.iter().map(Vec::len).sum();
            if found < 16 {
                bail!(
                    "calibration: expected 16 rows or more {}, found {found}",
                    if held_back { "held back" } else { "to search with" }
                );
            }
            let quotas = quotas(total, &strata.each_ref().map(Vec::len));
            for (stratum, quota) in strata.iter_mut().zip(quotas) {
                for (i, row) in draw(stratum, quota, &mut rng) {
                    self.runs[i].picks.push(row);
                }
            }
            for (i, row) in draw(&mut head, total, &mut rng) {
                self.runs[i].head_picks.push(row);
            }
        }
        for run in &mut self.runs {
            run.picks.sort_unstable();
            run.head_picks.sort_unstable();
        }
        Ok(())
    }
}

/// Shares of `total`, a short stratum leaving its rest to the others in order.
fn quotas(total: usize, sizes: &[usize; 3]) -> [usize; 3] {
    let mut quotas = [0; 3];
    for (i, share) in SHARES.iter().enumerate() {
        quotas[i] = (total * share / 100).min(sizes[i]);
    }
    for i in 0..3 {
        let left = total - quotas.iter().sum::<usize>();
        quotas[i] += left.min(sizes[i] - quotas[i]);
    }
    quotas
}

/// The first `n` of a shuffle (Fisher and Yates).
fn draw(items: &mut [(usize, usize)], n: usize, rng: &mut ChaCha8Rng) -> Vec<(usize, usize)> {
    let n = n.min(items.len());
    for i in 0..n {
        let j = i + (rng.next_u64() % (items.len() - i) as u64) as usize;
        items.swap(i, j);
    }
    items[..n].to_vec()
}

impl Run {
    fn lay_out(lance: &Understanding, sample: &Sample, held_back: bool) -> Result<(Self, Tensor)> {
        let options = Options::default();
        let visuals = sample.shown.encode(lance, &options)?;
        let answer: Vec<u32> = match &sample.answer {
            Some(text) => lance.tokenizer().encode(text)?,
            None => {
                let mut parts: Vec<Part<'_>> = visuals.iter().map(Part::Visual).collect();
                parts.push(Part::Text(&sample.question));
                let decoding = Decoding { max_new_tokens: MAX_ANSWER, ..Decoding::default() };
                let options = Options { decoding, ..Options::default() };
                let mut ids = lance.answer(&parts, &options, &mut |_| ControlFlow::Continue(()))?.ids;
                // The last token is chosen, never read.
                ids.pop();
                ids
            }
        };
        let medium = visuals.first().map_or(Medium::Text, |visual| visual.medium());
        let mut contents: Vec<Content<'_>> = visuals.iter().map(|v| Content::Visual(v.grid())).collect();
        contents.push(Content::Text(&sample.question));
        let instruction = prompt::instruction(medium, !sample.question.is_empty());
        let mut segments = prompt::conversation(lance.tokenizer(), &instruction, &[Turn::User(contents)])?;
        let n_answer = answer.len();
        segments.push(Segment::Text(answer));
        let run = Self { segments, n_answer, picks: Vec::new(), head_picks: Vec::new(), held_back };
        let features: Vec<Tensor> = visuals.iter().map(|v| v.features().clone()).collect();
        let x = lance.llm().embed(&run.sequence(lance.config()), &features)?;
        Ok((run, x))
    }

    pub(super) fn sequence(&self, config: &Config) -> Sequence {
        Sequence::new(&self.segments, &config.layout(), Cursor::default())
    }

    fn to_json(&self) -> Value {
        let segments: Vec<Value> = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(ids) => json!({ "text": ids }),
                Segment::Vit(g) | Segment::Clean(g) | Segment::Noise(g) => json!({ "vit": [g.t, g.h, g.w] }),
            })
            .collect();
        json!({
            "segments": segments, "answer": self.n_answer, "picks": self.picks,
            "head_picks": self.head_picks, "held_back": self.held_back,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let numbers = |v: &Value| -> Option<Vec<usize>> {
            v.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect()
        };
        let segment = |v: &Value| {
            if let Some(ids) = v.get("text") {
                let ids = numbers(ids)?.into_iter().map(|id| u32::try_from(id).ok());
                return Some(Segment::Text(ids.collect::<Option<_>>()?));
            }
            match numbers(v.get("vit")?)?[..] {
                [t, h, w] => Some(Segment::Vit(Grid { t, h, w })),
                _ => None,
            }
        };
        Some(Self {
            segments: value["segments"].as_array()?.iter().map(segment).collect::<Option<_>>()?,
            n_answer: usize::try_from(value["answer"].as_u64()?).ok()?,
            picks: numbers(&value["picks"])?,
            head_picks: numbers(&value["head_picks"])?,
            held_back: value["held_back"].as_bool()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_strata_give_their_rest_to_others() {
        assert_eq!(quotas(100, &[1000, 1000, 1000]), [40, 30, 30]);
        assert_eq!(quotas(100, &[1000, 1000, 10]), [60, 30, 10]);
        assert_eq!(quotas(100, &[5, 10, 15]), [5, 10, 15]);
        assert_eq!(quotas(0, &[5, 10, 15]), [0, 0, 0]);
    }

    #[test]
    fn a_draw_has_no_item_twice_and_repeats_with_its_seed() {
        let items: Vec<(usize, usize)> = (0..50).map(|i| (i, 0)).collect();
        let mut first = draw(&mut items.clone(), 20, &mut ChaCha8Rng::seed_from_u64(3));
        assert_eq!(first, draw(&mut items.clone(), 20, &mut ChaCha8Rng::seed_from_u64(3)));
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 20);
    }
}
