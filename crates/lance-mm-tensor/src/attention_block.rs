//! Ranges of queries and the keys that they attend to.

use std::ops::Range;

/// A range of queries and the range of keys that they attend to.
///
/// Queries of a *full* block attend to all of `keys`. In a *causal* block the last query attends to all of `keys`, the
/// one before it to one key less, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Indices of queries: the `T` axis of q.
    pub queries: Range<usize>,
    /// Indices of keys: the `S` axis of k and v.
    pub keys: Range<usize>,
    /// Whether each query attends up to its own position only.
    pub causal: bool,
}

impl Block {
    /// Makes a block in which every query attends to every key.
    pub fn full(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, causal: false }
    }

    /// Makes a causal block, of which the last query attends to all keys.
    pub fn causal(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, causal: true }
    }

    /// Keys that query `row` attends to.
    pub fn visible(&self, row: usize) -> Range<usize> {
        let hidden = if self.causal { self.queries.end - 1 - row } else { 0 };
        self.keys.start..self.keys.end - hidden
    }
}
