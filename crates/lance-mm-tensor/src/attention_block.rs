//! The keys that a run of queries sees.

use std::ops::Range;

/// Which keys a run of queries sees.
///
/// Queries of a *full* block see all of `keys`. In a *causal* block the last query sees all of `keys`, the
/// one before it one key less, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of q.
    pub queries: Range<usize>,
    /// Rows of k and v.
    pub keys: Range<usize>,
    /// Whether keys end at each query's own row.
    pub causal: bool,
}

impl Block {
    /// Every query sees every key.
    pub fn full(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, causal: false }
    }

    /// Keys end at each query's own row; the last query sees all.
    pub fn causal(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, causal: true }
    }

    /// Keys that the query row `row` sees.
    pub fn visible(&self, row: usize) -> Range<usize> {
        let hidden = if self.causal { self.queries.end - 1 - row } else { 0 };
        self.keys.start..self.keys.end - hidden
    }
}
