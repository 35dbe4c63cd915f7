//! Output files of generations and reports: checked before the work, under their names whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use lance_mm::image::{self, RgbImage};
use lance_mm::staged::{self, StagedFile, StagedFolder};
use lance_mm::video::{Animation, Ffmpeg};

use crate::interrupt;

/// Frames a second of generated videos.
pub(crate) const FPS: u16 = 12;

/// A file or folder to be. Until it is saved, a hidden one beside it holds its place.
pub(crate) struct Target {
    path: PathBuf,
    form: Form,
}

/// Forms of a result.
enum Form {
    Png(StagedFile),
    Animation(Animation, StagedFile),
    Video(Ffmpeg, StagedFile),
    /// A folder of numbered PNG files.
    Frames(StagedFolder),
}

impl Target {
    /// An image.
    ///
    /// # Errors
    /// A name that does not end in `.png`, a place where nothing can be written.
    pub(crate) fn image(path: &Path) -> Result<Self> {
        if extension(path).as_deref() != Some("png") || ends_in_slash(path) {
            bail!("--output: expected a name that ends in .png, found {}", path.display());
        }
        Ok(Self { path: path.to_owned(), form: Form::Png(file(path)?) })
    }

    /// A video: `.gif`, `.png` and `.webp` are animations, a name without an end is a folder of frames, and
    /// everything else is for ffmpeg to write.
    ///
    /// # Errors
    /// No ffmpeg for a name that needs it, a place where nothing can be written.
    pub(crate) fn video(path: &Path) -> Result<Self> {
        let animation = |animation| Ok::<_, anyhow::Error>(Form::Animation(animation, file(path)?));
        let frames = || StagedFolder::create(path).with_context(|| output(path));
        let form = match extension(path).as_deref() {
            _ if ends_in_slash(path) || path.is_dir() => Form::Frames(frames()?),
            None => Form::Frames(frames()?),
            Some("gif") => animation(Animation::Gif)?,
            Some("png" | "apng") => animation(Animation::Png)?,
            Some("webp") => animation(Animation::WebP)?,
            Some("mp4" | "mov" | "mkv" | "webm" | "avi" | "m4v") => {
                let found = Ffmpeg::find().map_err(|error| anyhow!("{}: {error}", output(path)))?;
                Form::Video(found, file(path)?)
            }
            Some(other) => bail!(
                "--output: expected .mp4, .mov, .mkv, .webm, .avi, .gif, .png, .webp or a folder, found .{other}"
            ),
        };
        Ok(Self { path: path.to_owned(), form })
    }

    /// Writes the frames. `texts` go into files that can hold them.
    pub(crate) fn save(self, frames: &[RgbImage], texts: &[(&str, &str)]) -> Result<PathBuf> {
        self.form.save(frames, texts).with_context(|| output(&self.path))?;
        Ok(self.path)
    }
}

impl Form {
    fn save(self, frames: &[RgbImage], texts: &[(&str, &str)]) -> Result<()> {
        let write = |mut file: StagedFile, bytes: &[u8]| file.write_all(bytes).and_then(|()| file.commit());
        match self {
            Self::Png(file) => write(file, &image::encode_png(&frames[0], texts)?)?,
            Self::Animation(animation, file) => write(file, &animation.encode(frames, FPS, texts)?)?,
            Self::Video(ffmpeg, file) => {
                let written = interrupt::writing();
                ffmpeg.write(frames, FPS, file.path())?;
                drop(written);
                file.commit()?;
            }
            Self::Frames(folder) => {
                let digits = frames.len().to_string().len().max(3);
                for (i, frame) in frames.iter().enumerate() {
                    let name = format!("{:0digits$}.png", i + 1);
                    fs::write(folder.path().join(name), image::encode_png(frame, texts)?)?;
                }
                folder.commit()?;
            }
        }
        Ok(())
    }
}

fn file(path: &Path) -> Result<StagedFile> {
    StagedFile::create(path).with_context(|| output(path))
}

fn output(path: &Path) -> String {
    format!("--output {}", path.display())
}

/// Writes a file as a whole or not at all. Anything at `path` that is no file, a pipe for example, is written to.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    // A link of /dev or /proc may lead to a file, but stands for a stream.
    let is_stream = path.starts_with("/dev") || path.starts_with("/proc");
    let is_file = fs::metadata(path).map_or_else(
        |error| error.kind() == io::ErrorKind::NotFound,
        |found| found.is_file() || found.is_dir(),
    );
    let written = if is_stream || !is_file { fs::write(path, bytes) } else { staged::write(path, bytes) };
    written.with_context(|| path.display().to_string())
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_lowercase())
}
