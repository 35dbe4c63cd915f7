//! Queries that stand alone, each over keys of its own: a key is read once for all heads that share it.

use std::ops::Range;

use rayon::prelude::*;

use super::softmax::{AddKeys, Row, State};
use super::{Heads, KeyValues};
use crate::kernels::vector::Isa;

/// Most keys of one task. Where keys are parted depends on their number alone: so do the bits of the result.
const PART: usize = 512;

/// A row of q, and the keys it sees: at least one.
pub(crate) struct SingleQuery<'a> {
    pub(crate) row: usize,
    pub(crate) keys: Range<usize>,
    /// `(G, S, D)`.
    pub(crate) k: KeyValues<'a>,
    /// `(G, S, D)`, of the type of `k`.
    pub(crate) v: KeyValues<'a>,
}

/// `softmax(q · kᵀ / sqrt(D)) · v` of each of these rows, heads side by side, into its `(H·D)` values of `out`.
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
            (KeyValues::F32(k), KeyValues::F32(v)) => see(q, single, group, k, v, length),
            (KeyValues::Bf16(k), KeyValues::Bf16(v)) => see(q, single, group, k, v, length),
            _ => panic!("keys and values of one type"),
        };
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            state.write(head, out);
        }
    });
}

/// What the query heads of a key head see of all keys, `length` of them at a time.
fn see<'k, T: Sync>(
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
