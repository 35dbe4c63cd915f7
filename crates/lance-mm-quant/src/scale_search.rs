//! The scale of a fusion group (AWQ): 42 candidates, compared by the error of the consumers' outputs.

use lance_mm_tensor::{Result, Scheme};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::activations::Activations;
use crate::block::{Block, energy, output_energy, relative};
use crate::matrix::{CHUNK, RowSource, Sampled, setting};
use crate::tie::Tie;

/// One consumer of the channels that are scaled.
#[derive(Clone, Copy)]
pub struct Consumer<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// Its weight `(R, K)`.
    pub weight: &'a dyn RowSource,
    /// Scheme in which it will be quantized.
    pub scheme: Scheme,
    /// Its input activations.
    pub inputs: &'a Activations,
}

/// A family of scales; `a` is a channel's root mean square, `m` its largest weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// All ones.
    Identity,
    /// `a^α`.
    Act,
    /// `a^α / m^(1−α)`.
    ActWeight,
}

/// A scale to try.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Its formula.
    pub family: Family,
    /// `α`, 0 for the identity.
    pub alpha: f64,
}

/// The candidates, in the order in which they are tried; of equal ones the earlier wins.
pub fn candidates() -> Vec<Candidate> {
    let of = |family, steps: std::ops::RangeInclusive<u32>| {
        steps.map(move |i| Candidate { family, alpha: f64::from(i) / 20.0 })
    };
    let identity = Candidate { family: Family::Identity, alpha: 0.0 };
    [identity].into_iter().chain(of(Family::Act, 1..=20)).chain(of(Family::ActWeight, 0..=20)).collect()
}

/// Statistics of the channels of a fusion group, one value for each free factor.
#[derive(Clone, Debug)]
pub struct Channels {
    /// Root mean square of the inputs, at least 1e-5 of the largest.
    pub a: Vec<f64>,
    /// Largest magnitude in the consumers' columns, each in units of its root mean square; at least 1e-5 of
    /// the largest.
    pub m: Vec<f64>,
}

impl Channels {
    /// Measures consumers whose columns are tied as `tie` says.
    ///
    /// # Errors
    /// No consumer; one of another width than its inputs or `tie`; weights that are not finite.
    pub fn measure(consumers: &[Consumer<'_>], tie: &Tie) -> Result<Self> {
        if consumers.is_empty() {
            return Err(setting("fusion group", "a consumer", "none"));
        }
        let (mut a, mut m) = (vec![0.0; tie.n_columns()], vec![0.0; tie.n_columns()]);
        for consumer in consumers {
            let columns = [consumer.weight.n_cols(), consumer.inputs.n_cols(), tie.n_columns()];
            if columns.iter().any(|n| *n != columns[0]) {
                let found = format!("{columns:?} of weight, inputs and group");
                return Err(setting(consumer.name, "as many columns as channels", found));
            }
            a.iter_mut().zip(consumer.inputs.rms()).for_each(|(sum, v)| *sum += v * v);
            m.iter_mut().zip(column_peaks(consumer)?).for_each(|(sum, v)| *sum += v);
        }
        let n = consumers.len() as f64;
        let share = tie.share() as f64;
        let a = tie.reduce(&a, |x, y| x + y).into_iter().map(|sum| (sum / (n * share)).sqrt());
        let m = tie.reduce(&m, f64::max).into_iter().map(|sum| sum / n);
        Ok(Self { a: floored(a.collect()), m: floored(m.collect()) })
    }

    /// The scale of a candidate: normalised so that its ends lie as far above as below 1, within 2^-8 and
    /// 2^8.
    pub fn scale(&self, candidate: Candidate) -> Vec<f32> {
        let Candidate { family, alpha } = candidate;
        let raw: Vec<f64> = match family {
            Family::Identity => vec![1.0; self.a.len()],
            Family::Act => self.a.iter().map(|a| a.powf(alpha)).collect(),
            Family::ActWeight => {
                self.a.iter().zip(&self.m).map(|(a, m)| a.powf(alpha) / m.powf(1.0 - alpha)).collect()
            }
        };
        let (lo, hi) = ends(&raw);
        let middle = (lo * hi).sqrt();
        let limit = 256.0;
        raw.iter().map(|s| (s / middle).clamp(1.0 / limit, limit) as f32).collect()
    }
}

fn ends(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)))
}

/// Raises values to 1e-5 of the largest; all zeros become ones.
fn floored(mut values: Vec<f64>) -> Vec<f64> {
    let (_, hi) = ends(&values);
    let floor = if hi > 0.0 { hi * 1e-5 } else { 1.0 };
    values.iter_mut().for_each(|v| *v = v.max(floor));
    values
}

/// `max_r |W_rk| / rms(W)`.
fn column_peaks(consumer: &Consumer<'_>) -> Result<Vec<f64>> {
    let (rows, cols) = (consumer.weight.n_rows(), consumer.weight.n_cols());
    let chunks: Vec<(Vec<f32>, f64)> = (0..rows.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| {
            let w = consumer.weight.read_rows(i * CHUNK, CHUNK.min(rows - i * CHUNK));
            let mut peaks = vec![0.0f32; cols];
            for row in w.chunks_exact(cols) {
                peaks.iter_mut().zip(row).for_each(|(p, v)| *p = p.max(v.abs()));
            }
            (peaks, energy(&w))
        })
        .collect();
    let total: f64 = chunks.iter().map(|(_, energy)| energy).sum();
    if !total.is_finite() {
        return Err(setting(consumer.name, "finite weights", "some that are not"));
    }
    let rms = (total / (rows * cols) as f64).sqrt();
    let peak = |k: usize| chunks.iter().map(|(peaks, _)| peaks[k]).fold(0.0, f32::max);
    Ok((0..cols).map(|k| relative(f64::from(peak(k)), rms)).collect())
}

/// Result of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Search {
    /// The best candidate on the search set.
    pub best: Candidate,
    /// Loss of every candidate on the search set, in the order of [`candidates`].
    pub losses: Vec<f64>,
    /// Loss of the identity on held-out activations.
    pub held_out_identity: f64,
    /// Loss of the best candidate on held-out activations.
    pub held_out_best: f64,
    /// Whether the best candidate is used: below 0.99 of the identity's loss on held-out activations.
    pub accepted: bool,
    /// Every consumer's share of `held_out_identity`: the relative error of plain rounding.
    #[serde(skip)]
    pub plain: Vec<f64>,
    /// The scale to use for every free factor, ones unless accepted.
    #[serde(skip)]
    pub scale: Vec<f32>,
}

/// Rows of a consumer on which scales are compared: more change neither their order nor which are accepted.
const ROWS: usize = 2048;

/// Searches the scale of a fusion group, comparing at most 2048 rows of every consumer.
///
/// # Errors
/// The same as of [`Channels::measure`]; columns that are not whole groups; losses that are not finite.
pub fn search(consumers: &[Consumer<'_>], tie: &Tie) -> Result<Search> {
    let channels = Channels::measure(consumers, tie)?;
    let sampled: Vec<Sampled<'_>> = consumers.iter().map(|c| Sampled::new(c.weight, ROWS)).collect();
    let consumers: Vec<Consumer<'_>> =
        consumers.iter().zip(&sampled).map(|(c, weight)| Consumer { weight, ..*c }).collect();
    let consumers = consumers.as_slice();
    let list = candidates();
    let scales: Vec<Vec<f32>> = list.iter().map(|c| channels.scale(*c)).collect();
    let losses: Vec<f64> = sum(&losses(consumers, tie, &scales, Activations::search)?);
    let best = (1..losses.len()).fold(0, |best, i| if losses[i] < losses[best] { i } else { best });
    let ends = [scales[0].clone(), scales[best].clone()];
    let held_out = self::losses(consumers, tie, &ends, Activations::held_out)?;
    let plain = held_out.iter().map(|consumer| consumer[0]).collect();
    let held_out = sum(&held_out);
    let accepted = held_out[1] < 0.99 * held_out[0];
    Ok(Search {
        best: list[best],
        losses,
        held_out_identity: held_out[0],
        held_out_best: held_out[1],
        accepted,
        plain,
        scale: scales[if accepted { best } else { 0 }].clone(),
    })
}

fn sum(by_consumer: &[Vec<f64>]) -> Vec<f64> {
    let n = by_consumer.first().map_or(0, Vec::len);
    (0..n).map(|i| by_consumer.iter().map(|losses| losses[i]).sum()).collect()
}

/// `‖X·Wᵀ − X·(Q(W·s) / s)ᵀ‖² / ‖X·Wᵀ‖²` of every consumer for each of several scales, on the set that
/// `part` selects.
///
/// # Errors
/// Columns that are not whole groups; losses that are not finite.
pub fn losses(
    consumers: &[Consumer<'_>],
    tie: &Tie,
    scales: &[Vec<f32>],
    part: fn(&Activations) -> &[f32],
) -> Result<Vec<Vec<f64>>> {
    let scales: Vec<Vec<f32>> = scales.iter().map(|s| tie.expand(s)).collect();
    consumers.iter().map(|consumer| consumer_losses(consumer, &scales, part(consumer.inputs))).collect()
}

fn consumer_losses(consumer: &Consumer<'_>, scales: &[Vec<f32>], x: &[f32]) -> Result<Vec<f64>> {
    let Consumer { name, weight, scheme, .. } = *consumer;
    let (rows, cols) = (weight.n_rows(), weight.n_cols());
    if !cols.is_multiple_of(scheme.group_size()) {
        let expected = format!("columns in groups of {}", scheme.group_size());
        return Err(setting(name, expected, format!("{cols} columns")));
    }
    // Chunks of rows do not depend on the number of threads, and sums follow their order.
    let chunks: Vec<(f64, Vec<f64>)> = (0..rows.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| {
            let w = weight.read_rows(i * CHUNK, CHUNK.min(rows - i * CHUNK));
            let errors =
                scales.iter().map(|s| output_energy(x, &scaled_error(&w, s, scheme), cols)).collect();
            (output_energy(x, &w, cols), errors)
        })
        .collect();
    let size: f64 = chunks.iter().map(|(size, _)| size).sum();
    let loss = |i: usize| relative(chunks.iter().map(|(_, errors)| errors[i]).sum(), size);
    let losses: Vec<f64> = (0..scales.len()).map(loss).collect();
    if losses.iter().all(|loss| loss.is_finite()) {
        Ok(losses)
    } else {
        Err(setting(name, "finite weights and inputs", "some that are not"))
    }
}

/// `W − Q(W·s) / s` of some rows.
fn scaled_error(w: &[f32], s: &[f32], scheme: Scheme) -> Vec<f32> {
    let mut scaled = w.to_vec();
    for row in scaled.chunks_exact_mut(s.len()) {
        row.iter_mut().zip(s).for_each(|(v, s)| *v *= s);
    }
    let block = Block::plain(&scaled, scheme);
    block.read(scheme, &mut scaled);
    for (row, w) in scaled.chunks_exact_mut(s.len()).zip(w.chunks_exact(s.len())) {
        row.iter_mut().zip(s).zip(w).for_each(|((v, s), w)| *v = w - *v / s);
    }
    scaled
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;
    use crate::matrix::Matrix;
    use crate::testing::correlated;

    /// One output at a time, the quantizer of the format.
    fn naive_loss(w: &Matrix, x: &[f32], s: &[f32], scheme: Scheme) -> f64 {
        let k = w.n_cols();
        let (mut error, mut size) = (0.0, 0.0);
        for row in w.values().chunks_exact(k) {
            let scaled: Vec<f32> = row.iter().zip(s).map(|(v, s)| v * s).collect();
            let mut value = vec![0.0; k];
            Block::plain(&scaled, scheme).read(scheme, &mut value);
            for x in x.chunks_exact(k) {
                let sum = |of: &dyn Fn(usize) -> f32| (0..k).map(|i| f64::from(x[i] * of(i))).sum::<f64>();
                error += sum(&|i| row[i] - value[i] / s[i]).powi(2);
                size += sum(&|i| row[i]).powi(2);
            }
        }
        error / size
    }

    #[test]
    fn losses_equal_the_naive_reference() {
        for (heads, rows) in [(None, CHUNK + 2), (Some((4, 2)), 3), (Some((4, 1)), 1)] {
            let (k, scheme) = (64, Scheme::affine(3, 32).unwrap());
            let tie = heads.map_or(Tie::none(k), |(n, kv)| Tie::heads(n, kv, k / n));
            let w = Matrix::new("w", seeded(rows * k, 1), k).unwrap();
            let x = correlated(11, 5, k, 2);
            let consumers = [Consumer { name: "w", weight: &w, scheme, inputs: &x }];
            let channels = Channels::measure(&consumers, &tie).unwrap();
            assert_eq!(channels.a.len(), tie.n_free());
            let found = search(&consumers, &tie).unwrap();
            for (candidate, loss) in candidates().iter().zip(&found.losses).step_by(5) {
                let s = tie.expand(&channels.scale(*candidate));
                let expected = naive_loss(&w, x.search(), &s, scheme);
                assert!((loss / expected - 1.0).abs() < 1e-4, "{candidate:?}: {loss} {expected}");
            }
            let identity = naive_loss(&w, x.held_out(), &vec![1.0; k], scheme);
            assert!((found.held_out_identity / identity - 1.0).abs() < 1e-4);
            assert_eq!(found.accepted, found.held_out_best < 0.99 * found.held_out_identity);
        }
    }

    #[test]
    fn salient_channels_are_found() {
        let (k, scheme) = (64, Scheme::affine(3, 64).unwrap());
        let w = Matrix::new("w", seeded(20 * k, 1), k).unwrap();
        let strong = |n: usize, seed| -> Vec<f32> {
            let values = seeded(n * k, seed);
            values.iter().enumerate().map(|(i, v)| if i % k < 4 { 30.0 * v } else { *v }).collect()
        };
        let x = Activations::new("x", strong(60, 2), &strong(30, 3), k).unwrap();
        let found = search(&[Consumer { name: "w", weight: &w, scheme, inputs: &x }], &Tie::none(k)).unwrap();
        assert!(found.accepted && found.held_out_best < 0.5 * found.held_out_identity, "{found:?}");
        assert!(found.scale[0] > 1.5 * found.scale[10]);
    }

    #[test]
    fn scales_are_balanced_and_bounded() {
        let channels = Channels { a: vec![1e-9, 1.0, 1e9], m: vec![1.0, 1.0, 1.0] };
        let all = candidates();
        assert_eq!(all.len(), 42);
        assert_eq!(channels.scale(all[0]), [1.0; 3]);
        assert_eq!(channels.scale(Candidate { family: Family::Act, alpha: 1.0 }), [1.0 / 256.0, 1.0, 256.0]);
        let half = channels.scale(Candidate { family: Family::Act, alpha: 0.1 });
        assert!((half[0] * half[2] - 1.0).abs() < 1e-6);
        assert_eq!(floored(vec![0.0, 2.0]), [2e-5, 2.0]);
        assert_eq!(floored(vec![0.0, 0.0]), [1.0, 1.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let w = Matrix::new("w", seeded(2 * 64, 1), 64).unwrap();
        let x = correlated(3, 3, 64, 2);
        let consumer =
            Consumer { name: "w", weight: &w, scheme: Scheme::affine(4, 128).unwrap(), inputs: &x };
        let error = search(&[consumer], &Tie::none(64)).unwrap_err().to_string();
        assert_eq!(error, "w: expected columns in groups of 128, found 64 columns");
        let error = search(&[consumer], &Tie::none(32)).unwrap_err().to_string();
        assert_eq!(
            error,
            "w: expected as many columns as channels, found [64, 64, 32] of weight, inputs and group"
        );
        assert!(search(&[], &Tie::none(32)).is_err());
    }
}
