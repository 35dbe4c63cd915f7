//! Output files of generations: checked before the work, written beside the final name and renamed at the end.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use lance_mm::image::{self, RgbImage};
use lance_mm::video::{Animation, Ffmpeg};

/// Frames a second of generated videos.
pub(crate) const FPS: u16 = 12;

/// Partial files, removed when the program is interrupted. Locked while files are created, written and renamed: an
/// interruption waits for that and removes them with the rest.
static PARTIAL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Set when the program is ending: nothing more is written.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Removes half written files when the program is interrupted, and ends it. Elsewhere than on Unix they stay, as
/// hidden files that the next run with the same output takes over.
pub(crate) fn clean_up_on_interrupt() -> Result<()> {
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
            .context("the handler of interruptions")?;
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                INTERRUPTED.store(true, Ordering::SeqCst);
                let partial = PARTIAL.lock().unwrap_or_else(PoisonError::into_inner);
                for path in partial.iter() {
                    let _ = remove(path);
                }
                // What shells say of a program that a signal ended.
                std::process::exit(128 + signal);
            }
        });
    }
    Ok(())
}

/// Locks what is being written. Once the program is interrupted this waits for its end.
fn partial() -> MutexGuard<'static, Vec<PathBuf>> {
    let guard = PARTIAL.lock().unwrap_or_else(PoisonError::into_inner);
    if INTERRUPTED.load(Ordering::SeqCst) {
        drop(guard);
        loop {
            std::thread::park();
        }
    }
    guard
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Forms of a result.
enum Form {
    Png,
    Animation(Animation),
    /// A folder of numbered PNG files.
    Frames,
    Video(Ffmpeg),
}

/// A file or folder to be. Until it is saved, a temporary sibling holds its place.
pub(crate) struct Target {
    path: PathBuf,
    partial: PathBuf,
    form: Form,
    saved: bool,
}

impl Target {
    /// An image.
    ///
    /// # Errors
    /// A name that does not end in `.png`, a place where nothing can be written.
    pub(crate) fn image(path: &Path) -> Result<Self> {
        match extension(path).as_deref() {
            Some("png") if !ends_in_slash(path) => Self::new(path, Form::Png),
            _ => bail!("--output: expected a name that ends in .png, found {}", path.display()),
        }
    }

    /// A video: `.gif`, `.png` and `.webp` are animations, a name without an end is a folder of frames, and
    /// everything else is for ffmpeg to write.
    ///
    /// # Errors
    /// No ffmpeg for a name that needs it, a place where nothing can be written.
    pub(crate) fn video(path: &Path) -> Result<Self> {
        let form = match extension(path).as_deref() {
            _ if ends_in_slash(path) || path.is_dir() => Form::Frames,
            None => Form::Frames,
            Some("gif") => Form::Animation(Animation::Gif),
            Some("png" | "apng") => Form::Animation(Animation::Png),
            Some("webp") => Form::Animation(Animation::WebP),
            Some("mp4" | "mov" | "mkv" | "webm" | "avi" | "m4v") => {
                let found = Ffmpeg::find().map_err(|error| anyhow!("--output {}: {error}", path.display()));
                Form::Video(found?)
            }
            Some(other) => bail!(
                "--output: expected .mp4, .mov, .mkv, .webm, .avi, .gif, .png, .webp or a folder, found .{other}"
            ),
        };
        Self::new(path, form)
    }

    fn new(path: &Path, form: Form) -> Result<Self> {
        let partial =
            hidden(path).with_context(|| format!("--output {}: no name to write to", path.display()))?;
        let cannot = |error: std::io::Error| anyhow!("--output {}: {error}", path.display());
        let mut known = self::partial();
        if matches!(form, Form::Frames) {
            if path.is_file() {
                bail!("--output {}: expected a folder or nothing, found a file", path.display());
            }
            if path.is_dir() && fs::read_dir(path).map_err(cannot)?.next().is_some() {
                bail!("--output {}: expected an empty folder, found files in it", path.display());
            }
            if partial.exists() {
                fs::remove_dir_all(&partial).map_err(cannot)?;
            }
            fs::create_dir(&partial).map_err(cannot)?;
        } else {
            if path.is_dir() {
                bail!("--output {}: expected a file or nothing, found a folder", path.display());
            }
            fs::File::create(&partial).map_err(cannot)?;
        }
        known.push(partial.clone());
        Ok(Self { path: path.to_owned(), partial, form, saved: false })
    }

    /// Writes the frames. `texts` go into files that can hold them.
    pub(crate) fn save(mut self, frames: &[RgbImage], texts: &[(&str, &str)]) -> Result<PathBuf> {
        match &self.form {
            Form::Png => self.write(&self.partial, &image::encode_png(&frames[0], texts)?)?,
            Form::Animation(animation) => {
                self.write(&self.partial, &animation.encode(frames, FPS, texts)?)?;
            }
            Form::Video(ffmpeg) => {
                let _writing = partial();
                let written = ffmpeg.write(frames, FPS, &self.partial);
                written.with_context(|| format!("--output {}", self.path.display()))?;
            }
            Form::Frames => {
                let digits = frames.len().to_string().len().max(3);
                for (i, frame) in frames.iter().enumerate() {
                    let name = format!("{:0digits$}.png", i + 1);
                    self.write(&self.partial.join(name), &image::encode_png(frame, texts)?)?;
                }
            }
        }
        let _renaming = partial();
        if matches!(self.form, Form::Frames) {
            // An empty folder may stand where this one goes.
            let _ = fs::remove_dir(&self.path);
        }
        fs::rename(&self.partial, &self.path).with_context(|| format!("--output {}", self.path.display()))?;
        self.saved = true;
        Ok(self.path.clone())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let _writing = partial();
        fs::write(path, bytes).with_context(|| format!("--output {}", self.path.display()))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let mut known = partial();
        if !self.saved {
            let _ = remove(&self.partial);
        }
        known.retain(|path| *path != self.partial);
    }
}

/// Writes a file as a whole or not at all: beside `path`, to which it is renamed. Anything at `path` that is no file, a
/// pipe for example, is written to.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let _writing = partial();
    let written = match hidden(path) {
        Some(partial) if path.is_file() || !path.exists() => {
            fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).inspect_err(|_| {
                let _ = fs::remove_file(&partial);
            })
        }
        _ => fs::write(path, bytes),
    };
    written.with_context(|| path.display().to_string())
}

/// Where a file is written before it is renamed; `None` if it has no name. ffmpeg takes the format from the end of it.
fn hidden(path: &Path) -> Option<PathBuf> {
    let mut hidden = OsString::from(".partial-");
    hidden.push(path.file_name()?);
    Some(path.with_file_name(hidden))
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_lowercase())
}
