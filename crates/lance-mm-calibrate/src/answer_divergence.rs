//! Divergence of answers when a part of the weights is changed.

use candle_core::Tensor;
use lance_mm_eval::Position;
use lance_mm_models::{Expert, Llm, Sequence};
use lance_mm_pipelines::Lance;

use crate::calibration_sequence::CalibrationSequence;
use crate::calibration_set::CalibrationSet;
use crate::error::{Error, Result};

/// Tokens of all sequences together: eight sequences of a thousand, or more that are shorter.
const MAX_TOKENS: usize = 8192;
/// Answer tokens of one sequence that are compared.
const MAX_ANSWER: usize = 16;

/// Held-out samples with the unchanged model's logits along their answers.
pub(crate) struct ReferenceAnswers {
    cases: Vec<Case>,
    vocabulary: usize,
}

struct Case {
    /// Index in the calibration set.
    at: usize,
    sequence: Sequence,
    /// First token that predicts one of the answer.
    first: usize,
    /// Number of these tokens.
    n: usize,
    /// Logits of the unchanged model, a vector for each of them.
    logits: Vec<Vec<f32>>,
}

impl ReferenceAnswers {
    /// Runs held-out samples, as many as there is room for, through the unchanged model; `inputs` are the first
    /// layer's of all samples.
    pub(crate) fn new(lance: &Lance, samples: &CalibrationSet, inputs: &[Tensor]) -> Result<Self> {
        let is_compared = |run: &CalibrationSequence| run.held_out && run.expert() == Expert::Und;
        let held_out: Vec<(usize, &CalibrationSequence)> =
            samples.sequences.iter().enumerate().filter(|(_, run)| is_compared(run)).collect();
        let tokens: usize = held_out.iter().map(|(_, run)| run.sequence(lance.config()).len()).sum();
        // Evenly spread, since samples of one image are neighbours.
        let step = tokens.div_ceil(MAX_TOKENS).max(1);
        let mut answers = Self { cases: Vec::new(), vocabulary: lance.tokenizer().vocab_limit() as usize };
        for (at, run) in held_out.into_iter().step_by(step) {
            let sequence = run.sequence(lance.config());
            let first = sequence.len() - 1 - run.n_answer();
            let n = (run.n_answer() + 1).min(MAX_ANSWER);
            answers.cases.push(Case { at, sequence, first, n, logits: Vec::new() });
        }
        if answers.cases.is_empty() {
            return Err(Error::Calibration("expected held-out samples, found none".into()));
        }
        for i in 0..answers.cases.len() {
            let case = &answers.cases[i];
            let logits = answers.logits(lance.llm(), 0, case, inputs[case.at].clone())?;
            answers.cases[i].logits = logits;
        }
        Ok(answers)
    }

    /// Mean divergence (KL) of `llm` from the unchanged model over answer tokens, in nats. `input` makes the input of
    /// layer `first` of a sample.
    pub(crate) fn divergence(
        &self,
        llm: &Llm,
        first: usize,
        input: &dyn Fn(usize, &Sequence) -> Result<Tensor>,
    ) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0);
        for case in &self.cases {
            let found = self.logits(llm, first, case, input(case.at, &case.sequence)?)?;
            for (reference, found) in case.logits.iter().zip(&found) {
                // The divergence compares whole distributions; the token does not matter.
                sum += Position::new(reference, found, 0)?.kl;
                n += 1;
            }
        }
        Ok(sum / f64::from(n))
    }

    fn logits(&self, llm: &Llm, first: usize, case: &Case, mut x: Tensor) -> Result<Vec<Vec<f32>>> {
        for index in first..llm.config().num_hidden_layers {
            x = llm.run_layer(index, &x, &case.sequence, &mut |_, _| Ok(()))?;
        }
        let rows = llm.norm(&x, &case.sequence)?.narrow(0, case.first, case.n)?;
        Ok(llm.logits(&rows)?.narrow(1, 0, self.vocabulary)?.to_vec2()?)
    }
}
