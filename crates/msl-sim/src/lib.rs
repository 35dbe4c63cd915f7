//! Compiles Metal compute kernels with the host's C++ compiler and runs them lane by lane on the CPU: a test
//! double for machines without Metal. Start from [`Program`].
//!
//! Each thread is a fiber with a stack of its own. SIMD functions and `simdgroup_barrier` are meeting points of
//! 32 lanes, `threadgroup_barrier` of the whole group; lanes that wait at different source lines are reported
//! as divergent. Threadgroup variables lie between red zones and are filled with 0xA5 before each group;
//! buffers end right before an unmapped page. [`Build::RaceCheck`] makes each lane a ThreadSanitizer fiber
//! whose only ordering is the kernel's barriers.
//!
//! A green run means that arithmetic, indexing, barriers and memory bounds are right for these shapes, on a
//! machine with IEEE arithmetic and SIMD groups of 32. It says nothing about what Apple's compiler accepts (address
//! spaces are not checked), about fast maths, about the arguments the host binds, or about speed.
//!
//! What the source must look like beyond Metal's own rules:
//! - one threadgroup variable per statement, without initialiser, in the kernel's body;
//! - kernels are plain functions, or templates with
//!   `template [[host_name("…")]] [[kernel]] decltype(f<…>) f<…>;`;
//! - no overloads or specialisations that differ only in an address space, for those words are erased;
//! - `c ? half_value : float_value` is ambiguous here: cast one side;
//! - vectors have the swizzles `xy`, `zw`, `xyz`, `lo`, `hi`; no textures, no asynchronous copies.

mod request;
mod translate;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// How a program is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Build {
    /// Optimised; buffers sit against unmapped pages, threadgroup arrays have red zones.
    Plain,
    /// ThreadSanitizer over the lanes: a missing barrier becomes a reported data race. Slow.
    RaceCheck,
    /// UndefinedBehaviorSanitizer (shifts, signed overflow, misaligned access) on top of `Plain`.
    UbCheck,
}

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O2"],
            Self::RaceCheck => &["-O1", "-g", "-fsanitize=thread"],
            Self::UbCheck => &["-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
        }
    }
}

/// One kernel argument; the number is its `[[buffer(n)]]` or `[[threadgroup(n)]]`.
#[derive(Debug)]
pub enum Arg<'a> {
    /// Device buffer, written back after the run.
    Buffer(u32, &'a mut [u8]),
    /// Constant passed by value, as an encoder's `setBytes` does.
    Bytes(u32, Vec<u8>),
    /// Threadgroup memory of this many bytes.
    Threadgroup(u32, u64),
}

/// One dispatch of a kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Name of the kernel or of its instantiation.
    pub kernel: &'a str,
    /// Threadgroups in the grid.
    pub groups: [u32; 3],
    /// Threads in a threadgroup.
    pub threads: [u32; 3],
    /// Arguments, in any order.
    pub args: Vec<Arg<'a>>,
    /// Function constants: index and raw bytes.
    pub constants: Vec<(u32, Vec<u8>)>,
    /// Lane order between barriers: 0 ascending, 1 descending, any other value seeds a shuffle.
    pub order: u32,
    /// Accepts kernels in which some lanes return before a barrier or SIMD operation.
    pub allow_early_exit: bool,
}

impl<'a> Launch<'a> {
    /// A dispatch without arguments, lanes ascending.
    pub fn new(kernel: &'a str, groups: [u32; 3], threads: [u32; 3]) -> Self {
        Self { kernel, groups, threads, args: vec![], constants: vec![], order: 0, allow_early_exit: false }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: Arg<'a>) -> Self {
        self.args.push(arg);
        self
    }

    /// Sets the lane order.
    pub fn order(mut self, order: u32) -> Self {
        self.order = order;
        self
    }
}

/// Memory and work of a run.
#[derive(Debug)]
pub struct Stats {
    /// Largest threadgroup memory that any threadgroup used, in bytes.
    pub threadgroup_bytes: u64,
}

/// A compiled `.metal` file.
#[derive(Debug)]
pub struct Program {
    folder: TempDir,
    kernels: Vec<String>,
}

impl Program {
    /// Compiles a file with the compiler that `MSL_CXX` names, or `g++` (12 or newer).
    ///
    /// # Errors
    /// No such compiler, or source that it or the translation refuses.
    pub fn from_file(path: &Path, build: Build) -> Result<Self> {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::Builder::new().prefix("msl-sim-").tempdir()?;
        let preprocessed = run(compiler()
            .args(["-E", "-x", "c++", "-std=c++14", "-nostdinc"])
            .args(["-D__METAL__", "-D__METAL_VERSION__=310", "-D__HAVE_BFLOAT__"])
            .arg("-I")
            .arg(crate_dir.join("stub"))
            .arg(path))
        .with_context(|| format!("preprocessing {}", path.display()))?;
        let unit = translate::translate(&String::from_utf8_lossy(&preprocessed))
            .with_context(|| format!("translating {}", path.display()))?;
        let source = folder.path().join("kernel.cpp");
        std::fs::write(&source, &unit.text)?;
        run(compiler()
            .args(["-std=c++14", "-w", "-fpermissive"])
            .args(["-fsingle-precision-constant", "-ffp-contract=off", "-fno-strict-aliasing"])
            .args(build.flags())
            .arg("-I")
            .arg(crate_dir.join("shim"))
            .arg(&source)
            .arg("-o")
            .arg(folder.path().join("kernel")))
        .with_context(|| format!("compiling {}", path.display()))?;
        Ok(Self { folder, kernels: unit.kernels })
    }

    /// Compiles source text.
    ///
    /// # Errors
    /// As [`Program::from_file`].
    pub fn from_source(source: &str, build: Build) -> Result<Self> {
        let file = tempfile::Builder::new().prefix("msl-sim-").suffix(".metal").tempfile()?;
        std::fs::write(file.path(), source)?;
        Self::from_file(file.path(), build)
    }

    /// Names a [`Launch`] may use.
    pub fn kernels(&self) -> &[String] {
        &self.kernels
    }

    /// Runs one dispatch.
    ///
    /// # Errors
    /// A fault (access outside a buffer, divergence, a race, ...); the message says which.
    pub fn run(&self, launch: Launch<'_>) -> Result<Stats> {
        let response = tempfile::Builder::new().tempfile_in(self.folder.path())?;
        let request = tempfile::Builder::new().tempfile_in(self.folder.path())?;
        std::fs::write(request.path(), request::encode(&launch))?;
        run(Command::new(self.executable())
            .arg(request.path())
            .arg(response.path())
            .env("TSAN_OPTIONS", "halt_on_error=1 exitcode=66 report_signal_unsafe=0"))
        .with_context(|| format!("kernel {}", launch.kernel))?;
        request::decode(&std::fs::read(response.path())?, launch)
    }

    fn executable(&self) -> PathBuf {
        self.folder.path().join("kernel")
    }
}

fn compiler() -> Command {
    Command::new(std::env::var_os("MSL_CXX").unwrap_or_else(|| "g++".into()))
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, errors.trim());
    Ok(output.stdout)
}
