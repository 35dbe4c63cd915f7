//! A flag that ends long computations early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A request to stop, shared by clones: for a server whose client has gone, or for Ctrl-C.
///
/// Any thread sets it with [`stop`](Self::stop); a long computation (encoder, prefill, decode, denoising, VAE) calls
/// [`check`](Self::check) between layers and ends with [`Error::Stopped`]. A flag stays set: the next computation takes
/// a new one. Two flags are equal when one is a clone of the other.
///
/// ```
/// use lance_mm_tensor::{Error, StopFlag};
///
/// let flag = StopFlag::new();
/// let handler = flag.clone();
/// std::thread::spawn(move || handler.stop()).join().expect("a thread that does not panic");
/// assert!(matches!(flag.check(), Err(Error::Stopped)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything that checks this flag, or a clone of it, to stop.
    pub fn stop(&self) {
        // Nothing but the flag itself passes between the threads, so that no order with other memory is needed.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns from the calling function with `?` once the flag is set.
    ///
    /// # Errors
    /// [`Error::Stopped`] after [`stop`](Self::stop).
    pub fn check(&self) -> Result<()> {
        if self.is_stopped() { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// Identity: whether one is a clone of the other.
impl PartialEq for StopFlag {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for StopFlag {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_request_and_strangers_do_not() {
        let (flag, stranger) = (StopFlag::new(), StopFlag::new());
        let clone = flag.clone();
        assert!(flag.check().is_ok());
        clone.stop();
        assert!(flag.is_stopped());
        assert_eq!(flag.check().unwrap_err().to_string(), "stopped");
        assert!(stranger.check().is_ok());
        assert_eq!(flag, clone);
        assert_ne!(flag, stranger);
    }
}
