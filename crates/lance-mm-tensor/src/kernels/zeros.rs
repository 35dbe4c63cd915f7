//! New memory of zeros, touched by all threads.

use rayon::prelude::*;

/// `n` zeros. Many are written on all threads: the first to touch a page of new memory waits while the system clears it.
pub(crate) fn zeros(n: usize) -> Vec<f32> {
    /// Values of a page of memory, 4 kB.
    const PAGE: usize = 1024;
    /// Pages of a task, 256 kB: 64 page faults outweigh handing a task to a thread.
    const TASK: usize = 64;
    if n < 4 * TASK * PAGE {
        return vec![0.0; n];
    }
    let pages = (0..n.div_ceil(PAGE)).into_par_iter().with_min_len(TASK).map(|_| [0.0; PAGE]);
    let mut zeros = pages.collect::<Vec<[f32; PAGE]>>().into_flattened();
    zeros.truncate(n);
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_zeros_as_asked_for() {
        for n in [0, 1, 1000, 262_144, 300_001] {
            assert_eq!(zeros(n), vec![0.0; n]);
        }
    }
}
