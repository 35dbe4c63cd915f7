//! The calibration set: prompts with their answers, and the tokens whose activations are recorded.

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

/// Longest answer, in tokens, that the model is asked for where the dataset has none.
const MAX_ANSWER: usize = 64;
/// Shares of the recorded tokens, in percent: image tokens, text of the prompt, answer.
const SHARES: [usize; 3] = [40, 30, 30];
const FILE: &str = "samples.json";

/// The sequences that are run, with the tokens whose activations are recorded.
pub(crate) struct CalibrationSet {
    pub(crate) sequences: Vec<CalibrationSequence>,
}

/// A hash of each sample, which tells samples apart without telling their contents.
pub(crate) fn hashes(dataset: &Dataset) -> Result<Vec<String>> {
    let hash = |sample: &Sample| {
        let question = format!("{:?} {:?}", sample.question, sample.answer);
        Ok(sample.hash(&question)?)
    };
    dataset.samples.iter().map(hash).collect()
}

impl CalibrationSet {
    /// Reads the set of an earlier run.
    pub(crate) fn stored(work: &WorkFolder) -> Result<Option<Self>> {
        let Some(stored) = work.read_json::<Vec<Value>>(FILE)? else { return Ok(None) };
        let sequences: Option<Vec<_>> = stored.iter().map(CalibrationSequence::from_json).collect();
        let sequences = sequences.ok_or_else(|| Error::file(FILE, "expected a list of samples"))?;
        Ok(Some(Self { sequences }))
    }

    /// Chooses about `n_tokens` of each expert.
    pub(crate) fn new(
        sequences: Vec<CalibrationSequence>,
        config: &Config,
        n_tokens: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut set = Self { sequences };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for held_out in [false, true] {
            set.choose(config, share(n_tokens, held_out), held_out, &mut rng)?;
        }
        if set.records(Expert::Gen) {
            for held_out in [false, true] {
                set.choose_latents(config, share(n_tokens, held_out), held_out, &mut rng);
            }
        }
        for sequence in &mut set.sequences {
            sequence.tokens.sort_unstable();
            sequence.head_tokens.sort_unstable();
        }
        Ok(set)
    }

    /// Whether inputs of an expert are recorded.
    pub(crate) fn records(&self, expert: Expert) -> bool {
        self.sequences.iter().any(|sequence| sequence.expert() == expert)
    }

    /// Writes the set, once the first layer's input is stored.
    pub(crate) fn store(&self, work: &WorkFolder) -> Result<()> {
        work.write_json(FILE, &self.sequences.iter().map(CalibrationSequence::to_json).collect::<Vec<_>>())
    }

    /// Sequences of one expert that are held out, or are not, with their index.
    fn of(&self, expert: Expert, held_out: bool) -> impl Iterator<Item = (usize, &CalibrationSequence)> {
        let is_one =
            move |(_, s): &(usize, &CalibrationSequence)| s.held_out == held_out && s.expert() == expert;
        self.sequences.iter().enumerate().filter(is_one)
    }

    /// Chooses tokens of the UND expert, and those that the output head reads.
    fn choose(
        &mut self,
        config: &Config,
        n_tokens: usize,
        held_out: bool,
        rng: &mut ChaCha8Rng,
    ) -> Result<()> {
        let mut strata: [Vec<(usize, usize)>; 3] = Default::default();
        let mut head = Vec::new();
        for (i, run) in self.of(Expert::Und, held_out) {
            let sequence = run.sequence(config);
            for token in 0..sequence.len() {
                let is_visual = sequence.visual().iter().any(|range| range.contains(&token));
                let is_answer = token + run.n_answer() >= sequence.len();
                let stratum = if is_visual {
                    0
                } else if is_answer {
                    2
                } else {
                    1
                };
                strata[stratum].push((i, token));
                if is_answer || token + run.n_answer() + 1 == sequence.len() {
                    head.push((i, token));
                }
            }
        }
        let found: usize = strata.iter().map(Vec::len).sum();
        if found < 16 {
            let purpose = if held_out { "to hold out" } else { "to fit to" };
            return Err(Error::Calibration(format!("expected 16 tokens or more {purpose}, found {found}")));
        }
        let quotas = quotas(n_tokens, &strata.each_ref().map(Vec::len));
        for (stratum, quota) in strata.iter_mut().zip(quotas) {
            for (i, token) in shuffled(stratum, quota, rng) {
                self.sequences[i].tokens.push(token);
            }
        }
        for (i, token) in shuffled(&mut head, n_tokens, rng) {
            self.sequences[i].head_tokens.push(token);
        }
        Ok(())
    }

    /// Chooses latent tokens of the GEN expert.
    fn choose_latents(&mut self, config: &Config, n_tokens: usize, held_out: bool, rng: &mut ChaCha8Rng) {
        let all = self.of(Expert::Gen, held_out);
        let mut latents: Vec<(usize, usize)> =
            all.flat_map(|(i, run)| run.latents(config).into_iter().map(move |token| (i, token))).collect();
        for (i, token) in shuffled(&mut latents, n_tokens, rng) {
            self.sequences[i].tokens.push(token);
        }
    }
}

/// Lays questions out. The second value is the first layer's input of each, `(T, D)`.
pub(crate) fn questions(
    lance: &Lance,
    dataset: &Dataset,
    monitor: &mut Monitor<'_>,
) -> Result<(Vec<CalibrationSequence>, Vec<Tensor>)> {
    let total = dataset.samples.len();
    if total < 4 {
        let message = format!("expected 4 samples or more, of which a quarter is held out, found {total}");
        return Err(Error::file(&dataset.name, message));
    }
    if total < 32 {
        monitor.begin(Progress::FewSamples(total))?;
    }
    let (mut sequences, mut inputs) = (Vec::new(), Vec::new());
    monitor.begin(Progress::Samples { done: 0, total })?;
    for (i, sample) in dataset.samples.iter().enumerate() {
        let (sequence, x) = lay_out(lance, sample, i % 4 == 3).map_err(|error| match error {
            Error::Stopped | Error::Dataset(_) => error,
            error => Error::file(&sample.place, error),
        })?;
        sequences.push(sequence);
        inputs.push(x);
        monitor.begin(Progress::Samples { done: i + 1, total })?;
    }
    Ok((sequences, inputs))
}

/// Tokens to hold out, or to fit to, of `n`.
fn share(n: usize, held_out: bool) -> usize {
    if held_out { n / 4 } else { n - n / 4 }
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
fn shuffled(items: &mut [(usize, usize)], n: usize, rng: &mut ChaCha8Rng) -> Vec<(usize, usize)> {
    let n = n.min(items.len());
    for i in 0..n {
        let j = i + (rng.next_u64() % (items.len() - i) as u64) as usize;
        items.swap(i, j);
    }
    items[..n].to_vec()
}

fn lay_out(lance: &Lance, sample: &Sample, held_out: bool) -> Result<(CalibrationSequence, Tensor)> {
    let options = AskOptions::default();
    let visuals = sample.encode(lance, &options)?;
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
    fn a_shuffle_has_no_item_twice_and_repeats_with_its_seed() {
        let items: Vec<(usize, usize)> = (0..50).map(|i| (i, 0)).collect();
        let mut first = shuffled(&mut items.clone(), 20, &mut ChaCha8Rng::seed_from_u64(3));
        assert_eq!(first, shuffled(&mut items.clone(), 20, &mut ChaCha8Rng::seed_from_u64(3)));
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 20);
    }
}
