//! Tokens of a sequence: their class, which are kept, the cosine of two.

use std::collections::BTreeMap;

use candle_core::Tensor;
use lance_mm_models::Sequence;
use serde::Serialize;

use crate::Relative;
use crate::error::Result;

/// TokenClass of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenClass {
    /// An image or video.
    Vit,
    /// Text of the prompt, markers of images included.
    Text,
    /// The answer.
    Answer,
}

/// Class of each token; the answer begins at token `prompt`.
pub(super) fn classes(sequence: &Sequence, prompt: usize) -> Vec<TokenClass> {
    let of = |token: usize| {
        if sequence.visual().iter().any(|tokens| tokens.contains(&token)) {
            TokenClass::Vit
        } else if token >= prompt {
            TokenClass::Answer
        } else {
            TokenClass::Text
        }
    };
    (0..sequence.len()).map(of).collect()
}

/// At most `max` of `n` token numbers, evenly spaced.
pub(super) fn spread(n: usize, max: usize) -> Kept {
    let kept = n.min(max);
    Kept((0..kept).map(|i| (i * n / kept) as u32).collect())
}

/// Token numbers.
pub(super) struct Kept(Vec<u32>);

impl Kept {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those tokens of `x`, its other axes made one: f32 `(kept, K)`.
    pub(super) fn of(&self, x: &Tensor) -> Result<Tensor> {
        let index = Tensor::new(self.0.as_slice(), x.device())?;
        Ok(x.contiguous()?.index_select(&index, 0)?.flatten_from(1)?)
    }
}

/// Adds the errors of tokens to the sums of their classes.
pub(super) fn by_class(
    classes: &[TokenClass],
    reference: &Tensor,
    found: &Tensor,
    sums: &mut BTreeMap<TokenClass, Relative>,
) -> Result<()> {
    let (reference, found) = (reference.to_vec2::<f32>()?, found.to_vec2::<f32>()?);
    for (class, (r, f)) in classes.iter().zip(reference.iter().zip(&found)) {
        sums.entry(*class).or_default().push(r, f);
    }
    Ok(())
}

/// Sums of cosines by class.
#[derive(Default)]
pub(super) struct Cosines(BTreeMap<TokenClass, (usize, f64)>);

impl Cosines {
    pub(super) fn add(&mut self, classes: &[TokenClass], a: &Tensor, b: &Tensor) -> Result<()> {
        let (a, b) = (a.to_vec2::<f32>()?, b.to_vec2::<f32>()?);
        for (class, (a, b)) in classes.iter().zip(a.iter().zip(&b)) {
            let (n, sum) = self.0.entry(*class).or_default();
            (*n, *sum) = (*n + 1, *sum + cosine(a, b));
        }
        Ok(())
    }

    pub(super) fn means(self) -> BTreeMap<TokenClass, f64> {
        self.0.into_iter().map(|(class, (n, sum))| (class, sum / n as f64)).collect()
    }
}

/// 1 for equal tokens, also of zeros; 0 if only one is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let sizes = dot(a, a) * dot(b, b);
    if a == b {
        1.0
    } else if sizes == 0.0 {
        0.0
    } else {
        dot(a, b) / sizes.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_tokens_are_spread_over_all() {
        assert_eq!(spread(3, 8).0, [0, 1, 2]);
        assert_eq!(spread(10, 4).0, [0, 2, 5, 7]);
        assert_eq!(spread(5, 1).0, [0]);
    }

    #[test]
    fn cosines() {
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((cosine(&[1.0, 1.0], &[1.0, 0.0]) - 0.5f64.sqrt()).abs() < 1e-12);
    }
}
