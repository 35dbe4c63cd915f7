//! Latency of the answers to a few questions, one by one.

use lance_mm_pipelines::{AskOptions, DecodeOptions, Lance};
use serde::Serialize;

use crate::Dataset;
use crate::error::Result;
use crate::oracle::{CaseAnswer, answers};

/// Time of an answer. Answers differ in length: compare models by `seconds_per_token`, not by the sum.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnswerTime {
    /// The question.
    pub question: String,
    /// From the image to the last token.
    pub seconds: f64,
    /// The part until the prompt with its image is prefilled.
    pub prompt_seconds: f64,
    /// Decoding, for each token.
    pub seconds_per_token: f64,
    /// Tokens of the answer.
    pub tokens: usize,
}

impl AnswerTime {
    fn new(question: &str, answer: &CaseAnswer) -> Self {
        let prompt_seconds = answer.encode_seconds + answer.prefill_seconds;
        Self {
            question: question.to_owned(),
            seconds: prompt_seconds + answer.seconds_per_token * answer.tokens as f64,
            prompt_seconds,
            seconds_per_token: answer.seconds_per_token,
            tokens: answer.tokens,
        }
    }
}

/// Answers every question once, with `tokens` tokens at most.
pub(super) fn measure(lance: &Lance, data: &Dataset, tokens: usize) -> Result<Vec<AnswerTime>> {
    let decode = DecodeOptions { max_new_tokens: tokens, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let answers = answers(lance, data, &options, &mut |_, _| {})?;
    let pairs = data.samples.iter().zip(&answers);
    Ok(pairs.map(|(sample, answer)| AnswerTime::new(&sample.question, answer)).collect())
}
