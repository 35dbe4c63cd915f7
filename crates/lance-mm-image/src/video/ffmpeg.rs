//! Video files, read and written by the program ffmpeg.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::iter::repeat_n;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::{Clip, SAMPLED_FPS, sample_indices};
use crate::error::{Error, Result, VideoProblem};
use crate::resize::frame_size;
use crate::{FileKind, LoadOptions, RgbImage, Size, from_raw, read_start};

/// The programs ffmpeg and ffprobe of `PATH`.
#[derive(Clone, Debug)]
pub struct Ffmpeg(());

impl Ffmpeg {
    /// Finds the programs.
    ///
    /// # Errors
    /// [`Error::NoFfmpeg`] for a program that is not installed, [`VideoProblem::Program`] for one that does not run.
    pub fn find() -> Result<Self> {
        for program in ["ffmpeg", "ffprobe"] {
            let output = Command::new(program).arg("-version").stdin(Stdio::null()).output();
            match output {
                Ok(output) if output.status.success() => {}
                Ok(output) => return Err(failed(program, &output.stderr)),
                Err(error) => return Err(not_run(program, &error)),
            }
        }
        Ok(Self(()))
    }

    /// Reads the frames of a video file that the model sees, selected by [`sample_indices`](super::sample_indices). The
    /// result holds those alone, at [`SAMPLED_FPS`]. `fps` replaces the file's own average rate.
    ///
    /// # Errors
    /// A file that is no video by its first bytes: ffmpeg would follow lists and scripts to other files, whatever their
    /// names. A video that ffmpeg cannot read or that has no video stream, more than [`LoadOptions::max_clip_pixels`] pixels in
    /// all sampled frames; as [`sample_indices`](super::sample_indices).
    pub fn read(&self, path: &Path, fps: Option<f64>, options: &LoadOptions) -> Result<Clip> {
        let start = read_start(path)?;
        let clip = check(&start).and_then(|()| read(path, fps, options));
        clip.map_err(|error| error.named(path.display()))
    }

    /// Reads a video in memory, as [`read`](Self::read) does a file; `name` is its name in errors. A temporary file
    /// holds it meanwhile, since most containers cannot be read from a pipe.
    ///
    /// # Errors
    /// As [`read`](Self::read); a temporary file that cannot be written.
    pub fn read_bytes(
        &self,
        bytes: &[u8],
        name: &str,
        fps: Option<f64>,
        options: &LoadOptions,
    ) -> Result<Clip> {
        let file = check(bytes).and_then(|()| TemporaryFile::new(bytes));
        file.and_then(|file| read(&file.0, fps, options)).map_err(|error| error.named(name))
    }

    /// Writes frames of one size as the video file `path`, whose name tells ffmpeg the format.
    ///
    /// # Errors
    /// No frames, frames of different sizes, or a format or file that ffmpeg refuses.
    pub fn write(&self, frames: &[RgbImage], fps: u16, path: &Path) -> Result<()> {
        let size = frame_size(frames)?;
        // Without -xerror it exits with success when the disk is full.
        let mut command = ffmpeg(["-xerror", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]);
        command.args(["-video_size", &size.to_string(), "-framerate", &fps.to_string()]);
        // Players want colours at half resolution.
        command.args(["-i", "-", "-an", "-pix_fmt", "yuv420p"]).arg(file(path));
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
        let written = match running.child.stdin.take() {
            Some(mut input) => frames.iter().try_for_each(|frame| input.write_all(frame.as_raw())),
            None => Ok(()),
        };
        running.finish()?;
        written.map_err(|error| not_run("ffmpeg", &error))
    }
}

/// Refuses what is no container of a video or animation. Errors do not name it.
fn check(start: &[u8]) -> Result<()> {
    match FileKind::of(start) {
        FileKind::Video(_) | FileKind::Image("PNG" | "GIF") => Ok(()),
        kind => Err(VideoProblem::Container { kind }.into()),
    }
}

/// Sampled frames of a video file. Errors do not name it.
fn read(path: &Path, fps: Option<f64>, options: &LoadOptions) -> Result<Clip> {
    let (count, rate) = probe(path)?;
    let indices = sample_indices(count, fps.unwrap_or(rate))?;
    let mut wanted = indices.clone();
    wanted.dedup();
    let frames = sampled(path, &wanted, options)?;
    let last = frames.len().checked_sub(1).ok_or(VideoProblem::NoFrames)?;
    // Counting packets may find more frames than decoding does.
    let mut times = vec![0; frames.len()];
    for index in &indices {
        times[wanted.binary_search(index).unwrap_or(last).min(last)] += 1;
    }
    let picked = frames.into_iter().zip(times).flat_map(|(frame, times)| repeat_n(frame, times));
    Clip::from_frames(picked.collect(), SAMPLED_FPS)
}

/// A file that is removed when it is dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(bytes: &[u8]) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lance-mm-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let io = |source| Error::Io { path: path.clone(), source };
        // Never a file that exists: somebody else may have put a link there.
        let mut file = File::create_new(&path).map_err(io)?;
        let temporary = Self(path.clone());
        file.write_all(bytes).map_err(io)?;
        Ok(temporary)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An ffmpeg command that prints errors only and never prompts.
fn ffmpeg<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error"]).args(args);
    command
}

/// Options that keep ffmpeg from other files and the network: names of its readers of containers, which refer to no
/// other file, and of the ways to a local file. They stand before the input.
const ONLY_VIDEOS: [&str; 4] = [
    "-protocol_whitelist",
    "file",
    "-format_whitelist",
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,apng,gif",
];

/// Argument of a path that cannot be mistaken for an option or a protocol.
fn file(path: &Path) -> OsString {
    let mut argument = OsString::from("file:");
    argument.push(path);
    argument
}

/// Frames and average rate of a file.
fn probe(path: &Path) -> Result<(usize, f64)> {
    let mut command = Command::new("ffprobe");
    command.args(ONLY_VIDEOS).args([
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-count_packets",
        "-of",
        "default=noprint_wrappers=1",
    ]);
    command.args(["-show_entries", "stream=avg_frame_rate,nb_read_packets"]).arg(file(path));
    let output = command.stdin(Stdio::null()).output().map_err(|error| not_run("ffprobe", &error))?;
    if !output.status.success() {
        return Err(failed("ffprobe", &output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    count_and_rate(&text).ok_or_else(|| VideoProblem::NoStream.into())
}

/// Packets and average rate, from lines `key=value`.
fn count_and_rate(text: &str) -> Option<(usize, f64)> {
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(found, _)| *found == key).map(|(_, value)| value.trim())
    };
    let count = value("nb_read_packets")?.parse().ok()?;
    let rate = value("avg_frame_rate").and_then(|rate| {
        let (frames, seconds) = rate.split_once('/')?;
        Some(frames.parse::<f64>().ok()? / seconds.parse::<f64>().ok()?)
    });
    // ffprobe prints an unknown rate as 0/0.
    Some((count, rate.filter(|r| r.is_finite()).unwrap_or(super::UNKNOWN_FPS)))
}

/// The frames of these numbers, which are rising.
fn sampled(path: &Path, wanted: &[usize], options: &LoadOptions) -> Result<Vec<RgbImage>> {
    let select: Vec<String> = wanted.iter().map(|i| format!("eq(n\\,{i})")).collect();
    // Consecutive timestamps for the selected frames, or ffmpeg would fill the gaps with copies.
    let filter = format!("select={},setpts=N/(FRAME_RATE*TB)", select.join("+"));
    let mut command = ffmpeg(ONLY_VIDEOS);
    command.arg("-i").arg(file(path)).args([
        "-map",
        "0:v:0",
        "-vf",
        &filter,
        "-frames:v",
        &wanted.len().to_string(),
    ]);
    command.args(["-f", "image2pipe", "-c:v", "ppm", "-"]);
    let mut running = Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut frames = Vec::with_capacity(wanted.len());
    let mut result = Ok(());
    if let Some(out) = running.child.stdout.take() {
        let mut out = BufReader::new(out);
        let mut pixels = 0;
        loop {
            match ppm(&mut out, &mut pixels, options.max_clip_pixels) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
    }
    if result.is_err() {
        // The error that ended reading is more precise than ffmpeg's about its closed output.
        let _ = running.child.kill();
        let _ = running.child.wait();
    } else {
        running.finish()?;
    }
    result.map(|()| frames)
}

/// The next image of a stream of binary PPM files; `None` at its end.
fn ppm(input: &mut impl Read, pixels: &mut u64, max_pixels: u64) -> Result<Option<RgbImage>> {
    let mut header = Vec::new();
    // "P6", width, height, 255, each followed by one white space.
    while header.iter().filter(|b: &&u8| b.is_ascii_whitespace()).count() < 4 {
        let mut byte = [0];
        match input.read(&mut byte) {
            Ok(0) if header.is_empty() => return Ok(None),
            Ok(1) if header.len() < 64 => header.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return Err(unexpected("expected frames, found something else")),
        }
    }
    let text = String::from_utf8_lossy(&header);
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let size = match fields[..] {
        ["P6", width, height, "255"] => width.parse().ok().zip(height.parse().ok()),
        _ => None,
    };
    let (width, height) = size.ok_or_else(|| unexpected(format!("expected frames, found {text:?}")))?;
    let size = Size { width, height };
    *pixels = pixels.saturating_add(size.area());
    if *pixels > max_pixels {
        let message = format!("expected at most {max_pixels} pixels in the sampled frames, found more");
        return Err(Error::TooLarge { name: "video".to_owned(), limit: max_pixels, message });
    }
    let mut bytes = vec![0; size.width as usize * size.height as usize * 3];
    input.read_exact(&mut bytes).map_err(unexpected)?;
    from_raw(size, bytes).map(Some)
}

/// A running ffmpeg. Its standard error is read as it comes: for a damaged video that is more than a pipe holds, and
/// ffmpeg would wait for a reader that waits for its frames.
struct Running {
    child: Child,
    last_line: JoinHandle<Vec<u8>>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(|error| not_run("ffmpeg", &error))?;
        let stderr = child.stderr.take();
        let last_line = std::thread::spawn(move || {
            let lines = stderr.map(BufReader::new).into_iter().flat_map(|text| text.split(b'\n'));
            let lines = lines.map_while(std::io::Result::ok);
            lines.filter(|line| !line.trim_ascii().is_empty()).last().unwrap_or_default()
        });
        Ok(Self { child, last_line })
    }

    /// Waits for the end; an error holds the last line of standard error.
    fn finish(mut self) -> Result<()> {
        let status = self.child.wait().map_err(|error| not_run("ffmpeg", &error))?;
        if status.success() {
            return Ok(());
        }
        Err(failed("ffmpeg", &self.last_line.join().unwrap_or_default()))
    }
}

/// Error of a program that failed, with the last line it printed.
fn failed(program: &'static str, stderr: &[u8]) -> Error {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    let message = line.unwrap_or("ended with an error").to_owned();
    VideoProblem::Program { program, message }.into()
}

/// Error of ffmpeg output that is not a frame.
fn unexpected(message: impl ToString) -> Error {
    VideoProblem::Program { program: "ffmpeg", message: message.to_string() }.into()
}

fn not_run(program: &'static str, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::NoFfmpeg { program },
        _ => VideoProblem::Program { program, message: error.to_string() }.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_images_is_cut_into_frames() {
        let mut bytes = b"P6\n2 1\n255\n".to_vec();
        bytes.extend([1, 2, 3, 4, 5, 6]);
        bytes.extend(b"P6\n2 1\n255\n\x0a\x20\x0a\x0a\x0a\x0a");
        let (mut input, mut pixels) = (bytes.as_slice(), 0);
        let mut next = || ppm(&mut input, &mut pixels, 4);
        assert_eq!(next().unwrap().unwrap().as_raw(), &[1, 2, 3, 4, 5, 6]);
        assert_eq!(next().unwrap().unwrap().as_raw(), &[10, 32, 10, 10, 10, 10]);
        assert!(next().unwrap().is_none());
        for (bytes, what) in [
            (&b"P6\n3 2\n255\n"[..], "at most 4 pixels"),
            (b"P5\n1 1\n255\n0", "found \"P5"),
            (b"P6\n1 1\n255\n0", "fill whole buffer"),
            (b"P6\n1", "found something else"),
        ] {
            let error = ppm(&mut &*bytes, &mut 0, 4).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn ffprobe_tells_count_and_rate() {
        let cases = [
            ("avg_frame_rate=30000/1001\nnb_read_packets=20\n", Some((20, 30000.0 / 1001.0))),
            ("avg_frame_rate=0/0\r\nnb_read_packets=7\r\n", Some((7, 24.0))),
            ("nb_read_packets=7\n", Some((7, 24.0))),
            ("avg_frame_rate=25/1\nnb_read_packets=N/A\n", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(count_and_rate(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_temporary_file_is_removed() {
        let (a, b) = (TemporaryFile::new(b"one").unwrap(), TemporaryFile::new(b"two").unwrap());
        assert_eq!(std::fs::read(&a.0).unwrap(), b"one");
        assert_eq!(std::fs::read(&b.0).unwrap(), b"two");
        let path = a.0.clone();
        drop(a);
        assert!(!path.exists() && b.0.exists());
    }

    #[test]
    #[ignore = "needs ffmpeg"]
    fn a_video_comes_back_from_a_file_and_from_memory() {
        let ffmpeg = Ffmpeg::find().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mp4");
        let frames: Vec<_> = (0..12).map(|i| RgbImage::from_pixel(32, 16, [i * 20; 3].into())).collect();
        ffmpeg.write(&frames, 12, &path).unwrap();
        let options = LoadOptions::default();
        let clip = ffmpeg.read(&path, None, &options).unwrap();
        assert_eq!((clip.frames.len(), clip.fps), (9, SAMPLED_FPS));
        assert!(clip.frames[8].get_pixel(3, 3).0[0].abs_diff(220) < 4);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(ffmpeg.read_bytes(&bytes, "x", None, &options).unwrap(), clip);
        let error = ffmpeg.read_bytes(b"no video", "x", None, &options).unwrap_err().to_string();
        assert_eq!(error, "x: expected a video, found an unknown format");
        let error = ffmpeg.read_bytes(&bytes[..200], "x", None, &options).unwrap_err().to_string();
        assert!(error.starts_with("x: ffprobe: "), "{error}");
        let few = LoadOptions { max_clip_pixels: 600, ..options };
        let error = ffmpeg.read_bytes(&bytes, "x", None, &few).unwrap_err();
        assert!(matches!(error, Error::TooLarge { ref name, limit: 600, .. } if name == "x"), "{error}");
        let error = ffmpeg.read_bytes(&bytes, "x", Some(600.0), &options).unwrap_err();
        assert!(matches!(error, Error::Video { problem: VideoProblem::TooShort { .. }, .. }), "{error}");
    }

    #[test]
    #[ignore = "needs ffmpeg"]
    fn every_container_that_is_recognised_is_read() {
        let ffmpeg = Ffmpeg::find().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let frames: Vec<_> = (0..24).map(|i| RgbImage::from_pixel(64, 48, [i * 10; 3].into())).collect();
        for end in ["mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "ogv", "wmv", "m4v", "3gp"] {
            let path = dir.path().join("a").with_extension(end);
            let (frames, fps) =
                if end == "3gp" { (vec![RgbImage::new(176, 144); 24], 12) } else { (frames.clone(), 24) };
            ffmpeg.write(&frames, fps, &path).unwrap();
            let clip = ffmpeg.read(&path, None, &LoadOptions::default()).unwrap();
            assert!(clip.frames.len() >= 9, "{end}: {}", clip.frames.len());
        }
    }

    #[test]
    #[ignore = "needs ffmpeg"]
    fn ffmpeg_follows_no_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let frames: Vec<_> = (0..24).map(|i| RgbImage::from_pixel(64, 48, [i * 10; 3].into())).collect();
        Ffmpeg::find().unwrap().write(&frames, 24, &path("other.mp4")).unwrap();
        for (name, text) in [
            ("list.mp4", "ffconcat version 1.0\nfile other.mp4\n".to_owned()),
            ("list.mkv", "#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n".to_owned()),
            ("list.avi", format!("v=0\nc=IN IP4 0.0.0.0\nm=video 0 RTP/AVP 96\n{}", "a=\n".repeat(9))),
        ] {
            std::fs::write(path(name), text).unwrap();
            // Even without the look at the first bytes.
            let error = read(&path(name), None, &LoadOptions::default()).unwrap_err();
            assert!(matches!(error, Error::Video { problem: VideoProblem::Program { .. }, .. }), "{error}");
        }
    }

    #[test]
    fn lists_and_scripts_are_no_videos() {
        let options = LoadOptions::default();
        for text in
            ["ffconcat version 1.0\nfile /etc/passwd\n", "#EXTM3U\nhttp://x/\n", "v=0\n", "<MPD/>", ""]
        {
            let error = Ffmpeg(()).read_bytes(text.as_bytes(), "a.mp4", None, &options).unwrap_err();
            assert!(error.to_string().starts_with("a.mp4: expected a video, found "), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.mp4");
        std::fs::write(&path, "ffconcat version 1.0\nfile other.gif\n").unwrap();
        let error = Ffmpeg(()).read(&path, None, &options).unwrap_err().to_string();
        assert_eq!(error, format!("{}: expected a video, found an unknown format", path.display()));
    }

    #[test]
    fn paths_are_no_options() {
        assert_eq!(file(Path::new("-i")), "file:-i");
    }
}
