//! Running the program, and files for it.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Result of a run of the program.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    fn new(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let run = Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        };
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!run.stderr.contains(word), "{}", run.stderr);
        }
        run
    }

    /// The error, which must be one line, after any notes.
    pub(crate) fn error(&self) -> &str {
        assert_eq!(self.code, 1, "{}", self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        let notes =
            self.stderr.lines().filter(|line| line.starts_with("model: ") || line.starts_with("note: "));
        assert_eq!(self.stderr.lines().count(), notes.count() + 1, "{}", self.stderr);
        errors[0]
    }
}

/// The program in an environment of its own, without a hub.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lance-mm"));
    let names = "LANCE_MM_MODEL HF_TOKEN HF_ENDPOINT HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HUB_OFFLINE \
                 TRANSFORMERS_OFFLINE HF_TOKEN_PATH HUGGING_FACE_HUB_TOKEN HF_HUB_DISABLE_IMPLICIT_TOKEN http_proxy \
                 HTTP_PROXY ALL_PROXY all_proxy";
    for name in names.split(' ') {
        command.env_remove(name);
    }
    command.env("HF_HOME", "/nonexistent/huggingface").stdin(Stdio::null());
    command
}

/// Runs the program with arguments and nothing on standard input.
pub(crate) fn lance_mm(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Run {
    Run::new(command().args(args).output().unwrap())
}

/// Runs a command that [`command`] began.
pub(crate) fn run(command: &mut Command) -> Run {
    Run::new(command.output().unwrap())
}

/// Runs the program with `input` on standard input.
pub(crate) fn with_input(args: impl IntoIterator<Item = impl AsRef<OsStr>>, input: &[u8]) -> Run {
    let mut child = command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    Run::new(child.wait_with_output().unwrap())
}

/// A temporary folder.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With the demo images.
    pub(crate) fn demos() -> Self {
        let files = Self::new();
        for demo in lance_mm_nano::DEMOS {
            files.write(demo.file, demo.png);
        }
        files
    }

    /// With the demo images, and the bundled model in `nano`.
    pub(crate) fn nano() -> Self {
        let files = Self::demos();
        fs::create_dir(files.path("nano")).unwrap();
        for (name, bytes) in nano() {
            files.write(&format!("nano/{name}"), bytes);
        }
        files
    }

    /// With the demo images, and in `nano` the checkpoint that the bundled one is a quantization of.
    pub(crate) fn nano_bf16() -> Self {
        let files = Self::demos();
        fs::create_dir(files.path("nano")).unwrap();
        for entry in fs::read_dir(NANO_BF16).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            fs::copy(&path, files.path("nano").join(name)).unwrap();
        }
        files
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn demo(&self, index: usize) -> String {
        self.arg(lance_mm_nano::DEMOS[index].file)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.arg(name)
    }
}

/// The folder of the checkpoint that the bundled one is a quantization of.
pub(crate) const NANO_BF16: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/nano-bf16");

/// The bundled model's files.
pub(crate) fn nano() -> [(&'static str, &'static [u8]); 5] {
    [
        ("config.json", lance_mm_nano::CONFIG),
        ("generation_config.json", lance_mm_nano::GENERATION_CONFIG),
        ("tokenizer.json", lance_mm_nano::TOKENIZER),
        ("model.safetensors", lance_mm_nano::MODEL),
        ("vit.safetensors", lance_mm_nano::VIT),
    ]
}

/// The program where no file may become larger than `blocks` of 512 or 1,024 bytes: writing more fails as on a
/// full disk, in the middle of a file.
#[cfg(unix)]
pub(crate) fn with_little_space(blocks: u32, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Run {
    let program = command();
    let mut shell = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    shell.args(["-c", &script, "sh"]).arg(program.get_program()).args(args).stdin(Stdio::null());
    run(&mut shell)
}
