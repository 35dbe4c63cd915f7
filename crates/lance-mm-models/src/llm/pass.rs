//! What all layers of a pass share: which rows run on which weights, how they turn and what they see.

use candle_core::Tensor;
use lance_mm_tensor::{Activations, Block, Result, RotaryTable, attention};

use super::cache::Cache;
use crate::sequence::Span;

/// One pass over the layers.
pub(super) struct Pass<'a, 'c> {
    pub(super) spans: &'a [Span],
    pub(super) table: RotaryTable,
    pub(super) context: Context<'a, 'c>,
    /// Whether a probe looks at what layers compute on the way.
    pub(super) probed: bool,
}

/// What the rows of a pass attend to.
pub(super) enum Context<'a, 'c> {
    /// All rows belong to one sequence.
    One { blocks: &'a [Block], cache: &'c mut Cache },
    /// Each row is the next of a sequence of its own.
    Each(Vec<&'c mut Cache>),
}

impl Pass<'_, '_> {
    /// Appends `k` and `v`, f32 `(T, G, D)`, to layer `index` of the caches and attends with `q` f32
    /// `(T, H, D)`: f32 `(T, H·D)`.
    pub(super) fn attend(
        &mut self,
        index: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        activations: Activations,
    ) -> Result<Tensor> {
        match &mut self.context {
            Context::One { blocks, cache } => append_and_attend(cache, index, [q, k, v], blocks, activations),
            Context::Each(caches) => {
                let mut rows = Vec::with_capacity(caches.len());
                for (i, cache) in caches.iter_mut().enumerate() {
                    let [q, k, v] = [q.narrow(0, i, 1)?, k.narrow(0, i, 1)?, v.narrow(0, i, 1)?];
                    let block = Block::causal(0..1, 0..cache.rows(index) + 1);
                    rows.push(append_and_attend(cache, index, [&q, &k, &v], &[block], activations)?);
                }
                Ok(Tensor::cat(&rows, 0)?)
            }
        }
    }

    /// Rows of each cache before the pass, to go back to after an error.
    pub(super) fn lengths(&self) -> Vec<usize> {
        match &self.context {
            Context::One { cache, .. } => vec![cache.len()],
            Context::Each(caches) => caches.iter().map(|cache| cache.len()).collect(),
        }
    }

    /// Forgets what the pass has appended.
    pub(super) fn truncate(&mut self, lengths: &[usize]) {
        match &mut self.context {
            Context::One { cache, .. } => cache.truncate(lengths[0]),
            Context::Each(caches) => {
                for (cache, length) in caches.iter_mut().zip(lengths) {
                    cache.truncate(*length);
                }
            }
        }
    }
}

fn append_and_attend(
    cache: &mut Cache,
    index: usize,
    [q, k, v]: [&Tensor; 3],
    blocks: &[Block],
    activations: Activations,
) -> Result<Tensor> {
    // (T, G, D) -> (G, T, D)
    let (k, v) = cache.append(index, &k.transpose(0, 1)?, &v.transpose(0, 1)?)?;
    attention(&q.transpose(0, 1)?, &k, &v, blocks, activations)
}
