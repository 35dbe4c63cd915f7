//! Images and videos from files, folders and standard input.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use lance_mm::image::{self, FileKind, LoadOptions, MultiFrame, RgbImage};
use lance_mm::video::{Clip, Ffmpeg, UNKNOWN_FPS, is_animated_gif};
use lance_mm::{AskOptions, ImageFeatures, Lance};

use crate::args::ImageArgs;
use crate::output::{self, Hints};

/// An image or video that an argument names.
pub(crate) struct Input {
    pub(crate) name: String,
    pixels: Pixels,
}

enum Pixels {
    Image(RgbImage),
    Video(Clip),
}

impl Input {
    fn is_video(&self) -> bool {
        matches!(self.pixels, Pixels::Video(_))
    }

    /// Runs the vision encoder and releases the pixels.
    pub(crate) fn encode(self, lance: &Lance, options: &AskOptions) -> Result<ImageFeatures> {
        let features = match self.pixels {
            Pixels::Image(image) => lance.encode_image(&image, options),
            Pixels::Video(clip) => lance.encode_video(&clip, options),
        };
        Ok(features?)
    }
}

/// Note on videos, which nobody has tried with the published quantized model.
pub(crate) fn warn(inputs: &[Input], lance: &Lance, hints: Hints) {
    if lance.is_quantized() && inputs.iter().any(Input::is_video) {
        hints.note("note: this model was quantized for images; its answers about videos are untested");
    }
}

/// Reads every argument of a command; `-` is standard input.
pub(crate) fn read_all(
    command: &str,
    paths: &[OsString],
    args: &ImageArgs,
    hints: Hints,
) -> Result<Vec<Input>> {
    let inputs = paths.iter().map(|path| read(path, args, hints)).collect::<Result<Vec<_>>>()?;
    if args.fps.is_some() && !inputs.iter().any(Input::is_video) {
        let message = "--fps expects a video, found none (--video shows animated GIFs and folders as videos)";
        return Err(output::usage(command, message));
    }
    Ok(inputs)
}

/// Reads one argument.
pub(crate) fn read(path: &OsStr, args: &ImageArgs, hints: Hints) -> Result<Input> {
    let path = Path::new(path);
    let name = name_of(path);
    let options = args.load_options();
    if !is_stdin(path) && path.is_dir() && !args.video {
        bail!("{name}: expected an image file, found a folder (--video reads its images as frames)");
    }
    let pixels = if !is_stdin(path) && (args.video || is_video_name(path)) {
        Pixels::Video(clip(path, args.fps, &options)?)
    } else if args.video {
        let bytes = bytes(path).map_err(|error| hinted(error, VIDEO_ON_STDIN))?;
        Pixels::Video(animation(&bytes, &name, args.fps, &options)?)
    } else {
        Pixels::Image(still(path, &options, hints, "--video shows all of it")?)
    };
    Ok(Input { name, pixels })
}

/// Advice for a video on standard input.
const VIDEO_ON_STDIN: &str = "a video must be a file";

/// Reads an image; `-` is standard input. `of_video` is the advice for a video or an animated GIF.
pub(crate) fn still(path: &Path, options: &LoadOptions, hints: Hints, of_video: &str) -> Result<RgbImage> {
    let name = name_of(path);
    let of_file = if is_stdin(path) { VIDEO_ON_STDIN } else { of_video };
    let bytes = bytes(path).map_err(|error| hinted(error, of_file))?;
    let image = image::decode(&bytes, &name, options)?;
    match image::multi_frame(&bytes) {
        Some(MultiFrame::Pages) => {
            hints.note(&format!("note: {name} has more than one page: the first is used"));
        }
        Some(_) if is_animated_gif(&bytes) => {
            hints.note(&format!("note: {name} is animated: its first frame is used ({of_video})"));
        }
        Some(_) => hints.note(&format!("note: {name} is animated: its first frame is used")),
        None => {}
    }
    Ok(image)
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Name of a file; `-` is standard input.
fn name_of(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// Bytes of an image file; `-` is standard input.
fn bytes(path: &Path) -> image::Result<Vec<u8>> {
    let name = name_of(path);
    if is_stdin(path) {
        return image::read(io::stdin().lock(), &name);
    }
    let file = File::open(path).map_err(|source| image::Error::Io { path: path.to_owned(), source })?;
    image::read(file, &name)
}

/// An error of a file that is no image, with advice; `of_video` is that for a video.
fn hinted(error: image::Error, of_video: &str) -> anyhow::Error {
    match error {
        image::Error::UnsupportedFormat { kind: FileKind::UnsupportedImage("HEIC"), .. } => {
            anyhow!("{error} (on a Mac: sips -s format jpeg in.heic --out out.jpg)")
        }
        image::Error::UnsupportedFormat { kind: FileKind::UnsupportedImage("AVIF"), .. } => {
            anyhow!("{error} (on a Mac: sips -s format jpeg in.avif --out out.jpg)")
        }
        image::Error::UnsupportedFormat { kind: FileKind::Video(_), .. } => anyhow!("{error} ({of_video})"),
        error => error.into(),
    }
}

/// Whether a file of this name can only be a video.
fn is_video_name(path: &Path) -> bool {
    let end = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
    matches!(end.as_deref(), Some("mp4" | "mov" | "mkv" | "webm" | "avi" | "m4v" | "mpg" | "mpeg"))
}

/// Reads a video: a folder of frames, an animated GIF, or a file through ffmpeg.
pub(crate) fn clip(path: &Path, fps: Option<f64>, options: &LoadOptions) -> Result<Clip> {
    let name = path.display().to_string();
    if path.is_dir() {
        return Ok(Clip::from_dir(path, fps.unwrap_or(UNKNOWN_FPS), options)?);
    }
    let mut start = Vec::new();
    let file = File::open(path).and_then(|file| file.take(256).read_to_end(&mut start));
    file.map_err(|error| anyhow!("{name}: {error}"))?;
    match FileKind::of(&start) {
        FileKind::Image("GIF") => return animation(&bytes(path)?, &name, fps, options),
        FileKind::Image(format) => match image::multi_frame(&bytes(path)?) {
            // ffmpeg reads its frames.
            Some(MultiFrame::Animation) if format == "PNG" => {}
            Some(MultiFrame::Animation) => bail!(
                "{name}: expected a video, found an animated {format}, which is read as an image \
                 (GIF files, folders of frames and video files are videos)"
            ),
            _ => bail!("{name}: expected a video, found a {format} image"),
        },
        _ => {}
    }
    Ok(Ffmpeg::find().map_err(|error| anyhow!("{name}: {error}"))?.read(path, fps, options)?)
}

/// Reads an animated GIF that is long enough to be sampled.
fn animation(bytes: &[u8], name: &str, fps: Option<f64>, options: &LoadOptions) -> Result<Clip> {
    let mut clip = Clip::from_gif(bytes, name, options)?;
    clip.fps = fps.unwrap_or(clip.fps);
    match clip.sampled() {
        Err(image::Error::Video { problem, .. }) => bail!("{name}: {problem}"),
        sampled => sampled.map(drop)?,
    }
    Ok(clip)
}
