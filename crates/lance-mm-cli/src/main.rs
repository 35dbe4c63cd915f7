//! The program `lance-mm`; see the library of this crate.

use std::process::ExitCode;

/// Keeps memory that was given back for a moment. The system's allocators return large pieces at once, and a
/// network asks for pieces of the same sizes again and again: the system would clear them page by page each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lance_mm_cli::run(std::env::args_os())
}
