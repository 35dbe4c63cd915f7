//! How far answers move when a part of the weights is changed.

use candle_core::Tensor;
use lance_mm_eval::Position;
use lance_mm_models::{Expert, Llm, Sequence};
use lance_mm_pipelines::Lance;

use crate::calibration_sequence::CalibrationSequence;
use crate::calibration_set::CalibrationSet;
use crate::error::{Error, Result};

/// Activations of the sequences that are judged by, all together: at least eight sequences of a thousand.
const ROWS: usize = 8192;
/// Answer tokens of one sequence that are judged by.
const TOKENS: usize = 16;

/// Held-back samples and what the unchanged model makes of their answers.
pub(crate) struct ReferenceAnswers {
    cases: Vec<Case>,
    vocabulary: usize,
}

struct Case {
    /// Its index among all samples.
    at: usize,
    sequence: Sequence,
    /// Activations after which a token of the answer is chosen.
    first: usize,
    n: usize,
    reference: Vec<Vec<f32>>,
}

impl ReferenceAnswers {
    /// Runs the samples held back, as many as there is room for, through the unchanged model; `inputs` are
    /// the first layer's.
    pub(crate) fn new(lance: &Lance, samples: &CalibrationSet, inputs: &[Tensor]) -> Result<Self> {
        let judged = |run: &CalibrationSequence| run.held_out && run.expert() == Expert::Und;
        let held_out: Vec<(usize, &CalibrationSequence)> =
            samples.sequences.iter().enumerate().filter(|(_, run)| judged(run)).collect();
        let rows: usize = held_out.iter().map(|(_, run)| run.sequence(lance.config()).len()).sum();
        // Every so many-th: samples of one picture lie side by side.
        let step = rows.div_ceil(ROWS).max(1);
        let mut judge = Self { cases: Vec::new(), vocabulary: lance.tokenizer().vocab_limit() as usize };
        for (at, run) in held_out.into_iter().step_by(step) {
            let sequence = run.sequence(lance.config());
            let first = sequence.len() - 1 - run.n_answer();
            let n = (run.n_answer() + 1).min(TOKENS);
            judge.cases.push(Case { at, sequence, first, n, reference: Vec::new() });
        }
        if judge.cases.is_empty() {
            return Err(Error::Calibration("expected samples held back to judge by, found none".into()));
        }
        for i in 0..judge.cases.len() {
            let case = &judge.cases[i];
            let logits = judge.logits(lance.llm(), 0, case, inputs[case.at].clone())?;
            judge.cases[i].reference = logits;
        }
        Ok(judge)
    }

    /// Mean divergence in nats, over answer tokens, of `llm` from the unchanged model. `input` makes what a
    /// sample's layer `first` reads.
    pub(crate) fn divergence(
        &self,
        llm: &Llm,
        first: usize,
        input: &dyn Fn(usize, &Sequence) -> Result<Tensor>,
    ) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0);
        for case in &self.cases {
            let found = self.logits(llm, first, case, input(case.at, &case.sequence)?)?;
            for (reference, found) in case.reference.iter().zip(&found) {
                // The divergence is that of whole distributions: no token is asked for.
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
