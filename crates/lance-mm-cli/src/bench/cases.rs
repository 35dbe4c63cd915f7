//! Latency of the answers to a few questions, question by question: the table that was published with the
//! original port.

use anyhow::Result;
use lance_mm::{AskOptions, DecodeOptions};
use lance_mm_eval::Dataset;
use lance_mm_eval::oracle::{CaseAnswer, answers};
use serde::Serialize;

use super::measure::Measured;
use crate::document::number::short;
use crate::document::{Document, Table};
use crate::model::Model;
use crate::output::Hints;

/// How long an answer took. Answers differ in length: compare models by `seconds_per_token`, not by the sum.
#[derive(Serialize)]
pub(super) struct CaseTime {
    question: String,
    /// From the image to the last token.
    seconds: f64,
    /// Of these, until the prompt with its image is read.
    prompt_seconds: f64,
    seconds_per_token: f64,
    tokens: usize,
}

impl CaseTime {
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
pub(super) fn measure(model: &Model, data: &Dataset, tokens: usize, hints: Hints) -> Result<Vec<CaseTime>> {
    let decode = DecodeOptions { max_new_tokens: tokens, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let _busy = hints.busy("measuring answers");
    let answers = answers(&model.lance, data, &options, &mut |_, _| {})?;
    let pairs = data.samples.iter().zip(&answers);
    Ok(pairs.map(|(sample, answer)| CaseTime::new(&sample.question, answer)).collect())
}

/// Cases down, models across; nothing when no case was measured.
pub(super) fn show(models: &[Measured], document: &mut Document) {
    let [first, others @ ..] = models else { return };
    if first.cases.is_empty() {
        return;
    }
    document.heading("Answers");
    document.text("Seconds in all, until the prompt is read, and for each of the tokens.");
    let mut head = vec!["#".to_owned(), "question".to_owned()];
    for model in models {
        for what in ["s", "prompt", "a token", "tokens"] {
            head.push(format!("{}: {what}", model.name));
        }
    }
    head.extend(others.iter().map(|model| format!("{} a token to {}", first.name, model.name)));
    let mut table = Table::new(head.iter().map(String::as_str), 2);
    for (i, case) in first.cases.iter().enumerate() {
        let mut row = vec![(i + 1).to_string(), case.question.clone()];
        for case in models.iter().map(|model| &model.cases[i]) {
            row.extend([case.seconds, case.prompt_seconds, case.seconds_per_token].map(short));
            row.push(case.tokens.to_string());
        }
        let ratio = |model: &Measured| short(case.seconds_per_token / model.cases[i].seconds_per_token);
        row.extend(others.iter().map(ratio));
        table.row(row);
    }
    document.table(table);
}
