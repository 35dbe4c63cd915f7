//! An allocator for tests that places every allocation beside pages that must not be touched, so that a read or write
//! outside of it ends the process, be it one lane of a vector. It does so if [`EDGE`] is set; the tests below run this
//! crate's other tests with it, once at each edge.
//!
//! ```text
//! end      | .. | closed page | 0 0 0 [allocation] | closed page | ..      a byte too far faults
//! begin    | .. | closed page | [allocation] 0 0 0 | closed page | ..      a byte before faults
//! ```
//!
//! A kernel is held to the bounds of whole allocations: its tests hand it slices that are allocations of their own.

#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The environment variable that names the edge: `begin` or `end`.
const EDGE: &CStr = c"LANCE_MM_GUARDED_EDGE";
/// A multiple of the system's page.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };
/// Size of the address space, none of which is used twice, so that use after free ends the process, too.
// 128 GiB without memory behind them, far more than tests allocate; Linux gives them with overcommit 0 and 1.
const ADDRESSES: usize = 1 << 37;

#[global_allocator]
static ALLOCATOR: Guarded = Guarded;

struct Guarded;

/// An address space in which only what was allocated may be touched.
struct Space {
    edge: Edge,
    first: AtomicPtr<u8>,
    used: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Begin,
    End,
}

impl Edge {
    /// The edge in the environment.
    fn told() -> Option<Self> {
        // SAFETY: both strings end with a zero, and no test changes the environment.
        let value = unsafe {
            let value = libc::getenv(EDGE.as_ptr());
            (!value.is_null()).then(|| CStr::from_ptr(value))
        };
        match value?.to_bytes() {
            b"begin" => Some(Self::Begin),
            b"end" => Some(Self::End),
            _ => give_up("an edge is `begin` or `end`\n"),
        }
    }
}

/// Ends the process with a message: a panic would ask for memory.
fn give_up(message: &str) -> ! {
    // SAFETY: the message has as many bytes.
    unsafe { libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len()) };
    std::process::abort()
}

/// Maps addresses that must not be touched, at a place that the caller owns.
///
/// # Safety
/// `at` is null, or nothing uses the `len` bytes from there on, which are whole pages.
unsafe fn close(at: *mut u8, len: usize) -> *mut u8 {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
    // SAFETY: the system chooses addresses that are free, or the caller says that these are.
    let place = unsafe { libc::mmap(at.cast(), len, libc::PROT_NONE, flags, -1, 0) };
    if place == libc::MAP_FAILED { give_up("the system refuses guarded addresses\n") } else { place.cast() }
}

impl Space {
    /// The space of this process, if it is told to have one.
    fn get() -> Option<&'static Self> {
        static SPACE: OnceLock<Option<Space>> = OnceLock::new();
        let space = SPACE.get_or_init(|| {
            let edge = Edge::told()?;
            // SAFETY: at no address in particular.
            let first = unsafe { close(null_mut(), ADDRESSES) };
            // What is taken first has a page before it.
            Some(Self { edge, first: AtomicPtr::new(first), used: AtomicUsize::new(PAGE) })
        });
        space.as_ref()
    }

    /// Zeros, with closed pages before and after them; null where they are more than there can be.
    fn take(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ADDRESSES || layout.align() > PAGE {
            return null_mut();
        }
        let len = layout.size().next_multiple_of(PAGE);
        let start = self.used.fetch_add(len + PAGE, Ordering::Relaxed);
        if start + len + PAGE > ADDRESSES {
            give_up("no guarded addresses are left\n");
        }
        let pages = self.first.load(Ordering::Relaxed).wrapping_add(start);
        // SAFETY: pages of this space, which nobody else has taken.
        if unsafe { libc::mprotect(pages.cast(), len, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            // Every allocation that is in use is a mapping, and the closed page after it another one.
            give_up(
                "the system refuses guarded memory: is it too much, or in too many parts (vm.max_map_count)?\n",
            );
        }
        match self.edge {
            Edge::Begin => pages,
            Edge::End => pages.wrapping_add(len - layout.size().next_multiple_of(layout.align())),
        }
    }

    fn holds(&self, place: *mut u8) -> bool {
        let first = self.first.load(Ordering::Relaxed);
        (first..first.wrapping_add(ADDRESSES)).contains(&place)
    }
}

// SAFETY: what `Space::take` gives is at least as large and as aligned as asked for, and given once; `System` keeps the
// promise for the rest, and gets back what it gave.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(space) = Space::get() else {
            // SAFETY: as the caller says.
            return unsafe { System.alloc(layout) };
        };
        let place = space.take(layout);
        if !place.is_null() {
            // SAFETY: as many bytes were taken. Bits of no number, for those who read what they did not write.
            unsafe { place.write_bytes(0xff, layout.size()) };
        }
        place
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Space::get() {
            Some(space) => space.take(layout),
            // SAFETY: as the caller says.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        match Space::get().filter(|space| space.holds(place)) {
            Some(_) => {
                let pages = place.wrapping_sub(place.addr() % PAGE);
                // SAFETY: the pages that were taken for this, which the caller has no more use for.
                unsafe { close(pages, layout.size().next_multiple_of(PAGE)) };
            }
            // SAFETY: not from a space, so it is from `System`.
            None => unsafe { System.dealloc(place, layout) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, Output};

    use super::*;

    /// Runs tests of this program in a process of their own, which is told `edge`.
    fn run(edge: &str, args: &[&str]) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Symbols of a backtrace are more parts than there may be mappings.
        let command = command.args(args).env("RUST_BACKTRACE", "0").env_remove("RUST_LIB_BACKTRACE");
        command.env(EDGE.to_str().unwrap(), edge).output().unwrap()
    }

    /// Modules of kernels that have unsafe code, by the files below a folder.
    fn unsafe_modules(folder: &Path, module: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let module = format!("{module}::{}", path.file_stem().unwrap().to_str().unwrap());
            if path.is_dir() {
                found.extend(unsafe_modules(&path, &module));
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && std::fs::read_to_string(&path).unwrap().contains("unsafe {")
            {
                found.push(module);
            }
        }
        found
    }

    /// Runs all tests but those of this module, and of kernels that another program runs.
    fn stay_inside(edge: &str) {
        // One after another, so that the last name printed is that of the test which ended the process.
        let output =
            run(edge, &["--test-threads=1", "--skip", "kernels::guarded", "--skip", "kernels::metal"]);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "at the {edge}: {}\n{text}\n{errors}", output.status);
        // Elsewhere some kernels are not there.
        if cfg!(target_arch = "x86_64") {
            let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels");
            for module in unsafe_modules(&kernels, "kernels").iter().filter(|m| *m != "kernels::guarded") {
                let (parent, _) = module.rsplit_once("::").unwrap();
                let tested = [module, parent].iter().any(|m| text.contains(&format!("test {m}::tests::")));
                assert!(tested, "no test of {module} at the {edge} of its slices:\n{text}");
            }
        }
    }

    #[test]
    fn kernels_do_not_reach_before_their_slices() {
        stay_inside("begin");
    }

    #[test]
    fn kernels_do_not_reach_past_their_slices() {
        stay_inside("end");
    }

    #[test]
    fn a_byte_outside_ends_the_process() {
        for edge in ["begin", "end"] {
            let name = "kernels::guarded::tests::touch_a_byte_outside";
            let output = run(edge, &["--ignored", "--exact", name, "--nocapture"]);
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("all inside"), "{edge}: {text}");
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{edge}: {text}");
        }
    }

    #[test]
    #[ignore = "ends the process"]
    fn touch_a_byte_outside() {
        let edge = Edge::told().expect("a process of its own");
        let bytes = vec![1u8; PAGE + 5];
        assert!(bytes.iter().all(|byte| *byte == 1));
        eprintln!("all inside");
        let outside = match edge {
            Edge::Begin => bytes.as_ptr().wrapping_sub(1),
            Edge::End => bytes.as_ptr().wrapping_add(bytes.len()),
        };
        // SAFETY: none: the process is to end here.
        unsafe { outside.read_volatile() };
    }
}
