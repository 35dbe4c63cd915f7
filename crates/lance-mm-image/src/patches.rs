//! Normalised patches of pixels, the input of the vision encoder.

use ::image::RgbImage;
use rayon::prelude::*;

use crate::FACTOR;
use crate::error::{Error, Result};
use crate::resize::{Resize, frame_size, resize, resize_frames};
use crate::video::Clip;

/// Side of a patch in pixels.
const PATCH: usize = 14;

/// Patches per side of the group that becomes one token.
const MERGE: usize = 2;

/// Values of one patch: 3 channels, 2 frames, 14 x 14 pixels.
pub const PATCH_VALUES: usize = 3 * 2 * PATCH * PATCH;

/// Means and standard deviations of red, green and blue, CLIP's.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
#[allow(clippy::excessive_precision, reason = "the digits upstream writes, which are easier to find")]
const STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Input of the vision encoder: patches f32 `(t * h * w, 1176)` of an image or a video, and their grid.
///
/// `pixel_values` and `image_grid_thw` of the Qwen2-VL image processor in transformers. 2 x 2 patches become one
/// token.
#[derive(Debug, Clone, PartialEq)]
pub struct Patches {
    /// [`PATCH_VALUES`] normalised values for each patch. Patches are in merge-group order: by time, then groups of
    /// 2 x 2 patches row by row, then the four of a group row by row. Order within a patch: channel, frame of the
    /// pair, y, x.
    pub values: Vec<f32>,
    /// Frame pairs.
    pub t: usize,
    /// Patches from top to bottom, an even number.
    pub h: usize,
    /// Patches from left to right, an even number.
    pub w: usize,
}

/// Resizes an image and cuts it into patches: [`resize`], then [`patches`].
///
/// # Errors
///
/// As [`Resize::output_size`].
pub fn prepare_image(image: &RgbImage, how: Resize) -> Result<Patches> {
    patches(&[resize(image, how)?])
}

/// Samples, resizes and cuts a video into patches: [`Clip::sampled`], [`resize_frames`], then [`patches`].
///
/// # Errors
///
/// As [`Clip::sampled`] and [`resize_frames`].
pub fn prepare_video(clip: &Clip, how: Resize) -> Result<Patches> {
    patches(&resize_frames(&clip.sampled()?, how)?)
}

/// Cuts frames into patches of 14 x 14 pixels in two frames each.
///
/// A single frame is an image and is doubled; the last of an odd number of frames is repeated.
///
/// # Errors
///
/// No frames, frames of different sizes, or sides that are not multiples of 28.
pub fn patches(frames: &[RgbImage]) -> Result<Patches> {
    let size = frame_size(frames)?;
    if size.area() == 0 || !size.width.is_multiple_of(FACTOR) || !size.height.is_multiple_of(FACTOR) {
        let message = format!("expected sides that are multiples of {FACTOR}");
        return Err(Error::of_size("frame", size, message));
    }
    let (t, h, w) = (frames.len().div_ceil(2), size.height as usize / PATCH, size.width as usize / PATCH);
    let table = normalised();
    let mut values = vec![0.0; t * h * w * PATCH_VALUES];
    values.par_chunks_exact_mut(PATCH_VALUES).enumerate().for_each(|(i, patch)| {
        let (pair, y, x) = place(i, h, w);
        let pair = [&frames[2 * pair], &frames[(2 * pair + 1).min(frames.len() - 1)]];
        fill(patch, pair, y * PATCH, x * PATCH, &table);
    });
    Ok(Patches { values, t, h, w })
}

/// Normalised value of each level and channel: (level / 255 - mean) / std, in f32 and in this order.
fn normalised() -> [[f32; 256]; 3] {
    std::array::from_fn(|c| std::array::from_fn(|level| (level as f32 / 255.0 - MEAN[c]) / STD[c]))
}

/// Frame pair, row and column of the `i`-th patch in merge-group order.
fn place(i: usize, h: usize, w: usize) -> (usize, usize, usize) {
    let (group, inner) = (i / (MERGE * MERGE), i % (MERGE * MERGE));
    let (groups_h, groups_w) = (h / MERGE, w / MERGE);
    let y = group / groups_w % groups_h * MERGE + inner / MERGE;
    let x = group % groups_w * MERGE + inner % MERGE;
    (group / (groups_h * groups_w), y, x)
}

/// Fills the patch whose first pixel is (`top`, `left`).
fn fill(patch: &mut [f32], pair: [&RgbImage; 2], top: usize, left: usize, table: &[[f32; 256]; 3]) {
    for (i, line) in patch.chunks_exact_mut(PATCH).enumerate() {
        let (channel, frame, y) = (i / (2 * PATCH), i / PATCH % 2, i % PATCH);
        let width = pair[frame].width() as usize;
        let pixels = &pair[frame].as_raw()[((top + y) * width + left) * 3..][..PATCH * 3];
        for (value, pixel) in line.iter_mut().zip(pixels.chunks_exact(3)) {
            *value = table[channel][usize::from(pixel[channel])];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pixel tells where it is.
    fn frame(number: u8, height: u32, width: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| ::image::Rgb([x as u8, y as u8, number]))
    }

    /// Undoes the normalisation.
    fn level(value: f32, channel: usize) -> u8 {
        ((value * STD[channel] + MEAN[channel]) * 255.0).round() as u8
    }

    #[test]
    fn patches_are_in_merge_group_order() {
        let rows = patches(&[frame(3, 56, 84), frame(4, 56, 84)]).unwrap();
        assert_eq!((rows.t, rows.h, rows.w), (1, 4, 6));
        // (y, x) of the first pixel of each row, in patches.
        let found: Vec<_> = rows
            .values
            .chunks(PATCH_VALUES)
            .map(|row| (level(row[2 * 14 * 14], 1) / 14, level(row[0], 0) / 14))
            .collect();
        assert_eq!(found[..8], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]);
        assert_eq!(found[12..16], [(2, 0), (2, 1), (3, 0), (3, 1)]);
        assert_eq!(found[23], (3, 5));
    }

    #[test]
    fn values_are_channel_frame_y_x() {
        let rows = patches(&[frame(3, 28, 28), frame(200, 28, 28)]).unwrap();
        let row = &rows.values[3 * PATCH_VALUES..];
        for (i, value) in row.iter().enumerate() {
            let (channel, frame, y, x) = (i / 392, i / 196 % 2, i / 14 % 14, i % 14);
            let expected = [14 + x as u8, 14 + y as u8, [3, 200][frame]][channel];
            assert_eq!(level(*value, channel), expected, "value {i}");
        }
    }

    #[test]
    fn an_image_is_doubled_and_an_odd_last_frame_repeated() {
        let rows = |n: u8| patches(&(0..n).map(|i| frame(i, 28, 56)).collect::<Vec<_>>()).unwrap();
        let last_pair = |rows: &Patches| {
            let row = &rows.values[rows.values.len() - PATCH_VALUES..];
            [level(row[4 * 196], 2), level(row[5 * 196], 2)]
        };
        assert_eq!((rows(1).t, last_pair(&rows(1))), (1, [0, 0]));
        assert_eq!((rows(4).t, last_pair(&rows(4))), (2, [2, 3]));
        assert_eq!((rows(5).t, last_pair(&rows(5))), (3, [4, 4]));
    }

    #[test]
    fn normalisation() {
        let table = normalised();
        // Upstream's extremes, from its tensors.
        let expected =
            [(0, -1.792_262_6, 1.930_336_2), (1, -1.752_097, 2.074_884), (2, -1.480_219_7, 2.145_897)];
        for (channel, black, white) in expected {
            assert!((table[channel][0] - black).abs() < 1e-6, "{}", table[channel][0]);
            assert!((table[channel][255] - white).abs() < 1e-6, "{}", table[channel][255]);
        }
    }

    #[test]
    fn refuses() {
        assert!(patches(&[]).is_err());
        assert!(patches(&[frame(0, 28, 28), frame(0, 28, 56)]).is_err());
        for (h, w) in [(28, 30), (14, 28), (0, 28)] {
            let error = patches(&[frame(0, h, w)]).unwrap_err().to_string();
            assert_eq!(error, format!("frame of {w}x{h} pixels: expected sides that are multiples of 28"));
        }
    }
}
