//! What is run to record inputs: prompts with their answers, and which of their rows are kept.

use candle_core::Tensor;
use lance_mm_eval::{Dataset, Sample};
use lance_mm_models::{Config, Expert, Segment};
use lance_mm_pipelines::prompt::{self, Medium, Turn, TurnContent};
use lance_mm_pipelines::{AskOptions, Content, DecodeOptions, Lance};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;

use crate::calibration_sequence::CalibrationSequence;
use crate::error::{Error, Result};
use crate::progress::{Monitor, Progress};
use crate::work_folder::WorkFolder;

/// Tokens of an answer that the model is asked for.
const MAX_ANSWER: usize = 64;
/// Shares of the recorded rows: of pictures, of the prompt's text, of the answer.
const SHARES: [usize; 3] = [40, 30, 30];
const FILE: &str = "samples.json";

/// The samples of a run.
pub(crate) struct CalibrationSet {
    pub(crate) sequences: Vec<CalibrationSequence>,
}

/// One number for each sample, which tells samples apart and not what is in them.
pub(crate) fn hashes(dataset: &Dataset) -> Result<Vec<String>> {
    let hash = |sample: &Sample| {
        let question = format!("{:?} {:?}", sample.question, sample.answer);
        Ok(sample.shown.hash(&question)?)
    };
    dataset.samples.iter().map(hash).collect()
}

impl CalibrationSet {
    /// What an earlier run chose.
    pub(crate) fn stored(work: &WorkFolder) -> Result<Option<Self>> {
        work.read_json(FILE)?.as_ref().map(Self::from_json).transpose()
    }

    /// Chooses rows of what was laid out.
    pub(crate) fn new(
        sequences: Vec<CalibrationSequence>,
        config: &Config,
        (rows, seed): (usize, u64),
    ) -> Result<Self> {
        let mut samples = Self { sequences };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        samples.choose(config, rows, &mut rng)?;
        if samples.records(Expert::Gen) {
            samples.choose_latents(config, rows, &mut rng)?;
        }
        Ok(samples)
    }

    /// Whether inputs of an expert are recorded.
    pub(crate) fn records(&self, expert: Expert) -> bool {
        self.sequences.iter().any(|run| run.expert() == expert)
    }

    /// Keeps what was chosen, once the first layer's input is stored.
    pub(crate) fn store(&self, work: &WorkFolder) -> Result<()> {
        work.write_json(FILE, &self.sequences.iter().map(CalibrationSequence::to_json).collect::<Vec<_>>())
    }

    fn from_json(stored: &Value) -> Result<Self> {
        let sequences = stored
            .as_array()
            .and_then(|sequences| sequences.iter().map(CalibrationSequence::from_json).collect());
        Ok(Self { sequences: sequences.ok_or_else(|| Error::file(FILE, "expected a list of samples"))? })
    }

    fn choose(&mut self, config: &Config, rows: usize, rng: &mut ChaCha8Rng) -> Result<()> {
        for held_out in [false, true] {
            let total = share(rows, held_out);
            let mut strata: [Vec<(usize, usize)>; 3] = Default::default();
            let mut head = Vec::new();
            let questions =
                |run: &CalibrationSequence| run.held_out == held_out && run.expert() == Expert::Und;
            for (i, run) in self.sequences.iter().enumerate().filter(|(_, run)| questions(run)) {
                let sequence = run.sequence(config);
                for row in 0..sequence.len() {
                    let visual = sequence.visual().iter().any(|range| range.contains(&row));
                    let answer = row + run.n_answer() >= sequence.len();
                    strata[if visual {
                        0
                    } else if answer {
                        2
                    } else {
                        1
                    }]
                    .push((i, row));
                    if answer || row + run.n_answer() + 1 == sequence.len() {
                        head.push((i, row));
                    }
                }
            }
            let found: usize = strata.iter().map(Vec::len).sum();
            if found < 16 {
                let purpose = if held_out { "held back" } else { "to search with" };
                let message = format!("expected 16 rows or more {purpose}, found {found}");
                return Err(Error::Calibration(message));
            }
            let quotas = quotas(total, &strata.each_ref().map(Vec::len));
            for (stratum, quota) in strata.iter_mut().zip(quotas) {
                for (i, row) in draw(stratum, quota, rng) {
                    self.sequences[i].tokens.push(row);
                }
            }
            for (i, row) in draw(&mut head, total, rng) {
                self.sequences[i].head_tokens.push(row);
            }
        }
        for run in &mut self.sequences {
            run.tokens.sort_unstable();
            run.head_tokens.sort_unstable();
        }
        Ok(())
    }

    /// As many rows of the GEN expert.
    fn choose_latents(&mut self, config: &Config, rows: usize, rng: &mut ChaCha8Rng) -> Result<()> {
        for held_out in [false, true] {
            let drawings =
                |run: &CalibrationSequence| run.held_out == held_out && run.expert() == Expert::Gen;
            let sequences = self.sequences.iter().enumerate().filter(|(_, run)| drawings(run));
            let mut latents: Vec<(usize, usize)> = sequences
                .flat_map(|(i, run)| run.latent_rows(config).into_iter().map(move |row| (i, row)))
                .collect();
            for (i, row) in draw(&mut latents, share(rows, held_out), rng) {
                self.sequences[i].tokens.push(row);
            }
        }
        self.sequences.iter_mut().for_each(|run| run.tokens.sort_unstable());
        Ok(())
    }
}

/// Lays questions out. The second value is the input of the first layer.
pub(crate) fn questions(
    lance: &Lance,
    dataset: &Dataset,
    monitor: &mut Monitor<'_>,
) -> Result<(Vec<CalibrationSequence>, Vec<Tensor>)> {
    let n = dataset.samples.len();
    if n < 4 {
        let message = format!("expected 4 samples or more, of which a quarter is held back, found {n}");
        return Err(Error::file(&dataset.name, message));
    }
    if n < 32 {
        monitor.begin(Progress::FewSamples(n))?;
    }
    let (mut sequences, mut inputs) = (Vec::new(), Vec::new());
    monitor.begin(Progress::Samples { done: 0, total: n })?;
    for (i, sample) in dataset.samples.iter().enumerate() {
        let (run, x) = lay_out(lance, sample, i % 4 == 3)?;
        sequences.push(run);
        inputs.push(x);
        monitor.begin(Progress::Samples { done: i + 1, total: n })?;
    }
    Ok((sequences, inputs))
}

/// Activations held back, or to search with, of so many.
fn share(rows: usize, held_out: bool) -> usize {
    if held_out { rows / 4 } else { rows - rows / 4 }
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

fn lay_out(lance: &Lance, sample: &Sample, held_out: bool) -> Result<(CalibrationSequence, Tensor)> {
    let options = AskOptions::default();
    let visuals = sample.shown.encode(lance, &options)?;
    let answer: Vec<u32> = match &sample.answer {
        Some(text) => lance.tokenizer().encode(text)?,
        None => {
            let mut message: Vec<Content<'_>> = visuals.iter().map(Content::Features).collect();
            message.push(Content::Text(&sample.question));
            let decode = DecodeOptions { max_new_tokens: MAX_ANSWER, ..DecodeOptions::default() };
            let options = AskOptions { decode, ..AskOptions::default() };
            let mut ids = lance.answer(&message, &options)?.ids;
            // The last token is chosen, never read.
            ids.pop();
            ids
        }
    };
    let medium = visuals.first().map_or(Medium::Text, |visual| visual.medium());
    let mut contents: Vec<TurnContent<'_>> = visuals.iter().map(|v| TurnContent::Visual(v.grid())).collect();
    contents.push(TurnContent::Text(&sample.question));
    let system_message = prompt::system_message(medium, !sample.question.is_empty());
    let turns = [Turn::User(contents)];
    let mut segments = prompt::conversation(lance.tokenizer(), system_message.as_str(), &turns)?;
    let n_answer = answer.len();
    segments.push(Segment::Text(answer));
    let run = CalibrationSequence::question(segments, n_answer, held_out);
    let features: Vec<Tensor> = visuals.iter().map(|v| v.features().clone()).collect();
    let x = lance.llm().embed(&run.sequence(lance.config()), &features)?;
    Ok((run, x))
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
