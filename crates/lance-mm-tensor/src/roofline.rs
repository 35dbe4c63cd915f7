//! Roofline limits of this machine: bytes read and operations computed a second, by all threads of the pool.
//!
//! A speed says little alone; as a share of the limit that a run meets it says how much is left. Measure limits beside
//! the runs compared with them, more than once: they change with the clock, and with the neighbours of a virtual
//! machine.
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

/// Peak arithmetic throughput.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Operations a second; a multiplication and its addition are two.
    pub per_second: f64,
    /// The instruction set; `portable` is plain code as compiled.
    pub with: &'static str,
}

/// Peak of int8 products summed in i32, operands in registers; takes about `time`.
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

/// Peak of bf16 products summed in f32, operands in registers; takes about `time`. On processors without bf16 products
/// the peak of f32 ones, to which kernels widen.
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
        // A call is long enough that setting up tiles and adding their sums does not count: with 256 products a call the
        // peak of AMX came out at half of what it is.
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

/// A buffer larger than the caches, for measuring read bandwidth.
pub struct ReadBuffer(Vec<Word>);

impl ReadBuffer {
    /// Allocates and writes `bytes`. 512 MiB are many times the cache of common machines.
    pub fn new(bytes: usize) -> Self {
        // Not zeros, for which the system need not provide memory.
        Self(vec![1u64.to_ne_bytes(); bytes.div_ceil(8)])
    }

    /// Reads the buffer `passes` times; returns bytes a second.
    pub fn read(&self, passes: usize) -> f64 {
        let (sum, rate) = sum(&vec![self.0.as_slice(); passes]);
        assert_eq!(sum, self.0.len() * passes, "every word is 1");
        rate
    }
}

/// Reads all of `parts` once, in place; returns bytes a second. A tail of less than eight bytes is left out.
pub fn read(parts: &[&[u8]]) -> f64 {
    let words: Vec<&[Word]> = parts.iter().map(|part| part.as_chunks().0).collect();
    let (sum, rate) = sum(&words);
    std::hint::black_box(sum);
    rate
}

/// The wrapping sum of all words, and bytes read a second.
fn sum(parts: &[&[Word]]) -> (usize, f64) {
    /// Words that a thread takes at once: 4 MB, so many that handing them out does not count.
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

/// Number of threads in the pool.
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
