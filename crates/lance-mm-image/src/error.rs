//! The error of this crate.

use std::path::PathBuf;

use crate::format::FileKind;
use crate::size::Size;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of reading, preparing and writing images and videos.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A file that is not an image of a supported format.
    #[error("{name}: expected PNG, JPEG, GIF, WebP, BMP, TIFF or PNM, found {kind}{}", kind.remedy())]
    UnsupportedFormat {
        /// The file or stream.
        name: String,
        /// Kind of the file.
        kind: FileKind,
    },
    /// More bytes, pixels or frames than [`LoadOptions`](crate::LoadOptions) allow.
    #[error("{name}: {message}")]
    TooLarge {
        /// The file, stream or folder.
        name: String,
        /// Most bytes, pixels or frames allowed.
        limit: u64,
        /// Expected and found.
        message: String,
    },
    /// An image that cannot be used: damaged, truncated, without pixels or of a size that does not fit.
    #[error("{name}: {message}")]
    Image {
        /// The file or stream.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// Frames that make no video, or a file that ffmpeg does not read or write.
    #[error("{name}: {problem}")]
    Video {
        /// The file or folder, `video` for frames in memory.
        name: String,
        /// Reason.
        problem: VideoProblem,
    },
    /// No ffmpeg on this machine.
    #[error(
        "expected the program {program}, which video files need, found none in PATH (GIF files and folders of \
         images need none)"
    )]
    NoFfmpeg {
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
    },
    /// An option out of range.
    #[error("option {name}: expected {expected}, found {found}")]
    Option {
        /// The option.
        name: &'static str,
        /// Legal values.
        expected: String,
        /// Value given.
        found: String,
    },
}

/// Why frames make no video.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VideoProblem {
    /// No frames.
    #[error("expected frames, found none")]
    NoFrames,
    /// A file that is no container of videos.
    #[error("expected a video, found {kind}")]
    Container {
        /// Kind of the file.
        kind: FileKind,
    },
    /// A file without a video stream.
    #[error("expected a video stream, found none in the file")]
    NoStream,
    /// Frames of different sizes.
    #[error("frame {index}: expected {expected} pixels like frame 0, found {found}")]
    FrameSize {
        /// The first frame that differs, counted from 0.
        index: usize,
        /// Size of frame 0.
        expected: Size,
        /// Size of the frame.
        found: Size,
    },
    /// Too short to sample a single frame of it.
    #[error("expected at least {least} frames at {fps} frames per second, found {found}")]
    TooShort {
        /// Fewest frames accepted.
        least: f64,
        /// Frames per second, rounded to an integer.
        fps: f64,
        /// Frames of the video.
        found: usize,
    },
    /// Failure of ffmpeg or ffprobe.
    #[error("{program}: {message}")]
    Program {
        /// `ffmpeg` or `ffprobe`.
        program: &'static str,
        /// Last line of its standard error.
        message: String,
    },
}

impl Error {
    pub(crate) fn option(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Option { name, expected: expected.to_string(), found: found.to_string() }
    }

    /// An image of this size that cannot be used.
    pub(crate) fn of_size(what: &str, size: Size, message: impl ToString) -> Self {
        Self::Image { name: format!("{what} of {size} pixels"), message: message.to_string() }
    }

    /// Gives an error about a video the name of its file or folder.
    pub(crate) fn named(self, name: impl ToString) -> Self {
        let name = name.to_string();
        match self {
            Self::Video { problem, .. } => Self::Video { name, problem },
            Self::TooLarge { limit, message, .. } => Self::TooLarge { name, limit, message },
            Self::Io { source, .. } => Self::Io { path: name.into(), source },
            error => error,
        }
    }
}

/// The size itself, unless a side is zero; `what` is the thing that has it.
pub(crate) fn not_empty(size: Size, what: &str) -> Result<Size> {
    if size.area() == 0 {
        return Err(Error::of_size(what, size, "expected sides above 0"));
    }
    Ok(size)
}

impl From<VideoProblem> for Error {
    /// Frames in memory have no name and are called `video`.
    fn from(problem: VideoProblem) -> Self {
        Self::Video { name: "video".to_owned(), problem }
    }
}
