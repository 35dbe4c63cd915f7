//! Two checkpoints of one model on the same questions.

mod report;

use super::SampleProgress;
use super::dataset::{Dataset, Sample};
use super::logits::{LogitReport, Position, each_row};
use super::text::Agreement;
use crate::error::{Error, Result};
use lance_mm_pipelines::Tokenizer;
use lance_mm_pipelines::{AskOptions, ImageContext, ImageFeatures, Lance};
pub use report::{MeanAgreement, ParityReport, SampleReport, Score, Stratum};

/// Options of [`parity()`].
#[derive(Clone, Debug, PartialEq)]
pub struct ParityOptions {
    /// Prompt and decoding of the questions. Answers are greedy whatever the sampling says.
    pub asking: AskOptions,
    /// Teacher-forced answer of both models.
    pub continuation: Continuation,
    /// Let each model answer on its own too. Without it there are no answers to compare, and half of the
    /// time is saved.
    pub answers: bool,
    /// Kinds that a second sum over all samples leaves out.
    pub leave_out: Vec<String>,
}

impl Default for ParityOptions {
    fn default() -> Self {
        Self {
            asking: AskOptions::default(),
            continuation: Continuation::Greedy,
            answers: true,
            leave_out: Vec::new(),
        }
    }
}

/// The tokens at which logits are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Continuation {
    /// The reference's own greedy answer.
    Greedy,
    /// The answer in the data, and `<|im_end|>`.
    Given,
}

/// Asks both models the questions of a data set, each with its own vision encoder. Images are
/// encoded once, whatever number of questions follows.
///
/// # Errors
/// Models with different tokenizers, images that cannot be read or used, logits that are not finite, a
/// sample without an answer with [`Continuation::Given`].
pub fn parity(
    reference: &Lance,
    candidate: &Lance,
    data: &Dataset,
    options: &ParityOptions,
    progress: &mut SampleProgress<'_>,
) -> Result<ParityReport> {
    require_same_tokens(reference.tokenizer(), candidate.tokenizer())?;
    let models = [reference, candidate];
    let mut measured: Vec<Option<Measured>> = data.samples.iter().map(|_| None).collect();
    let mut done = 0;
    progress(done, data.samples.len());
    for group in data.by_media() {
        let sample = &data.samples[group[0]];
        let open = |lance: &Lance| sample.encode(lance, &options.asking);
        let visuals = [open(reference)?, open(candidate)?];
        let context = |lance: &Lance, visuals: &[ImageFeatures]| {
            sample.context(lance, visuals, &options.asking).map_err(|error| sample.located(error))
        };
        let (mut first, mut second) = (context(reference, &visuals[0])?, context(candidate, &visuals[1])?);
        for i in group {
            let pair = Pair { models, contexts: [&mut first, &mut second], options };
            let sample = &data.samples[i];
            measured[i] = Some(pair.measure(sample).map_err(|error| sample.located(error))?);
            done += 1;
            progress(done, data.samples.len());
        }
    }
    let report = ParityReport::new(data, measured.into_iter().flatten().collect(), options);
    if let Some(LogitReport { nll, nll_reference, perplexity_ratio, .. }) = &report.all.logits
        && ![nll.exp(), nll_reference.exp(), *perplexity_ratio].iter().all(|value| value.is_finite())
    {
        let found = format!("exp({nll}) of the candidate and exp({nll_reference}) of the reference");
        return Err(Error::data("perplexity", format!("expected finite ones, found {found}")));
    }
    Ok(report)
}

/// Measurements of one sample.
pub(super) struct Measured {
    hash: String,
    positions: Vec<Position>,
    /// The models' own answers.
    answers: Option<[String; 2]>,
}

/// Two models and their contexts of the same images.
struct Pair<'a> {
    models: [&'a Lance; 2],
    contexts: [&'a mut ImageContext; 2],
    options: &'a ParityOptions,
}

impl Pair<'_> {
    fn measure(self, sample: &Sample) -> Result<Measured> {
        let Self { models, contexts: [reference, candidate], options } = self;
        let given = options.continuation == Continuation::Given;
        let mut greedy = options.asking.clone();
        greedy.decode.sampling = Default::default();
        let ask = |context: &mut ImageContext, model| {
            context.ask(&sample.question, &greedy).map_err(|error| Error::from(error).of_model(model))
        };
        let own = if options.answers || !given { Some(ask(reference, "reference")?) } else { None };
        let ids = match &own {
            Some(answer) if !given => answer.ids.clone(),
            _ => given_ids(models[0].tokenizer(), sample)?,
        };
        let [p, q] = [
            reference.teacher_forced(&sample.question, &ids)?,
            candidate.teacher_forced(&sample.question, &ids)?,
        ];
        let answers = match own.filter(|_| options.answers) {
            Some(own) => Some([own.text, ask(candidate, "candidate")?.text]),
            None => None,
        };
        Ok(Measured {
            hash: sample.hash(&sample.question)?,
            positions: positions(models, [&p, &q], &ids).map_err(|error| sample.error(error))?,
            answers,
        })
    }
}

/// Compares the logits of rows that predict `ids`.
fn positions(
    [reference, candidate]: [&Lance; 2],
    [p, q]: [&candle_core::Tensor; 2],
    ids: &[u32],
) -> Result<Vec<Position>> {
    let vocabulary = reference.tokenizer().vocab_limit() as usize;
    let mut rows = Vec::new();
    let mut positions = Vec::with_capacity(ids.len());
    // In pieces, so that two long answers' logits are never held as a whole.
    for (first, ids) in ids.chunks(PIECE).enumerate().map(|(i, ids)| (i * PIECE, ids)) {
        rows.clear();
        each_row(reference.llm(), &p.narrow(0, first, ids.len())?, vocabulary, |_, logits| {
            rows.push(logits.to_vec());
            Ok(())
        })
        .map_err(|error| error.of_model("reference"))?;
        each_row(candidate.llm(), &q.narrow(0, first, ids.len())?, vocabulary, |i, logits| {
            positions.push(Position::new(&rows[i], logits, ids[i])?);
            Ok(())
        })
        .map_err(|error| error.of_model("candidate"))?;
    }
    Ok(positions)
}

/// Positions whose logits are held at once.
const PIECE: usize = 32;

/// Tokens of the answer in the data and the one that ends it.
pub(super) fn given_ids(tokenizer: &Tokenizer, sample: &Sample) -> Result<Vec<u32>> {
    let Some(answer) = &sample.answer else {
        return Err(sample.error("answer: expected a text, found no such field"));
    };
    if let Some(token) = tokenizer.special_in(answer) {
        return Err(sample.error(format!("answer: expected plain text, found the special token {token}")));
    }
    let mut ids = tokenizer.encode(answer)?;
    ids.push(tokenizer.id("<|im_end|>")?);
    Ok(ids)
}

/// Refuses models whose ids mean different things: their logits could not be compared.
pub(super) fn require_same_tokens(a: &Tokenizer, b: &Tokenizer) -> Result<()> {
    let differs =
        |id: &u32| a.token_bytes(*id) != b.token_bytes(*id) || a.is_special(*id) != b.is_special(*id);
    let limits = (a.vocab_limit(), b.vocab_limit());
    let found = match (0..limits.0.min(limits.1)).find(differs) {
        Some(id) => format!("another token {id}"),
        None if limits.0 != limits.1 => format!("{} instead of {} tokens", limits.1, limits.0),
        None => return Ok(()),
    };
    let message = format!("expected the tokens of {}, found {found}", a.name());
    Err(Error::data(b.name(), message))
}

/// The agreement of two answers.
fn agreement([reference, candidate]: &[String; 2]) -> Agreement {
    Agreement::new(reference, candidate)
}

#[cfg(test)]
mod tests;
