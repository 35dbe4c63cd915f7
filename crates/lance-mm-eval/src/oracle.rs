//! Answers of several models to the same few questions, side by side.

use std::time::Duration;

use serde::Serialize;

use super::dataset::{Dataset, Sample};
use super::text::says;
use super::{ModelInfo, SampleProgress};
use crate::error::Result;
use lance_mm_pipelines::{AskOptions, Content, Lance};

/// A model's answer to one question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseAnswer {
    /// The answer.
    pub text: String,
    /// Why it ended: `stop` or `length`.
    pub finish: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Generated tokens, the one that ends the answer included.
    pub tokens: usize,
    /// Seconds for the vision encoder.
    pub encode_seconds: f64,
    /// Seconds for the prompt.
    pub prefill_seconds: f64,
    /// Seconds for each generated token. Answers differ in length: compare this, not their sum.
    pub seconds_per_token: f64,
}

/// Asks one model all questions of a data set.
///
/// # Errors
/// Images that cannot be read or used; what the model refuses.
pub fn answers(
    lance: &Lance,
    data: &Dataset,
    options: &AskOptions,
    progress: &mut SampleProgress<'_>,
) -> Result<Vec<CaseAnswer>> {
    let mut answers = Vec::with_capacity(data.samples.len());
    progress(0, data.samples.len());
    for sample in &data.samples {
        answers.push(answer(lance, sample, options).map_err(|error| sample.located(error))?);
        progress(answers.len(), data.samples.len());
    }
    Ok(answers)
}

/// Asks one model the question of a sample.
pub(crate) fn answer(lance: &Lance, sample: &Sample, options: &AskOptions) -> Result<CaseAnswer> {
    let visuals = sample.encode(lance, options)?;
    let mut message: Vec<Content<'_>> = visuals.iter().map(Content::Features).collect();
    message.push(Content::Text(&sample.question));
    let answer = lance.answer(&message, options)?;
    let encode: Duration = visuals.iter().map(|visual| visual.time()).sum();
    Ok(CaseAnswer {
        finish: answer.finish_reason.name(),
        prompt_tokens: answer.prompt_tokens,
        tokens: answer.ids.len(),
        encode_seconds: encode.as_secs_f64(),
        prefill_seconds: answer.prefill_time.as_secs_f64(),
        seconds_per_token: answer.decode_time.as_secs_f64() / answer.ids.len().max(1) as f64,
        text: answer.text,
    })
}

/// The table: cases down, models across, the first model the reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OracleReport {
    /// The models.
    pub models: Vec<ModelInfo>,
    /// Sums over each model's answers.
    pub totals: Vec<Total>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// File names of its images or video.
    pub media: Vec<String>,
    /// Digits that tell images and question from others.
    pub hash: String,
    /// The question.
    pub question: String,
    /// The answer shipped with the case.
    pub upstream: Option<String>,
    /// The models' answers.
    pub results: Vec<CaseResult>,
}

/// One answer and whether it matches; `None` where no rule can tell, or there is nothing to match
/// ([`says`]).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseResult {
    /// Whether it says what the first model says.
    pub matches_reference: Option<bool>,
    /// Whether it contains what is expected or, where only an answer was shipped with the case, says what that says.
    pub matches_upstream: Option<bool>,
    /// The answer.
    pub answer: CaseAnswer,
}

/// Sums over a model's answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Total {
    /// Answers that match the reference's.
    pub matches_reference: usize,
    /// Answers that match those shipped with the cases.
    pub matches_upstream: usize,
    /// Cases of which a rule can tell that.
    pub told_upstream: usize,
    /// Cases of which a rule can tell whether the reference is matched.
    pub told_reference: usize,
    /// Generated tokens.
    pub tokens: usize,
    /// Seconds for all prompts.
    pub prefill_seconds: f64,
    /// Seconds for each generated token, over all of them.
    pub seconds_per_token: f64,
}

impl OracleReport {
    /// Puts the answers of models to the samples of `data` side by side.
    ///
    /// # Errors
    /// Images that cannot be read.
    ///
    /// # Panics
    /// When a model has another number of answers than there are samples.
    pub fn new(models: Vec<(ModelInfo, Vec<CaseAnswer>)>, data: &Dataset) -> Result<Self> {
        for (model, answers) in &models {
            assert_eq!(answers.len(), data.samples.len(), "{}: one answer for each sample", model.name);
        }
        let case = |(i, sample): (usize, &Sample)| -> Result<Case> {
            let reference = models.first().map(|(_, answers)| answers[i].text.as_str());
            let result = |answer: &CaseAnswer| CaseResult {
                matches_reference: reference.and_then(|reference| says(&answer.text, reference)),
                matches_upstream: sample.is_answered_by(&answer.text),
                answer: answer.clone(),
            };
            Ok(Case {
                media: sample.media.names(),
                hash: sample.hash(&sample.question)?,
                question: sample.question.clone(),
                upstream: sample.answer.clone(),
                results: models.iter().map(|(_, answers)| result(&answers[i])).collect(),
            })
        };
        let cases = data.samples.iter().enumerate().map(case).collect::<Result<Vec<_>>>()?;
        let of = |i: usize| cases.iter().map(move |case: &Case| &case.results[i]);
        Ok(Self {
            totals: (0..models.len()).map(|i| Total::of(of(i))).collect(),
            models: models.into_iter().map(|(model, _)| model).collect(),
            cases,
        })
    }
}

impl Total {
    fn of<'a>(results: impl Iterator<Item = &'a CaseResult>) -> Self {
        let mut total = Self::default();
        let mut decode = 0.0;
        for CaseResult { matches_reference, matches_upstream, answer } in results {
            total.matches_reference += usize::from(*matches_reference == Some(true));
            total.told_reference += usize::from(matches_reference.is_some());
            total.matches_upstream += usize::from(*matches_upstream == Some(true));
            total.told_upstream += usize::from(matches_upstream.is_some());
            total.tokens += answer.tokens;
            total.prefill_seconds += answer.prefill_seconds;
            decode += answer.seconds_per_token * answer.tokens as f64;
        }
        total.seconds_per_token = decode / total.tokens.max(1) as f64;
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, demos};

    #[test]
    fn the_demo_cases_in_a_table() {
        let lance = Lance::new(checkpoint()).unwrap();
        let data = demos();
        let mut told = Vec::new();
        let answers =
            answers(&lance, &data, &AskOptions::default(), &mut |done, of| told.push((done, of))).unwrap();
        assert_eq!(told, (0..=6).map(|done| (done, 6)).collect::<Vec<_>>());
        let mut other = answers.clone();
        other[2].text = "Byfky".into();
        other[5].text = "Three red stars.".into();
        let info = |name: &str| ModelInfo::of(&lance, name);
        let report = OracleReport::new(vec![(info("a"), answers), (info("b"), other)], &data).unwrap();

        let reference = report.totals[0];
        assert_eq!((reference.matches_reference, reference.matches_upstream), (6, 6));
        let candidate = report.totals[1];
        assert_eq!((candidate.matches_reference, candidate.told_reference), (4, 5));
        let plate = &report.cases[2].results[1];
        assert_eq!((plate.matches_reference, plate.matches_upstream), (Some(false), Some(false)));
        assert_eq!(report.cases[5].results[1].matches_upstream, None, "a description, and no facts");
        assert!(reference.seconds_per_token > 0.0 && reference.prefill_seconds > 0.0);
        assert!(
            serde_json::to_value(&report).unwrap()["cases"][2]["results"][1]["answer"]["text"] == "Byfky"
        );
    }
}
