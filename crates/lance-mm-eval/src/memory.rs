//! Resident memory of this process, as Linux counts it in `/proc/self/status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentMemory {
    /// Pages of the process's own: activations, caches, tables.
    pub anonymous: u64,
    /// Pages of mapped files: weights, and the program itself. Processes that map the same files share them.
    pub file: u64,
    /// The most that was resident at once since the process began or [`reset_peak`], both kinds together.
    pub peak: u64,
}

/// Memory now; `None` where the system does not say.
pub fn now() -> Option<ResidentMemory> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<ResidentMemory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(ResidentMemory { anonymous: field("RssAnon")?, file: field("RssFile")?, peak: field("VmHWM")? })
}

/// Resets [`ResidentMemory::peak`] to the present; `false` where the system cannot.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Samples the memory every few milliseconds, for the peak of each kind.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<ResidentMemory>>>,
}

impl Watch {
    /// Starts sampling, and resets the peak.
    pub fn start() -> Self {
        reset_peak();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut most = now()?;
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(2));
                most = most.most(now()?);
            }
            Some(most.most(now()?))
        });
        Self { stop, thread: Some(thread) }
    }

    /// The most of each kind since [`start`](Self::start); `None` where the system does not say. Anonymous and
    /// mapped pages may have had their peaks at different times.
    pub fn finish(mut self) -> Option<ResidentMemory> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl ResidentMemory {
    fn most(self, other: Self) -> Self {
        Self {
            anonymous: self.anonymous.max(other.anonymous),
            file: self.file.max(other.file),
            peak: self.peak.max(other.peak),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes() {
        let status =
            "Name:\tx\nVmHWM:\t    3000 kB\nVmRSS:\t 2900 kB\nRssAnon:\t  1000 kB\nRssFile:\t 1900 kB\n";
        let expected = ResidentMemory { anonymous: 1_024_000, file: 1_945_600, peak: 3_072_000 };
        assert_eq!(parse(status), Some(expected));
        for broken in ["", "VmHWM: 1 kB\n", "VmHWM: x kB\nRssAnon: 1 kB\nRssFile: 1 kB\n"] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_written_is_seen() {
        const SIZE: u64 = 64 << 20;
        let before = now().unwrap();
        let watch = Watch::start();
        let written = vec![1u8; SIZE as usize];
        let held = now().unwrap();
        assert!(std::hint::black_box(&written).iter().all(|byte| *byte == 1));
        drop(written);
        let most = watch.finish().unwrap();
        assert!(held.anonymous >= before.anonymous + SIZE / 2, "{before:?} {held:?}");
        assert!(most.anonymous >= SIZE / 2 && most.peak >= SIZE, "{most:?}");
    }
}
