//! Ctrl-C and other requests to end: unfinished output files are removed first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lance_mm::StopFlag;

/// Set when the program is ending.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Held while another program writes an output file: once it is removed, that program could make it anew.
static WRITING: Mutex<()> = Mutex::new(());

/// Answer that Ctrl-C ends in place of the program.
static ANSWER: Mutex<Option<StopFlag>> = Mutex::new(None);

/// Ends the program cleanly when it is interrupted. Elsewhere than on Unix the system ends it, and unfinished files
/// stay under hidden names.
pub(crate) fn handle() {
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal));
        // Without a handler the system ends the program, as elsewhere.
        let Ok(mut signals) = signal_hook::iterator::Signals::new(wanted) else { return };
        std::thread::spawn(move || {
            for signal in signals.forever() {
                if signal != SIGINT || !stop_answer() {
                    end(signal);
                }
            }
        });
    }
}

/// Whether the program was started with a signal ignored, as by `nohup` and for jobs in the background.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    if cfg!(not(target_os = "linux")) {
        // Nothing tells whether `nohup` started it. A terminal that closes ends the program then as the system does.
        return signal == signal_hook::consts::SIGHUP;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(unix)]
fn stop_answer() -> bool {
    let flag = lock(&ANSWER).take();
    flag.is_some_and(|flag| {
        flag.stop();
        true
    })
}

#[cfg(unix)]
fn end(signal: i32) -> ! {
    ENDING.store(true, Ordering::SeqCst);
    let _written = lock(&WRITING);
    lance_mm::staged::abandon();
    // The code that shells give a program that a signal ended.
    std::process::exit(128 + signal);
}

/// Waits for the end if the program is ending, so that what an interruption broke is not told as an error.
pub(crate) fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

/// Lets another program write an output file: an interruption waits for it.
pub(crate) fn writing() -> MutexGuard<'static, ()> {
    lock(&WRITING)
}

/// Until it is dropped, Ctrl-C sets a flag and does not end the program.
pub(crate) struct StopOnInterrupt(());

impl StopOnInterrupt {
    pub(crate) fn new(flag: &StopFlag) -> Self {
        *lock(&ANSWER) = Some(flag.clone());
        Self(())
    }
}

impl Drop for StopOnInterrupt {
    fn drop(&mut self) {
        *lock(&ANSWER) = None;
    }
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
