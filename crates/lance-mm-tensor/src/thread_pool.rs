//! The threads that operations share.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;

use crate::device::with_autorelease_pool;
use crate::kernels::metal;

/// Runs `run` on one of the threads that operations share, and keeps the others awake meanwhile: operations that
/// are called there begin at once. Called elsewhere each hands its work over and sleeps until it is done, and threads
/// that have nothing to do for some microseconds fall asleep too, which costs a decode step of some hundred operations
/// a fifth of its time. Called within itself it only calls `run`.
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
    // What stands in for a device does so on its own thread.
    if metal::runs_on(&Device::Cpu) || HERE.get() {
        run()
    } else {
        // What the system holds back for a device it holds back for a thread, and the caller's is another.
        run_with_others(|| with_autorelease_pool(run))
    }
}

/// Runs of [`in_thread_pool`] there are now.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread is in one.
    static HERE: Cell<bool> = const { Cell::new(false) };
}

fn run_with_others<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let _running = Running::new(&done);
        let this = rayon::current_thread_index();
        let done = &done;
        scope.spawn_broadcast(move |_, thread| {
            if Some(thread.index()) != this {
                stand_by(done);
            }
        });
        run()
    })
}

/// Counts as running until it is dropped, also by a panic.
struct Running<'a> {
    done: &'a AtomicBool,
    /// Whether the thread was in another one before.
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

/// How long a thread stands by without any work.
const PATIENCE: Duration = Duration::from_millis(1);

/// Takes over work of others as soon as there is any, until the run that asked for it is done, or another one begins:
/// threads that stand by for one would keep the other waiting. It also ends when there has been none for a while: a
/// thread may have begun this while it waited for a part of something else, which goes on only then, and it may be this
/// very run that waits for that.
fn stand_by(done: &AtomicBool) {
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
    fn runs_at_once_wait_for_each_other_but_not_for_ever() {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        (0..2000).for_each(|_| assert_eq!(pool.install(|| run_with_others(|| nested(4))), 0))
                    });
                    scope.spawn(|| (0..2000).for_each(|_| assert_eq!(pool.install(|| nested(6)), 0)));
                }
            });
            ended.send(()).unwrap();
        });
        end.recv_timeout(std::time::Duration::from_secs(60)).expect("all runs end");
    }

    #[test]
    fn a_run_within_a_run_leaves_the_others_awake() {
        assert_eq!(
            in_thread_pool(|| in_thread_pool(|| in_thread_pool(|| RUNNING.load(Ordering::Relaxed)))),
            1
        );
        assert!(!HERE.get());
        let failed = std::panic::catch_unwind(|| in_thread_pool(|| panic!("as wanted")));
        assert!(failed.is_err() && in_thread_pool(|| HERE.get()) && !HERE.get());
    }
}
