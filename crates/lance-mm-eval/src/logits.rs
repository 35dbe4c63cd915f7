//! Logits of two models at the same places of the same answer.

use candle_core::Tensor;
use lance_mm_models::Llm;
use lance_mm_tensor::{read_values, with_autorelease_pool};
use serde::Serialize;

use super::distribution::{Distribution, mean};
use crate::error::{Error, Result};
use crate::finite;

/// REF's distance from its first to its second choice above which another choice of CAND counts as a flip
/// with margin.
pub const MARGIN: f32 = 1.0;

/// Rows whose logits are held at once.
const ROWS: usize = 32;

/// Two models' logits at one place of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    /// `Σ p ln(p / q)` in nats, `p` the reference's probabilities and `q` the candidate's.
    pub kl: f64,
    /// Whether the likeliest token is the same; the lowest id of several.
    pub same_argmax: bool,
    /// Whether it is not, though the reference was sure by more than [`MARGIN`].
    pub flip_with_margin: bool,
    /// Share of the reference's five likeliest tokens that are among the candidate's.
    pub top5_overlap: f64,
    /// `−ln q` of the answer's token.
    pub nll: f64,
    /// `−ln p` of the answer's token.
    pub nll_reference: f64,
    squared_error: f64,
    squared_spread: f64,
}

impl Position {
    /// Compares logits of the same vocabulary at a place whose token is `token`.
    ///
    /// # Errors
    /// Other lengths, none at all, a token past the end, logits that are not finite.
    pub fn new(reference: &[f32], candidate: &[f32], token: u32) -> Result<Self> {
        if reference.len() != candidate.len() {
            let (expected, found) = (reference.len(), candidate.len());
            return Err(Error::data(
                "logits",
                format!("expected {expected} of the candidate, found {found}"),
            ));
        }
        let token = index(token, reference.len())?;
        let p = log_probabilities(reference, "logits of the reference")?;
        let q = log_probabilities(candidate, "logits of the candidate")?;
        let (top_p, top_q) = (top5(reference), top5(candidate));
        let same_argmax = top_p[0] == top_q[0];
        let margin = top_p.get(1).map_or(f32::INFINITY, |second| reference[top_p[0]] - reference[*second]);
        let average = reference.iter().map(|l| f64::from(*l)).sum::<f64>() / reference.len() as f64;
        let squares = |terms: &mut dyn Iterator<Item = f64>| terms.map(|t| t * t).sum::<f64>();
        let pairs = || reference.iter().zip(candidate).map(|(r, c)| (f64::from(*r), f64::from(*c)));
        Ok(Self {
            // Never below zero but for rounding.
            kl: p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0),
            same_argmax,
            flip_with_margin: !same_argmax && margin > MARGIN,
            top5_overlap: top_p.iter().filter(|id| top_q.contains(id)).count() as f64 / top_p.len() as f64,
            nll: -q[token],
            nll_reference: -p[token],
            squared_error: squares(&mut pairs().map(|(r, c)| c - r)),
            squared_spread: squares(&mut pairs().map(|(r, _)| r - average)),
        })
    }
}

/// Sums over the positions of one or more answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LogitReport {
    /// Answer tokens compared, the one that ends each answer included.
    pub positions: usize,
    /// Divergence from the reference, nats.
    pub kl: Distribution,
    /// Its mean over the first token of each answer: it decides yes or no, and numbers.
    pub kl_first: f64,
    /// Share of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// Mean share of the five likeliest tokens in common.
    pub top5_overlap: f64,
    /// Share of positions where the likeliest token differs though the reference was sure.
    pub flips_with_margin: f64,
    /// Mean of `−ln q` of the answer's tokens, nats.
    pub nll: f64,
    /// The same of the reference.
    pub nll_reference: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// `exp(nll_reference)`.
    pub perplexity_reference: f64,
    /// Candidate's perplexity over the reference's.
    pub perplexity_ratio: f64,
    /// `‖q − p‖ / ‖p − mean of p‖` over the logits `p`, `q` of all positions.
    pub logit_error: f64,
}

impl LogitReport {
    /// Sums up answers, each the positions of its tokens in order; `None` without any.
    pub fn of<'a>(answers: impl IntoIterator<Item = &'a [Position]>) -> Option<Self> {
        let answers: Vec<&[Position]> = answers.into_iter().collect();
        let all = || answers.iter().copied().flatten();
        let average = |value: fn(&Position) -> f64| mean(all().map(value));
        let root = |value: fn(&Position) -> f64| all().map(value).sum::<f64>().sqrt();
        let (error, spread) = (root(|p| p.squared_error), root(|p| p.squared_spread));
        let (nll, nll_reference) = (average(|p| p.nll)?, average(|p| p.nll_reference)?);
        Some(Self {
            positions: all().count(),
            kl: Distribution::of(all().map(|p| p.kl).collect())?,
            kl_first: mean(answers.iter().filter_map(|answer| answer.first()).map(|p| p.kl))?,
            top1_agreement: average(|p| f64::from(p.same_argmax))?,
            top5_overlap: average(|p| p.top5_overlap)?,
            flips_with_margin: average(|p| f64::from(p.flip_with_margin))?,
            nll,
            nll_reference,
            perplexity: nll.exp(),
            perplexity_reference: nll_reference.exp(),
            perplexity_ratio: (nll - nll_reference).exp(),
            logit_error: if error == 0.0 { 0.0 } else { error / spread },
        })
    }
}

/// `−ln p` of a token.
///
/// # Errors
/// A token past the end, logits that are not finite.
pub fn nll(logits: &[f32], token: u32) -> Result<f64> {
    let token = index(token, logits.len())?;
    Ok(-log_probabilities(logits, "logits")?[token])
}

/// Shows the logits of each of `normed`'s rows to `show`, cut to `vocabulary`, a few rows at a time: the
/// whole of them would take gigabytes for a long text.
pub(super) fn each_row(
    llm: &Llm,
    normed: &Tensor,
    vocabulary: usize,
    mut show: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let n = normed.dim(0)?;
    for first in (0..n).step_by(ROWS) {
        let logits = with_autorelease_pool(|| llm.logits(&normed.narrow(0, first, ROWS.min(n - first))?))?;
        let width = logits.dim(1)?;
        read_values(&logits, |rows| {
            let mut rows = rows.chunks_exact(width).enumerate();
            rows.try_for_each(|(i, logits)| show(first + i, &logits[..vocabulary.min(width)]))
        })??;
    }
    Ok(())
}

fn index(token: u32, len: usize) -> Result<usize> {
    let index = usize::try_from(token).ok().filter(|index| *index < len);
    index.ok_or_else(|| Error::data("logits", format!("expected a token below {len}, found {token}")))
}

fn log_probabilities(logits: &[f32], name: &str) -> Result<Vec<f64>> {
    finite::check(logits, || name.to_owned())?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = |l: &f32| f64::from(*l) - f64::from(max);
    let log_sum = logits.iter().map(|l| shifted(l).exp()).sum::<f64>().ln();
    Ok(logits.iter().map(|l| shifted(l) - log_sum).collect())
}

/// Ids of the largest five, largest first, lower ids first among equals.
fn top5(logits: &[f32]) -> Vec<usize> {
    let mut top: Vec<usize> = Vec::with_capacity(6);
    for (id, logit) in logits.iter().enumerate() {
        let place = top.iter().position(|other| logits[*other] < *logit).unwrap_or(top.len());
        if place < 5 {
            top.insert(place, id);
            top.truncate(5);
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_tokens_by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = ln 2 / 2 − ln 2 / 4.
        let p: Vec<f32> = [0.5f32, 0.25, 0.25].iter().map(|p| p.ln()).collect();
        let q: Vec<f32> = [0.25f32, 0.5, 0.25].iter().map(|q| q.ln()).collect();
        let found = Position::new(&p, &q, 0).unwrap();
        let ln2 = std::f64::consts::LN_2;
        assert!((found.kl - ln2 / 4.0).abs() < 1e-7, "{}", found.kl);
        assert!((found.nll - 2.0 * ln2).abs() < 1e-7 && (found.nll_reference - ln2).abs() < 1e-7);
        assert!(!found.same_argmax && !found.flip_with_margin && found.top5_overlap == 1.0);
        // A constant added to all logits changes nothing.
        let shifted: Vec<f32> = q.iter().map(|l| l + 8.0).collect();
        assert!((Position::new(&p, &shifted, 0).unwrap().kl - ln2 / 4.0).abs() < 1e-6);
        assert!((nll(&q, 1).unwrap() - ln2).abs() < 1e-7);
    }

    #[test]
    fn equal_logits_differ_by_nothing() {
        let logits = [0.3, -1.25, 7.5, 7.25];
        let position = Position::new(&logits, &logits, 2).unwrap();
        let report = LogitReport::of([&[position, position][..]]).unwrap();
        assert_eq!((report.kl.max, report.kl_first, report.logit_error), (0.0, 0.0, 0.0));
        assert_eq!((report.top1_agreement, report.top5_overlap, report.perplexity_ratio), (1.0, 1.0, 1.0));
        assert_eq!(LogitReport::of([]), None);
    }

    #[test]
    fn the_lowest_id_wins_a_tie() {
        let of = |p: &[f32], q: &[f32]| Position::new(p, q, 0).unwrap();
        assert!(of(&[1.0, 2.0, 2.0], &[0.0, 3.0, 1.0]).same_argmax);
        assert!(!of(&[1.0, 2.0, 2.0], &[0.0, 1.0, 3.0]).same_argmax);
        assert!(of(&[3.0, 0.0], &[0.0, 3.0]).flip_with_margin);
        assert!(!of(&[1.0, 0.0], &[0.0, 3.0]).flip_with_margin, "a margin of exactly 1 is none");
        assert_eq!(top5(&[1.0, 5.0, 2.0, 5.0, 0.0, 2.0, 1.0]), [1, 3, 2, 5, 0]);
        assert_eq!(
            of(&[9., 8., 7., 6., 5., 0., 0., 0.], &[9., 8., 7., 0., 0., 6., 5., 0.]).top5_overlap,
            0.6
        );
    }

    #[test]
    fn what_cannot_be_compared_is_told() {
        let of = |p: &[f32], q: &[f32], token| Position::new(p, q, token).unwrap_err().to_string();
        assert_eq!(of(&[1.0], &[1.0, 2.0], 0), "logits: expected 1 of the candidate, found 2");
        assert_eq!(of(&[1.0], &[1.0], 1), "logits: expected a token below 1, found 1");
        assert_eq!(of(&[], &[], 0), "logits: expected a token below 0, found 0");
        assert_eq!(
            of(&[1.0, 2.0], &[1.0, f32::NAN], 0),
            "logits of the candidate: expected finite numbers, found NaN"
        );
    }
}
