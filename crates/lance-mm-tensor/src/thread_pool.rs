//! Running whole passes in the thread pool of the operations.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;

use crate::device::with_autorelease_pool;
use crate::kernels::metal;

/// Runs `run` on a thread of the pool while the other threads spin, so that operations called in `run` start at once.
///
/// Called outside the pool, each operation hands its work over and parks its thread, and threads of the pool park after
/// some idle microseconds; waking them costs a decode step of some hundred operations a fifth of its time. A nested call
/// only calls `run`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lance_mm_tensor::{DenseWeight, Linear, in_thread_pool};
///
/// let layer = Linear::from(DenseWeight::from_f32(&[1.0, 2.0, 3.0, 4.0], 2));
/// let x = Tensor::new(&[[1f32, 1.0]], &Device::Cpu)?;
/// let y = in_thread_pool(|| layer.forward(&layer.forward(&x)?))?;
/// assert_eq!(y.to_vec2::<f32>()?, [[17.0, 37.0]]);
/// # Ok::<(), lance_mm_tensor::Error>(())
/// ```
pub fn in_thread_pool<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    // The executor that stands in for a device is one of this thread.
    if metal::runs_on(&Device::Cpu) || HERE.get() {
        run()
    } else {
        // An autorelease pool belongs to a thread, and the caller's is another one.
        run_while_others_spin(|| with_autorelease_pool(run))
    }
}

/// Number of calls of [`in_thread_pool`] under way.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is inside one.
    static HERE: Cell<bool> = const { Cell::new(false) };
}

fn run_while_others_spin<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let _running = Running::new(&done);
        let this = rayon::current_thread_index();
        let done = &done;
        scope.spawn_broadcast(move |_, thread| {
            if Some(thread.index()) != this {
                spin(done);
            }
        });
        run()
    })
}

/// Counts one call until it is dropped, also by a panic.
struct Running<'a> {
    done: &'a AtomicBool,
    /// Whether the thread was inside another call before.
    here: bool,
}

impl<'a> Running<'a> {
    fn new(done: &'a AtomicBool) -> Self {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Self { done, here: HERE.replace(true) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        HERE.set(self.here);
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Time that a thread spins without any work. Between operations of a step there are microseconds, so that a millisecond
/// never ends early; the bound ends a deadlock: two calls at once on two threads hung without it.
const PATIENCE: Duration = Duration::from_millis(1);

/// Spins, and takes over work as soon as there is any, until the call is done or another call begins, whose work spinning
/// threads would delay.
///
/// It also ends after [`PATIENCE`] without work: the thread may have begun to spin while it waited for a part of another
/// computation, which continues only when this returns, and the call itself may be waiting for that computation.
fn spin(done: &AtomicBool) {
    let mut worked = Instant::now();
    while !done.load(Ordering::Relaxed) && RUNNING.load(Ordering::Relaxed) == 1 && worked.elapsed() < PATIENCE
    {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            worked = Instant::now();
        } else {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work that waits for parts of itself on other threads, which wait for parts of theirs.
    fn nested(depth: usize) -> usize {
        match depth {
            0 => std::hint::black_box((0..2000).sum::<usize>() & 1),
            _ => {
                let (a, b) = rayon::join(|| nested(depth - 1), || nested(depth - 1));
                a + b
            }
        }
    }

    #[test]
    fn simultaneous_calls_end() {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        (0..2000)
                            .for_each(|_| assert_eq!(pool.install(|| run_while_others_spin(|| nested(4))), 0))
                    });
                    scope.spawn(|| (0..2000).for_each(|_| assert_eq!(pool.install(|| nested(6)), 0)));
                }
            });
            ended.send(()).unwrap();
        });
        end.recv_timeout(std::time::Duration::from_secs(60)).expect("all runs end");
    }

    #[test]
    fn a_nested_call_only_calls() {
        assert_eq!(
            in_thread_pool(|| in_thread_pool(|| in_thread_pool(|| RUNNING.load(Ordering::Relaxed)))),
            1
        );
        assert!(!HERE.get());
        let failed = std::panic::catch_unwind(|| in_thread_pool(|| panic!("as wanted")));
        assert!(failed.is_err() && in_thread_pool(|| HERE.get()) && !HERE.get());
    }
}
