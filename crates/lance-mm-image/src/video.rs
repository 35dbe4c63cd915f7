//! Video: reading frames, selecting those that the model sees, and writing frames.
//!
//! Start from [`Clip`]: frames in memory, an animated GIF or a folder of images; [`Ffmpeg`] reads video files by the
//! program of that name. The model sees 12 frames per second of a clip, at most 69, spread over all of it:
//! [`Clip::sampled`] selects them, [`prepare_video`](crate::prepare_video) makes patches of them. [`Animation`] and
//! [`Ffmpeg`] write frames.

mod animation;
mod ffmpeg;
mod folder;

use std::path::Path;

use crate::error::{Error, Result, VideoProblem};
use crate::limits::LoadOptions;
use crate::load::{gif_frames, load};
use crate::resize::frame_size;
use crate::{RgbImage, Size, gif};
pub use animation::Animation;
pub use ffmpeg::Ffmpeg;
pub use folder::sampled_files;

/// Frames per second that Lance was trained on.
pub const SAMPLED_FPS: f64 = 12.0;

/// Frames per second to assume for a video of unknown rate.
pub const UNKNOWN_FPS: f64 = 24.0;

/// Most seconds that count for the number of sampled frames, which are taken from the whole video all the same.
const MAX_SECONDS: f64 = 6.0;

/// Indices of the frames that the model sees of a video of `n_frames`, in order: 1, 5, 9 .. 69 of them.
///
/// `fps` is rounded to an integer first, as upstream does. An index may occur twice when the video has fewer than 12
/// frames per second.
///
/// # Errors
///
/// [`Error::Option`] for a rate that does not round to at least 1, [`VideoProblem::TooShort`] for a video shorter
/// than half of a sampled frame.
pub fn sample_indices(n_frames: usize, fps: f64) -> Result<Vec<usize>> {
    let rate = fps.round_ties_even();
    if !(rate.is_finite() && rate >= 1.0) {
        return Err(Error::option("fps", "a rate that rounds to at least 1", fps));
    }
    let seconds = (n_frames as f64 / rate).min(MAX_SECONDS);
    let wanted = (seconds * SAMPLED_FPS).round_ties_even() as usize;
    // One frame begins the first group of the VAE, every further group has four.
    let n = if wanted.is_multiple_of(4) { wanted.saturating_sub(3) } else { wanted / 4 * 4 + 1 };
    if n == 0 {
        let least = (rate / (2.0 * SAMPLED_FPS)).floor() + 1.0;
        return Err(VideoProblem::TooShort { least, fps: rate, found: n_frames }.into());
    }
    Ok(spread(n, n_frames - 1))
}

/// `n` integers from 0 to `last`, evenly spaced and rounded down.
fn spread(n: usize, last: usize) -> Vec<usize> {
    if n == 1 {
        return vec![0];
    }
    // As numpy's linspace computes them; it sets the last exactly, where the product may fall short.
    let step = last as f64 / (n - 1) as f64;
    (0..n - 1).map(|i| (i as f64 * step) as usize).chain([last]).collect()
}

/// Frames of one size and their rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// The frames in order.
    pub frames: Vec<RgbImage>,
    /// Frames per second.
    pub fps: f64,
}

impl Clip {
    /// Makes a clip of frames in memory; [`UNKNOWN_FPS`] suits an unknown rate.
    ///
    /// # Errors
    ///
    /// No frames, or frames of different sizes.
    pub fn from_frames(frames: Vec<RgbImage>, fps: f64) -> Result<Self> {
        frame_size(&frames)?;
        Ok(Clip { frames, fps })
    }

    /// Decodes the frames of an animated GIF that the model sees, as a viewer shows them, on white. `fps` replaces the
    /// rate of its average delay. The result holds those frames, at [`SAMPLED_FPS`].
    ///
    /// Frames are counted before any is decoded, so a long animation needs no more memory than a short one. Delays of
    /// 10 ms and less count as 100 ms, as in browsers. `name` is the file's name in errors.
    ///
    /// # Errors
    ///
    /// Anything but a complete GIF; more pixels than [`LoadOptions::max_clip_pixels`] in the sampled frames, or more
    /// than are plausible in so few bytes; as [`sample_indices`].
    pub fn from_gif(bytes: &[u8], name: &str, fps: Option<f64>, options: &LoadOptions) -> Result<Self> {
        let frames = gif_frames(bytes, name, options, |count, rate| {
            sample_indices(count, fps.unwrap_or(rate)).map_err(|error| error.named(name))
        })?;
        Clip::from_frames(frames, SAMPLED_FPS)
    }

    /// Reads the images of a folder as frames, in the order of the numbers in their names (`2.png` before `10.png`),
    /// shown at `fps` frames per second.
    ///
    /// Only the frames that the model sees are read, so a long clip needs no more memory than a short one. The
    /// result holds those, at [`SAMPLED_FPS`], and [`sampled`](Clip::sampled) returns them all. Hidden files and
    /// folders are ignored.
    ///
    /// # Errors
    ///
    /// A folder or a file that cannot be read, a file that is not an image, images of different sizes, more than
    /// [`LoadOptions::max_clip_pixels`] pixels in all; as [`sample_indices`].
    pub fn from_dir(dir: &Path, fps: f64, options: &LoadOptions) -> Result<Self> {
        let files = sampled_files(dir, fps)?;
        let mut frames = Vec::with_capacity(files.len());
        for file in &files {
            let frame = load(file, options)?;
            check_total(dir, files.len(), &frame, options)?;
            frames.push(frame);
        }
        Clip::from_frames(frames, SAMPLED_FPS)
    }

    /// The frames that the model sees; at least one.
    ///
    /// # Errors
    ///
    /// As [`sample_indices`].
    pub fn sampled(&self) -> Result<Vec<&RgbImage>> {
        let indices = sample_indices(self.frames.len(), self.fps)?;
        Ok(indices.into_iter().map(|i| &self.frames[i]).collect())
    }
}

/// Tells whether the bytes are a GIF of more than one frame. No pixels are decoded.
pub fn is_animated_gif(bytes: &[u8]) -> bool {
    gif::is_animated(bytes)
}

/// Refuses `n` frames like this one if they have too many pixels in all.
fn check_total(dir: &Path, n: usize, frame: &RgbImage, options: &LoadOptions) -> Result<()> {
    let (size, limit) = (Size::of(frame), options.max_clip_pixels);
    let total = size.area().saturating_mul(n as u64);
    if total <= limit {
        return Ok(());
    }
    let message = format!("expected at most {limit} pixels, found {total} ({n} sampled frames of {size})");
    Err(Error::TooLarge { name: dir.display().to_string(), limit, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_upstreams() {
        let cases: [(usize, f64, &[usize]); 5] = [
            (20, 24.0, &[0, 2, 4, 7, 9, 11, 14, 16, 19]),
            (25, 25.0, &[0, 3, 6, 9, 12, 15, 18, 21, 24]),
            (10, 12.0, &[0, 1, 2, 3, 4, 5, 6, 7, 9]),
            (60, 29.97, &[0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 44, 47, 50, 53, 56, 59]),
            (2, 24.0, &[0]),
        ];
        for (n_frames, fps, expected) in cases {
            assert_eq!(sample_indices(n_frames, fps).unwrap(), expected, "{n_frames} at {fps}");
        }
    }

    #[test]
    fn indices_count_one_and_fours_up_to_69_and_span_the_video() {
        for n_frames in 2..400 {
            for fps in [0.6, 1.0, 12.0, 23.976, 24.0] {
                let indices = sample_indices(n_frames, fps).unwrap();
                assert!(indices.len() % 4 == 1 && indices.len() <= 69, "{n_frames} at {fps}");
                assert!(indices.is_sorted() && indices[0] == 0, "{n_frames} at {fps}");
                assert!(indices.len() == 1 || indices.last() == Some(&(n_frames - 1)), "{n_frames} at {fps}");
            }
        }
        assert_eq!(sample_indices(usize::MAX, 24.0).unwrap().len(), 69);
    }

    #[test]
    fn sampled_frames_at_their_own_rate_are_all_sampled() {
        for n in (1..=69).step_by(4) {
            assert_eq!(sample_indices(n, SAMPLED_FPS).unwrap(), (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn short_videos_and_bad_rates_are_refused() {
        for (n_frames, fps, least) in [(0, 24.0, 2), (1, 25.0, 2), (2, 60.0, 3), (10, 1e9, 41_666_667)] {
            let error = sample_indices(n_frames, fps).unwrap_err().to_string();
            let expected =
                format!("expected at least {least} frames at {fps} frames per second, found {n_frames}");
            assert_eq!(error, format!("video: {expected}"));
            assert_eq!(sample_indices(least, fps).unwrap(), [0]);
        }
        for fps in [0.0, 0.5, -24.0, f64::NAN, f64::INFINITY] {
            let error = sample_indices(100, fps).unwrap_err();
            assert!(matches!(error, Error::Option { name: "fps", .. }), "{error}");
        }
    }

    #[test]
    fn clip_samples_its_frames() {
        let frames: Vec<_> = (0..20).map(|i| RgbImage::from_pixel(2, 2, ::image::Rgb([i; 3]))).collect();
        let clip = Clip::from_frames(frames, 24.0).unwrap();
        let levels: Vec<u8> = clip.sampled().unwrap().iter().map(|frame| frame.as_raw()[0]).collect();
        assert_eq!(levels, [0, 2, 4, 7, 9, 11, 14, 16, 19]);

        assert!(Clip::from_frames(vec![], 24.0).is_err());
        assert!(Clip::from_frames(vec![RgbImage::new(2, 2), RgbImage::new(2, 3)], 24.0).is_err());
    }

    #[test]
    fn folder_reads_the_sampled_frames_in_number_order() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        std::fs::create_dir(dir.join("folder.png")).unwrap();
        std::fs::write(dir.join(".hidden"), "no image").unwrap();
        for i in 0..20 {
            let image = RgbImage::from_pixel(3, 2, ::image::Rgb([i; 3]));
            image.save(dir.join(format!("frame{i}.png"))).unwrap();
        }
        let clip = Clip::from_dir(dir, 24.0, &LoadOptions::default()).unwrap();
        let levels: Vec<u8> = clip.sampled().unwrap().iter().map(|frame| frame.as_raw()[0]).collect();
        assert_eq!(levels, [0, 2, 4, 7, 9, 11, 14, 16, 19]);
        assert_eq!(clip.frames.len(), 9);

        let options = LoadOptions { max_clip_pixels: 53, ..LoadOptions::default() };
        let error = Clip::from_dir(dir, 24.0, &options).unwrap_err().to_string();
        assert!(error.ends_with("expected at most 53 pixels, found 54 (9 sampled frames of 3x2)"), "{error}");

        let error = Clip::from_dir(dir, 600.0, &LoadOptions::default()).unwrap_err().to_string();
        let expected = "expected at least 26 frames at 600 frames per second, found 20";
        assert_eq!(error, format!("{}: {expected}", dir.display()));

        std::fs::write(dir.join("frame7.png"), "no image").unwrap();
        let error = Clip::from_dir(dir, 24.0, &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("frame7.png: expected PNG"), "{error}");

        let error = Clip::from_dir(&dir.join("missing"), 24.0, &LoadOptions::default());
        assert!(matches!(error, Err(Error::Io { .. })));
    }
}
