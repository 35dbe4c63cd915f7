//! Sums over samples, all of them and by kind.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Continuation, Measured, ParityOptions, agreement};
use crate::SMALL_SAMPLE;
use crate::dataset::{Dataset, Sample};
use crate::distribution::mean;
use crate::logits::{LogitReport, Position};
use crate::text::{Agreement, contains_expected};

/// A candidate against its reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParityReport {
    /// The tokens at which logits were compared.
    pub continuation: Continuation,
    /// Over all samples.
    pub all: Stratum,
    /// Over all but the kinds that were to be left out.
    pub without: Option<Stratum>,
    /// By kind, for samples that have one.
    pub kinds: Vec<Stratum>,
    /// Each sample, in the order of the data.
    pub samples: Vec<SampleReport>,
}

/// Sums over some samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stratum {
    /// The kind, or what the sum is over.
    pub name: String,
    /// Samples.
    pub samples: usize,
    /// `small sample` below [`SMALL_SAMPLE`].
    pub note: Option<&'static str>,
    /// Their logits.
    pub logits: Option<LogitReport>,
    /// Both models' own answers against each other.
    pub agreement: Option<MeanAgreement>,
    /// The reference's own answers against those in the data.
    pub reference: Option<Score>,
    /// The candidate's.
    pub candidate: Option<Score>,
}

/// [`Agreement`] over some samples: means, and shares where it is yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeanAgreement {
    /// Answers compared.
    pub answers: usize,
    /// Share of equal ones.
    pub exact: f64,
    /// Mean similarity of characters.
    pub char_similarity: f64,
    /// Mean share of words in common.
    pub word_jaccard: f64,
    /// Mean length over the reference's.
    pub length_ratio: f64,
    /// Share with the same facts.
    pub facts_equal: f64,
}

/// Answers of one model against those in the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Answers of samples that have one in the data.
    pub answers: usize,
    /// Share of those equal to it, but for white space at the ends.
    pub exact: f64,
    /// Share of those that contain what is expected
    /// ([`contains_expected`]).
    pub expected: f64,
}

/// One sample.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleReport {
    /// Digits that tell image and question from others.
    pub hash: String,
    /// Its kind.
    pub kind: Option<String>,
    /// Answer tokens compared.
    pub tokens: usize,
    /// Mean divergence over them, nats.
    pub kl: Option<f64>,
    /// Share of them with the same likeliest token.
    pub top1_agreement: Option<f64>,
    /// The answer in the data.
    pub answer: Option<String>,
    /// The reference's own answer.
    pub reference: Option<String>,
    /// The candidate's own answer.
    pub candidate: Option<String>,
    /// The two against each other.
    pub agreement: Option<Agreement>,
}

type Pair<'a> = (&'a Sample, &'a Measured);

impl ParityReport {
    pub(super) fn new(data: &Dataset, measured: Vec<Measured>, options: &ParityOptions) -> Self {
        let all: Vec<Pair<'_>> = data.samples.iter().zip(&measured).collect();
        let mut kinds: BTreeMap<&str, Vec<Pair<'_>>> = BTreeMap::new();
        for (sample, measured) in &all {
            if let Some(kind) = &sample.kind {
                kinds.entry(kind).or_default().push((sample, measured));
            }
        }
        let out = |sample: &Sample| sample.kind.as_ref().is_some_and(|kind| options.leave_out.contains(kind));
        let without = (!options.leave_out.is_empty()).then(|| {
            let kept: Vec<Pair<'_>> = all.iter().copied().filter(|(sample, _)| !out(sample)).collect();
            Stratum::of(&format!("without {}", options.leave_out.join(", ")), &kept)
        });
        Self {
            continuation: options.continuation,
            all: Stratum::of("all", &all),
            without,
            kinds: kinds.into_iter().map(|(kind, pairs)| Stratum::of(kind, &pairs)).collect(),
            samples: all.iter().map(|pair| SampleReport::of(*pair)).collect(),
        }
    }
}

impl Stratum {
    fn of(name: &str, pairs: &[Pair<'_>]) -> Self {
        let agreements: Vec<Agreement> =
            pairs.iter().filter_map(|(_, m)| Some(agreement(m.answers.as_ref()?))).collect();
        Self {
            name: name.to_owned(),
            samples: pairs.len(),
            note: (pairs.len() < SMALL_SAMPLE).then_some("small sample"),
            logits: LogitReport::of(pairs.iter().map(|(_, m)| m.positions.as_slice())),
            agreement: MeanAgreement::of(&agreements),
            reference: Score::of(pairs, 0),
            candidate: Score::of(pairs, 1),
        }
    }
}

impl MeanAgreement {
    fn of(agreements: &[Agreement]) -> Option<Self> {
        let average = |value: fn(&Agreement) -> f64| mean(agreements.iter().map(value));
        Some(Self {
            answers: agreements.len(),
            exact: average(|a| f64::from(a.exact))?,
            char_similarity: average(|a| a.char_similarity)?,
            word_jaccard: average(|a| a.word_jaccard)?,
            length_ratio: average(|a| a.length_ratio)?,
            facts_equal: average(|a| f64::from(a.facts_equal))?,
        })
    }
}

impl Score {
    fn of(pairs: &[Pair<'_>], model: usize) -> Option<Self> {
        let answered = || {
            pairs
                .iter()
                .filter_map(|(sample, m)| Some((sample, sample.wanted()?, &m.answers.as_ref()?[model])))
        };
        let exact = |sample: &Sample, answer: &str| {
            sample.answer.as_ref().or(sample.expected.as_ref()).is_some_and(|a| a.trim() == answer.trim())
        };
        Some(Self {
            answers: answered().count(),
            exact: mean(answered().map(|(sample, _, answer)| f64::from(exact(sample, answer))))?,
            expected: mean(
                answered().map(|(_, wanted, answer)| f64::from(contains_expected(answer, wanted))),
            )?,
        })
    }
}

impl SampleReport {
    fn of((sample, measured): Pair<'_>) -> Self {
        let average = |value: fn(&Position) -> f64| mean(measured.positions.iter().map(value));
        let answers = measured.answers.as_ref();
        Self {
            hash: measured.hash.clone(),
            kind: sample.kind.clone(),
            tokens: measured.positions.len(),
            kl: average(|p| p.kl),
            top1_agreement: average(|p| f64::from(p.same_argmax)),
            answer: sample.answer.clone(),
            reference: answers.map(|a| a[0].clone()),
            candidate: answers.map(|a| a[1].clone()),
            agreement: answers.map(agreement),
        }
    }
}
