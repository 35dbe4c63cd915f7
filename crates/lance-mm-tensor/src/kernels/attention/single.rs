//! Single queries, each over keys of its own: a key is read once for all heads that share it.
//!
//! A task is one key head and one query; a query of many keys is split into parts, whose softmax states are merged. The
//! layout within a part is that of [`softmax`](super::softmax).

use std::ops::Range;

use rayon::prelude::*;

use super::softmax::{AddKeys, Row, State};
use super::{Heads, KeyValues};
use crate::kernels::vector::Isa;

/// Most keys of one part.
// Depends on the number of keys alone, and so do the bits of the output, whatever the number of threads. 512 to 4096 keys a
// part took the same time for 4,096 keys on two threads.
const PART: usize = 512;

/// A token of q, and the keys that it attends to: at least one.
pub(crate) struct SingleQuery<'a> {
    pub(crate) row: usize,
    pub(crate) keys: Range<usize>,
    /// `(G, S, D)`.
    pub(crate) k: KeyValues<'a>,
    /// `(G, S, D)`, of the dtype of `k`.
    pub(crate) v: KeyValues<'a>,
}

/// Computes `softmax(q · kᵀ / sqrt(D)) · v` of each query, heads side by side, into its `(H·D)` values of `out`.
pub(crate) fn attend_single_queries(q: Heads<'_>, singles: &[SingleQuery<'_>], out: Vec<&mut [f32]>) {
    let [n_heads, _, d] = q.dims;
    let mut tasks = Vec::new();
    for (single, out) in singles.iter().zip(out) {
        let groups = single.k.dims()[0];
        let length = single.keys.len().div_ceil(single.keys.len().div_ceil(PART));
        for (group, out) in out.chunks_exact_mut(n_heads / groups * d).enumerate() {
            tasks.push((single, group, length, out));
        }
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(single, group, length, out)| {
        let state = match (single.k, single.v) {
            (KeyValues::F32(k), KeyValues::F32(v)) => attend(q, single, group, k, v, length),
            (KeyValues::Bf16(k), KeyValues::Bf16(v)) => attend(q, single, group, k, v, length),
            _ => panic!("keys and values of one dtype"),
        };
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            state.write(head, out);
        }
    });
}

/// Softmax state of the query heads of a key head over all keys, `length` of them at a time.
fn attend<'k, T: Sync>(
    q: Heads<'_>,
    single: &SingleQuery<'_>,
    group: usize,
    k: Heads<'k, T>,
    v: Heads<'k, T>,
    length: usize,
) -> State
where
    &'k [T]: Row,
{
    let (isa, [n_heads, _, d]) = (Isa::detect(), q.dims);
    let fold = n_heads / k.dims[0];
    let scale = 1.0 / (d as f32).sqrt();
    let mut scaled = Vec::with_capacity(fold * d);
    for head in group * fold..(group + 1) * fold {
        scaled.extend(q.row(head, single.row).iter().map(|q| q * scale));
    }
    let part = |start: usize| {
        let keys = start..(start + length).min(single.keys.end);
        let mut state = State::new(fold, d);
        let key = |j| (k.row(group, j), v.row(group, j));
        isa.run(AddKeys { state: &mut state, q: &scaled, keys: keys.map(key) });
        state
    };
    let starts: Vec<usize> = single.keys.clone().step_by(length).collect();
    match *starts {
        [only] => part(only),
        _ => {
            let parts: Vec<State> = starts.into_par_iter().with_max_len(1).map(part).collect();
            let mut all = State::new(fold, d);
            parts.iter().for_each(|part| all.merge(part));
            all
        }
    }
}
