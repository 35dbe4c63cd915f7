//! Images and videos from files, folders and standard input.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use lance_mm::image::{self, FileKind, LoadOptions, MultiFrame, RgbImage};
use lance_mm::video::{Clip, Ffmpeg, UNKNOWN_FPS, is_animated_gif};
use lance_mm::{AskOptions, ImageFeatures, Lance};
use serde::Serialize;

use crate::args::ImageArgs;
use crate::output::{self, Hints};

/// An image or video that an argument names.
pub(crate) struct Input {
    pub(crate) source: Source,
    pixels: Pixels,
}

/// Name of an image or video, as JSON has it.
#[derive(Clone, Serialize)]
pub(crate) struct Source {
    /// The path, with bytes that are no UTF-8 as `\xFF`; `-` is standard input.
    #[serde(rename = "source")]
    pub(crate) name: String,
    /// Of a path that is not UTF-8: its bytes, all but letters, digits and `/._-` as `%FF`.
    #[serde(rename = "source_bytes", skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
}

impl Source {
    pub(crate) fn new(path: &Path) -> Self {
        if is_stdin(path) {
            return Self { name: "standard input".to_owned(), bytes: None };
        }
        let (mut name, bytes) = (String::new(), path.as_os_str().as_encoded_bytes());
        for chunk in bytes.utf8_chunks() {
            name += chunk.valid();
            name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
        let encode =
            |byte: &u8| if is_plain(*byte) { char::from(*byte).into() } else { format!("%{byte:02X}") };
        Self { name, bytes: path.to_str().is_none().then(|| bytes.iter().map(encode).collect()) }
    }
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
    let source = Source::new(path);
    let name = &source.name;
    let options = args.load_options();
    if !is_stdin(path) && path.is_dir() && !args.video {
        bail!("{name}: expected an image file, found a folder (--video reads its images as frames)");
    }
    let pixels = if !is_stdin(path) && (args.video || is_video_name(path)) {
        Pixels::Video(clip(path, args.fps, &options)?)
    } else if args.video {
        let bytes = bytes(path).map_err(|error| hinted(error, VIDEO_ON_STDIN))?;
        Pixels::Video(Clip::from_gif(&bytes, name, args.fps, &options)?)
    } else {
        Pixels::Image(still(path, &options, hints, "--video shows all of it")?)
    };
    Ok(Input { source, pixels })
}

/// Advice for a video on standard input.
const VIDEO_ON_STDIN: &str = "a video must be a file";

/// Reads an image; `-` is standard input. `of_video` is the advice for a video or an animated GIF.
pub(crate) fn still(path: &Path, options: &LoadOptions, hints: Hints, of_video: &str) -> Result<RgbImage> {
    let name = Source::new(path).name;
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

/// Bytes of an image file; `-` is standard input.
fn bytes(path: &Path) -> image::Result<Vec<u8>> {
    if is_stdin(path) {
        return image::read(io::stdin().lock(), &Source::new(path).name);
    }
    image::read_file(path)
}

/// The error of a file that cannot be opened, with advice if it does not exist.
fn unopened(path: &Path, error: &io::Error) -> anyhow::Error {
    let name = Source::new(path).name;
    if error.kind() != io::ErrorKind::NotFound {
        return anyhow!("{name}: {error}");
    }
    match name.split_once(":/") {
        Some(("file", rest)) => {
            anyhow!("{name}: expected a path, found an address: write /{}", rest.trim_start_matches('/'))
        }
        // One letter is a drive of Windows.
        Some((scheme, _)) if scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            anyhow!(
                "{name}: expected a file, found an address: download it first (curl -sL ADDRESS | lance-mm ask - ..)"
            )
        }
        _ => match similar(path) {
            Some(other) => anyhow!("{name}: {error} (did you mean {other}?)"),
            None => anyhow!("{name}: {error}"),
        },
    }
}

/// Name in the folder of a path that differs from it by a slip of the keyboard.
fn similar(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Large folders would take long.
    let entries = std::fs::read_dir(folder).ok()?.take(10_000);
    let others = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let distances = others.map(|other| (strsim::damerau_levenshtein(name, &other), other));
    let (distance, other) = distances.min()?;
    (distance <= 2 && 3 * distance <= name.len()).then_some(other)
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
        image::Error::Io { path, source } => unopened(&path, &source),
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
    let name = Source::new(path).name;
    if path.is_dir() {
        return Ok(Clip::from_dir(path, fps.unwrap_or(UNKNOWN_FPS), options)?);
    }
    let start = image::read_start(path).map_err(|error| match error {
        image::Error::Io { source, .. } => unopened(path, &source),
        error => error.into(),
    })?;
    match FileKind::of(&start) {
        FileKind::Image("GIF") => return Ok(Clip::from_gif(&bytes(path)?, &name, fps, options)?),
        FileKind::Image(format) => match image::multi_frame(&bytes(path)?) {
            // ffmpeg reads its frames.
            Some(MultiFrame::Animation) if format == "PNG" => {}
            Some(MultiFrame::Animation) => bail!(
                "{name}: expected a video, found an animated {format}, which is read as an image \
                 (GIF files, folders of frames and video files are videos)"
            ),
            _ => bail!("{name}: expected a video, found a {format} image"),
        },
        FileKind::Video(_) => {}
        // Lists and scripts among them, which ffmpeg would follow to other files.
        kind => bail!("{name}: expected a video, found {kind}"),
    }
    Ok(Ffmpeg::find().map_err(|error| anyhow!("{name}: {error}"))?.read(path, fps, options)?)
}
