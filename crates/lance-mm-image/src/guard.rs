//! The one place where panics of decoders end.
//!
//! Crates that decode images index and assert on what a file says. A panic there is an error of that file: it must
//! end neither the process nor a batch.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::fault::Fault;

thread_local! {
    /// Whether this thread decodes, and its panics are not printed.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder; a panic becomes [`Fault::Damaged`], and nothing is printed about it.
///
/// Nothing of the decoder outlives a panic: it owns its state, and its result is dropped.
pub(crate) fn catch<T>(decode: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !DECODING.get() {
                default(info);
            }
        }));
    });
    let outer = DECODING.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(outer);
    result.unwrap_or_else(|panic| Err(Fault::Damaged(format!("its decoder gave up: {}", message(&*panic)))))
}

/// First line of a panic's message.
fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.and_then(|text| text.lines().next()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_its_file() {
        let found: Result<(), Fault> = catch(|| panic!("assertion of {}\nleft: 1", "a crate"));
        assert!(matches!(found, Err(Fault::Damaged(m)) if m == "its decoder gave up: assertion of a crate"));
        let index = [1, 2, 3].len();
        let found = catch(|| Ok([1, 2, 3][std::hint::black_box(index)]));
        assert!(matches!(found, Err(Fault::Damaged(_))));
        assert!(!DECODING.get() && catch(|| Ok(5)).is_ok_and(|five| five == 5));
    }
}
