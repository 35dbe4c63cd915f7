//! What this machine can do at most: bytes read and products computed a second, by all threads of the pool.
//!
//! A speed says little alone; as a share of the limit that a run meets it says how much is left. Measure
//! limits beside what is compared with them, more than once: they change with the neighbours of a virtual
//! machine and with the clock.
//!
//! ```
//! use std::time::Duration;
//! use lance_mm_tensor::roofline;
//!
//! let int8 = roofline::int8(Duration::from_millis(2));
//! println!("{:.0} Gop/s with {}", int8.per_second / 1e9, int8.with);
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::kernels::peak::{self, CHAINS, Word};

/// A limit of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Operations a second; a product and its sum are two.
    pub per_second: f64,
    /// The instructions, `portable` for what the compiler makes of plain code.
    pub with: &'static str,
}

/// Products of int8 values, summed in i32, from registers; takes about `time`.
pub fn int8(time: Duration) -> Peak {
    let (a, b) = ([3; 64], [5; 64]);
    let peak::PeakLoop { name, run } = peak::int8_loops().swap_remove(0);
    Peak {
        per_second: rate(time, |rounds| {
            run(&a, &b, rounds);
        }) * 2.0
            * 64.0,
        with: name,
    }
}

/// Products of bf16 values, summed in f32, from registers; takes about `time`. Where the machine multiplies
/// no bf16 values, products of f32 values, to which kernels widen them.
pub fn bf16(time: Duration) -> Peak {
    let (a, b) = ([0x3f80; 32], [0x3f80; 32]);
    let peak::PeakLoop { name, run } = peak::bf16_loops().swap_remove(0);
    Peak {
        per_second: rate(time, |rounds| {
            run(&a, &b, rounds);
        }) * 2.0
            * 32.0,
        with: name,
    }
}

/// Rounds times chains a second, summed over the threads of the pool.
fn rate(time: Duration, run: impl Fn(u32) + Sync) -> f64 {
    let of_thread = |_: rayon::BroadcastContext<'_>| {
        // As many at once as take a good part of the time, so that what comes before and after them does not count.
        let mut at_once: u32 = 1024;
        loop {
            let start = Instant::now();
            run(at_once);
            match at_once.checked_mul(2) {
                Some(more) if start.elapsed() < time / 16 => at_once = more,
                _ => break,
            }
        }
        let start = Instant::now();
        let mut rounds = 0.0;
        loop {
            run(at_once);
            rounds += f64::from(at_once);
            let elapsed = start.elapsed();
            if elapsed >= time {
                return rounds * CHAINS as f64 / elapsed.as_secs_f64();
            }
        }
    };
    rayon::broadcast(of_thread).into_iter().sum()
}

/// Memory larger than the caches, to read through.
pub struct ReadBuffer(Vec<Word>);

impl ReadBuffer {
    /// A buffer of `bytes`, written once. 512 MiB are many times what common machines have as a cache.
    pub fn new(bytes: usize) -> Self {
        // Words that differ from zero, else the system would not give memory of its own to them.
        Self(vec![1u64.to_ne_bytes(); bytes.div_ceil(8)])
    }

    /// Reads everything `passes` times: bytes a second.
    pub fn read(&self, passes: usize) -> f64 {
        let (sum, rate) = sum(&vec![self.0.as_slice(); passes]);
        assert_eq!(sum, self.0.len() * passes, "every word is 1");
        rate
    }
}

/// Reads all of `parts` once, where they lie: bytes a second. Of each the last bytes that make no eight are left out.
pub fn read(parts: &[&[u8]]) -> f64 {
    let words: Vec<&[Word]> = parts.iter().map(|part| part.as_chunks().0).collect();
    let (sum, rate) = sum(&words);
    std::hint::black_box(sum);
    rate
}

/// The wrapping sum of all words, and bytes read a second.
fn sum(parts: &[&[Word]]) -> (usize, f64) {
    /// Words a thread takes at once.
    const PIECE: usize = 1 << 19;
    let reader = peak::reader();
    let pieces: Vec<&[Word]> = parts.iter().flat_map(|part| part.chunks(PIECE)).collect();
    let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Instant::now();
    rayon::broadcast(|_| {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            sum.fetch_add(reader(piece) as usize, Ordering::Relaxed);
        }
    });
    let elapsed = start.elapsed();
    let words: usize = parts.iter().map(|part| part.len()).sum();
    (sum.into_inner(), (8 * words) as f64 / elapsed.as_secs_f64())
}

/// Threads that share the work.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_named() {
        for peak in [int8(Duration::from_millis(1)), bf16(Duration::from_millis(1))] {
            assert!(peak.per_second > 1e6 && !peak.with.is_empty(), "{peak:?}");
        }
        // The sum inside proves that all words were read, odd sizes included.
        assert!(ReadBuffer::new((1 << 22) + 24).read(3) > 1e6);
        let bytes = vec![3; (1 << 22) + 21];
        assert!(read(&[&bytes[1..], &bytes[..5], &[]]) > 1e6);
        let words = bytes[1..].as_chunks().0;
        assert_eq!(sum(&[words, &words[..7]]).0, (words.len() + 7).wrapping_mul(0x0303_0303_0303_0303));
        assert!(threads() > 0);
    }
}
