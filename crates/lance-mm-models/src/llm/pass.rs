//! Inputs that all layers of a pass share: the expert of each token, the rotary table, keys and values.

use candle_core::Tensor;
use lance_mm_tensor::{ActivationPrecision, Block, Result, RotaryTable, attention, attention_each};

use super::cache::Cache;
use crate::sequence::Span;

/// One pass over the layers.
pub(super) struct Pass<'a, 'c> {
    pub(super) spans: &'a [Span],
    pub(super) table: RotaryTable,
    pub(super) context: Context<'a, 'c>,
}

/// Keys and values that the tokens of a pass attend to.
pub(super) enum Context<'a, 'c> {
    /// All tokens belong to one sequence.
    One { blocks: &'a [Block], cache: &'c mut Cache },
    /// Each token is the next of a sequence of its own.
    Each(Vec<&'c mut Cache>),
}

impl Pass<'_, '_> {
    /// Appends `k` and `v`, `(T, G, D)`, to layer `index` of the caches and attends with `q`
    /// `(T, H, D)`: `(T, H·D)`.
    pub(super) fn attend(
        &mut self,
        index: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        activations: ActivationPrecision,
    ) -> Result<Tensor> {
        // (T, G, D) -> (G, T, D)
        let [q, k, v] = [q.transpose(0, 1)?, k.transpose(0, 1)?, v.transpose(0, 1)?];
        match &mut self.context {
            Context::One { blocks, cache } => {
                let (k, v) = cache.append(index, &k, &v)?;
                attention(&q, &k, &v, blocks, activations)
            }
            Context::Each(caches) => {
                let append = |(i, cache): (usize, &mut &mut Cache)| {
                    cache.append(index, &k.narrow(1, i, 1)?, &v.narrow(1, i, 1)?)
                };
                let sequences = caches.iter_mut().enumerate().map(append).collect::<Result<Vec<_>>>()?;
                attention_each(&q, &sequences, activations)
            }
        }
    }

    /// Tokens in each cache before the pass, to go back to after an error.
    pub(super) fn lengths(&self) -> Vec<usize> {
        match &self.context {
            Context::One { cache, .. } => vec![cache.len()],
            Context::Each(caches) => caches.iter().map(|cache| cache.len()).collect(),
        }
    }

    /// Forgets the tokens that the pass has appended.
    pub(super) fn truncate(&mut self, lengths: &[usize]) -> Result<()> {
        match &mut self.context {
            Context::One { cache, .. } => cache.truncate(lengths[0]),
            Context::Each(caches) => {
                caches.iter_mut().zip(lengths).try_for_each(|(cache, length)| cache.truncate(*length))
            }
        }
    }
}
