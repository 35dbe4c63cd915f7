//! Choosing the next token from the logits.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use lance_mm_tensor::first_not_finite;

use crate::error::{Error, Result};

/// Sampling of tokens. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy and leaves out all that follows but the penalty.
    pub temperature: f32,
    /// Keep this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens that together reach this probability (nucleus sampling), in (0, 1].
    pub top_p: f32,
    /// Makes tokens generated before less likely if above 1, more likely if below.
    pub repetition_penalty: f32,
    /// Makes the choices repeatable; without one, every sampler draws its own.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: None }
    }
}

impl Sampling {
    /// Checks every field against its range.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] for the first field outside its range.
    pub fn validate(&self) -> Result<()> {
        let Self { temperature, top_p, repetition_penalty, .. } = *self;
        let finite = f32::MAX;
        check(
            "temperature",
            temperature,
            (0.0..=finite).contains(&temperature),
            "a finite number of at least 0",
        )?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0 and at most 1")?;
        let in_range = repetition_penalty > 0.0 && repetition_penalty <= finite;
        check("repetition_penalty", repetition_penalty, in_range, "a finite number above 0")
    }
}

fn check(name: &'static str, value: f32, in_range: bool, expected: &str) -> Result<()> {
    if in_range {
        return Ok(());
    }
    Err(Error::Option { name, expected: expected.into(), found: value.to_string() })
}

/// Chooses tokens one after the other as [`Sampling`] says.
///
/// The same seed and the same logits give the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Ids from here on are never chosen.
    limit: usize,
    seed: u64,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler of ids below `vocab_limit`, at the start of its random numbers.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if `sampling` is not [valid](Sampling::validate) or `vocab_limit` is 0.
    pub fn new(sampling: &Sampling, vocab_limit: u32) -> Result<Self> {
        sampling.validate()?;
        if vocab_limit == 0 {
            return Err(Error::Option {
                name: "vocab_limit",
                expected: "at least 1".into(),
                found: "0".into(),
            });
        }
        let seed = sampling.seed.unwrap_or_else(draw_seed);
        // The seed is the start of the ChaCha key, so its stream is that of the cipher itself.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Ok(Self {
            sampling: sampling.clone(),
            limit: vocab_limit as usize,
            seed,
            rng: ChaCha8Rng::from_seed(key),
        })
    }

    /// The seed in use: the one given, or the one drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token.
    ///
    /// `logits` are the model's output for every id, `generated` the ids chosen so far, without
    /// the prompt. Greedy takes the lowest id on a tie and uses no random numbers.
    ///
    /// # Errors
    ///
    /// [`Error::Logits`] if there are fewer logits than the vocabulary limit, [`Error::NotFinite`] if one is not
    /// finite.
    pub fn pick(&mut self, logits: &[f32], generated: &[u32]) -> Result<u32> {
        if self.sampling.temperature == 0.0 {
            return Ok(argmax(&self.penalised(logits, generated)?));
        }
        let candidates = self.candidates(logits, generated)?;
        let u = unit(self.rng.next_u64());
        Ok(self.pick_at(&candidates, u))
    }

    /// The ids that may be chosen next and their probabilities, which add up to 1; likeliest
    /// first, lower ids first on a tie. For greedy that is one id.
    ///
    /// # Errors
    ///
    /// As [`pick`](Self::pick).
    pub fn candidates(&self, logits: &[f32], generated: &[u32]) -> Result<Vec<(u32, f32)>> {
        let values = self.penalised(logits, generated)?;
        if self.sampling.temperature == 0.0 {
            return Ok(vec![(argmax(&values), 1.0)]);
        }
        let mut ranked = rank(&values, self.sampling.top_k);
        // exp((l - max) / T) is softmax without overflow, whatever the temperature.
        let largest = ranked[0].1;
        for (_, value) in &mut ranked {
            *value = ((*value - largest) / self.sampling.temperature).exp();
        }
        if self.sampling.top_p < 1.0 {
            let enough = f64::from(self.sampling.top_p) * mass(&ranked);
            ranked.truncate(n_reaching(&ranked, enough));
        }
        let total = mass(&ranked);
        for (_, value) in &mut ranked {
            *value = (f64::from(*value) / total) as f32;
        }
        Ok(ranked)
    }

    /// The first of `candidates` at which their probabilities add up to more than `u`, which is
    /// in [0, 1).
    ///
    /// # Panics
    ///
    /// If `candidates` is empty.
    pub fn pick_at(&self, candidates: &[(u32, f32)], u: f64) -> u32 {
        assert!(!candidates.is_empty(), "there is nothing to choose from");
        let mut cumulative = 0.0;
        let mut picked = candidates[0].0;
        for &(id, probability) in candidates {
            // Rounding may leave the sum below u: then it is the last id that can be chosen.
            if probability > 0.0 {
                picked = id;
            }
            cumulative += f64::from(probability);
            if cumulative > u {
                break;
            }
        }
        picked
    }

    /// The logits below the limit, with the penalty on every id in `generated`.
    fn penalised<'a>(&self, logits: &'a [f32], generated: &[u32]) -> Result<Cow<'a, [f32]>> {
        if let Some(i) = first_not_finite(logits) {
            return Err(Error::NotFinite { place: format!("logit of token {i}"), found: logits[i] });
        }
        let Some(logits) = logits.get(..self.limit) else {
            return Err(Error::Logits(format!(
                "expected at least {} numbers, found {}",
                self.limit,
                logits.len()
            )));
        };
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 || generated.is_empty() {
            return Ok(logits.into());
        }
        let mut values = logits.to_vec();
        for &id in generated {
            // Reading the untouched logit, so an id generated twice is penalised once.
            if let Some(&logit) = logits.get(id as usize) {
                let value = if logit > 0.0 { logit / penalty } else { logit * penalty };
                values[id as usize] = value.clamp(f32::MIN, f32::MAX);
            }
        }
        Ok(values.into())
    }
}

/// Values that are compared side by side: as many as fill registers, several times.
const TOGETHER: usize = 64;

/// Where the first value is of which `is` holds.
fn first(values: &[f32], is: impl Fn(f32) -> bool) -> Option<usize> {
    let has_one = |chunk: &[f32]| chunk.iter().fold(false, |any, value| any | is(*value));
    let start = values.chunks(TOGETHER).position(has_one)? * TOGETHER;
    Some(start + values[start..].iter().position(|value| is(*value))?)
}

/// The lowest id of the largest of finite values.
fn argmax(values: &[f32]) -> u32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; TOGETHER];
    for chunk in values.chunks(TOGETHER) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
    first(values, |value| value == largest).unwrap_or(0) as u32
}

/// Ids and values by falling value, rising id on a tie; the first `top_k` of them, or all if 0.
fn rank(values: &[f32], top_k: usize) -> Vec<(u32, f32)> {
    let mut keys: Vec<u64> = (0..).zip(values).map(|(id, &value)| sort_key(id, value)).collect();
    if top_k > 0 && top_k < keys.len() {
        keys.select_nth_unstable(top_k);
        keys.truncate(top_k);
    }
    keys.sort_unstable();
    // The low half of a key is its id.
    keys.iter().map(|&key| (key as u32, values[key as u32 as usize])).collect()
}

/// Larger values and, among equals, lower ids have smaller keys. Plain integers sort several
/// times faster than pairs with a comparison, which is what a whole vocabulary needs.
fn sort_key(id: u32, value: f32) -> u64 {
    // Adding 0 makes -0 the same as 0.
    let bits = (value + 0.0).to_bits();
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!rising) << 32 | u64::from(id)
}

/// The sum, in f64 because a vocabulary has many small terms.
fn mass(ranked: &[(u32, f32)]) -> f64 {
    ranked.iter().map(|&(_, value)| f64::from(value)).sum()
}

/// How many values from the front add up to `enough`; all of them if rounding prevents it.
fn n_reaching(ranked: &[(u32, f32)], enough: f64) -> usize {
    let mut sum = 0.0;
    let reached = ranked.iter().position(|&(_, value)| {
        sum += f64::from(value);
        sum >= enough
    });
    reached.map_or(ranked.len(), |last| last + 1)
}

/// A number in [0, 1) from the upper 53 bits, as many as an f64 holds.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A seed that differs between calls and runs. The keys of the standard library's hash maps
/// come from the system; 53 bits, so that a seed survives JSON readers that hold numbers as f64.
fn draw_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(&sampling, 4).unwrap()
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, seed: Some(7), ..Sampling::default() }
    }

    /// Logits whose softmax is `probabilities`.
    fn logits(probabilities: [f32; 4]) -> [f32; 4] {
        probabilities.map(f32::ln)
    }

    #[test]
    fn greedy_takes_the_largest_below_the_limit() {
        let mut greedy = sampler(Sampling::default());
        for (logits, generated, id) in [
            (&[0.0, 3.0, 3.0, 1.0][..], &[][..], 1),
            (&[-5.0, -4.0, -6.0, -7.0, 9.0], &[], 1),
            (&[-0.0, 0.0, -1.0, -1.0], &[], 0),
            (&[f32::MIN; 4], &[], 0),
            (&[0.0, 3.0, 3.0, 1.0], &[1, 1, 3], 1),
        ] {
            assert_eq!(greedy.pick(logits, generated).unwrap(), id, "{logits:?}");
            assert_eq!(greedy.candidates(logits, generated).unwrap(), [(id, 1.0)]);
        }
    }

    #[test]
    fn the_first_of_many_is_found() {
        let mut greedy = Sampler::new(&Sampling::default(), 300).unwrap();
        let mut logits: Vec<f32> = (0..300).map(|id| -(id as f32 - 150.0).abs()).collect();
        for id in [299, 193, 129, 128, 63, 0] {
            logits[id] = 7.0;
            assert_eq!(greedy.pick(&logits, &[]).unwrap() as usize, id);
        }
        for id in [250, 130, 64] {
            logits[id] = f32::NAN;
            let text = greedy.pick(&logits, &[]).unwrap_err().to_string();
            assert_eq!(text, format!("logit of token {id}: expected finite numbers, found NaN"));
        }
    }

    #[test]
    fn penalty_falls_once_on_ids_generated_before() {
        let mut penalised = sampler(Sampling { repetition_penalty: 2.0, ..Sampling::default() });
        for (logits, generated, id) in [
            ([4.0, 2.5, 0.0, 0.0], &[0, 0, 9, u32::MAX][..], 1),
            ([4.0, 1.5, 0.0, 0.0], &[0, 0], 0),
            ([-1.0, -1.5, -3.0, -3.0], &[0], 1),
            ([f32::MIN, f32::MIN, f32::MIN, f32::MIN], &[0, 1], 0),
        ] {
            assert_eq!(penalised.pick(&logits, generated).unwrap(), id, "{logits:?} {generated:?}");
        }
    }

    #[test]
    fn keeps_the_likeliest_and_renormalises() {
        struct Case {
            sampling: Sampling,
            probabilities: [f32; 4],
            kept: &'static [(u32, f32)],
        }
        let case = |sampling, probabilities, kept| Case { sampling, probabilities, kept };
        let top_k = |top_k| Sampling { top_k, ..warm() };
        let top_p = |top_p| Sampling { top_p, ..warm() };
        let cases = [
            case(warm(), [0.1, 0.2, 0.3, 0.4], &[(3, 0.4), (2, 0.3), (1, 0.2), (0, 0.1)]),
            case(top_k(2), [0.1, 0.5, 0.1, 0.3], &[(1, 0.625), (3, 0.375)]),
            case(top_k(9), [0.25; 4], &[(0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25)]),
            // On a tie at the border the lower id stays.
            case(top_k(2), [0.2, 0.2, 0.4, 0.2], &[(2, 2.0 / 3.0), (0, 1.0 / 3.0)]),
            case(top_p(0.85), [0.1, 0.5, 0.1, 0.3], &[(1, 5.0 / 9.0), (3, 3.0 / 9.0), (0, 1.0 / 9.0)]),
            case(top_p(1e-9), [0.1, 0.5, 0.1, 0.3], &[(1, 1.0)]),
            // The mass counts after top_k: 0.4 of 0.7 reaches a half, 0.4 of 1 would not.
            case(Sampling { top_k: 2, top_p: 0.5, ..warm() }, [0.4, 0.3, 0.2, 0.1], &[(0, 1.0)]),
            // T = 1/2 squares the probabilities.
            case(Sampling { temperature: 0.5, ..top_k(2) }, [0.1, 0.2, 0.1, 0.6], &[(3, 0.9), (1, 0.1)]),
            case(Sampling { temperature: 1e-40, ..top_k(2) }, [0.1, 0.2, 0.1, 0.6], &[(3, 1.0), (1, 0.0)]),
        ];
        for Case { sampling, probabilities, kept } in cases {
            let candidates = sampler(sampling.clone()).candidates(&logits(probabilities), &[]).unwrap();
            let same = candidates.len() == kept.len()
                && candidates.iter().zip(kept).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6);
            assert!(same, "{sampling:?} on {probabilities:?}: {candidates:?}, expected {kept:?}");
        }
    }

    #[test]
    fn draws_by_cumulative_probability() {
        let candidates = [(3, 0.5), (2, 0.25), (1, 0.2499), (0, 0.0)];
        let sampler = sampler(warm());
        for (u, id) in [(0.0, 3), (0.4999, 3), (0.5, 2), (0.7499, 2), (0.75, 1), (0.99999, 1)] {
            assert_eq!(sampler.pick_at(&candidates, u), id, "{u}");
        }
    }

    #[test]
    fn seed_decides_the_choices() {
        let logits = logits([0.1, 0.2, 0.3, 0.4]);
        let picks = |seed| -> Vec<u32> {
            let mut sampler = sampler(Sampling { seed, ..warm() });
            assert_eq!(seed.unwrap_or(sampler.seed()), sampler.seed());
            (0..200).map(|_| sampler.pick(&logits, &[]).unwrap()).collect()
        };
        let first = picks(Some(7));
        // Fixed for good: a stored seed must keep giving the text it gave.
        assert_eq!(first[..12], [1, 2, 3, 3, 3, 3, 3, 3, 2, 0, 2, 2]);
        assert_eq!(first, picks(Some(7)));
        assert_ne!(first, picks(Some(8)));
        assert_ne!(picks(None), picks(None));
        for (id, expected) in (0..4).zip([20, 40, 60, 80]) {
            let count = first.iter().filter(|&&picked| picked == id).count();
            assert!(
                count.abs_diff(expected) < 25,
                "id {id}: {count} times of 200, expected about {expected}"
            );
        }
        assert!(sampler(Sampling { seed: None, ..warm() }).seed() < 1 << 53);
    }

    #[test]
    fn random_numbers_stay_below_one() {
        assert_eq!((unit(0), unit(1 << 63)), (0.0, 0.5));
        assert!(unit(u64::MAX) < 1.0);
    }

    #[test]
    fn unusable_logits_are_errors() {
        for sampling in [Sampling::default(), warm()] {
            let mut sampler = sampler(sampling);
            for (logits, message) in [
                (&[0.0, 1.0, f32::NAN, 0.0][..], "logit of token 2: expected finite numbers, found NaN"),
                (
                    &[0.0, 1.0, 2.0, 0.0, f32::INFINITY],
                    "logit of token 4: expected finite numbers, found inf",
                ),
                (&[0.0, 1.0, 2.0], "logits: expected at least 4 numbers, found 3"),
            ] {
                assert_eq!(sampler.pick(logits, &[]).unwrap_err().to_string(), message);
            }
        }
    }

    #[test]
    fn options_outside_their_range_are_errors() {
        let with = |change: fn(&mut Sampling)| {
            let mut sampling = warm();
            change(&mut sampling);
            sampling
        };
        for (sampling, message) in [
            (
                with(|s| s.temperature = -0.5),
                "option temperature: expected a finite number of at least 0, found -0.5",
            ),
            (
                with(|s| s.temperature = f32::NAN),
                "option temperature: expected a finite number of at least 0, found NaN",
            ),
            (
                with(|s| s.temperature = f32::INFINITY),
                "option temperature: expected a finite number of at least 0, found inf",
            ),
            (with(|s| s.top_p = 0.0), "option top_p: expected a number above 0 and at most 1, found 0"),
            (with(|s| s.top_p = 1.5), "option top_p: expected a number above 0 and at most 1, found 1.5"),
            (
                with(|s| s.repetition_penalty = 0.0),
                "option repetition_penalty: expected a finite number above 0, found 0",
            ),
        ] {
            assert_eq!(sampling.validate().unwrap_err().to_string(), message);
            assert!(Sampler::new(&sampling, 4).is_err());
        }
        assert!(Sampler::new(&warm(), 0).is_err(), "an empty vocabulary");
    }
}
