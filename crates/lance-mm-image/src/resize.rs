//! The two ways to bring a picture to a size the ViT accepts.

use std::borrow::Borrow;

use ::image::RgbImage;

use super::resample::{resample, resample_part};
use super::{Crop, FACTOR, bucket, crop, native_size};
use crate::error::{Error, Result, VideoProblem};

/// Base sizes of the ViT by upstream's resolution names.
const RESOLUTIONS: [(&str, u32); 6] = [
    ("image_256res", 224),
    ("image_512res", 448),
    ("image_768res", 672),
    ("video_192p", 224),
    ("video_360p", 476),
    ("video_480p", 616),
];

/// Largest accepted base size. A bucket then has about 21 000 tokens, more than any preset by 30 times.
const MAX_BASE: u32 = 4096;

/// How a picture is brought to sides that are multiples of 28.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Upstream's way, in which the model was trained and evaluated: crop to the nearest of six ratios,
    /// resize to about `base * base` pixels, crop the sides to multiples of 28.
    ///
    /// A 3:1 panorama loses 22 % of its width, a 1:3 strip 41 % of its height.
    Bucket {
        /// Side of the square bucket, in pixels.
        base: u32,
    },
    /// The whole picture near its own size, as lance-mlx does; see [`native_size`].
    Native {
        /// Smaller pictures are enlarged to this area.
        min_pixels: u64,
        /// Larger pictures are reduced to this area.
        max_pixels: u64,
    },
}

impl Resize {
    /// The whole picture with 4 to 1280 tokens.
    pub const fn native() -> Self {
        Resize::Native { min_pixels: 3136, max_pixels: 1_003_520 }
    }

    /// The buckets of one of upstream's resolution names, `image_768res` for example.
    ///
    /// # Errors
    ///
    /// A name that upstream does not have.
    pub fn resolution(name: &str) -> Result<Self> {
        match RESOLUTIONS.iter().find(|(known, _)| *known == name) {
            Some(&(_, base)) => Ok(Resize::Bucket { base }),
            None => Err(Error::option("resolution", RESOLUTIONS.map(|(known, _)| known).join(", "), name)),
        }
    }
}

/// Crops and resizes a picture so that its sides are multiples of 28.
///
/// # Errors
///
/// A picture without pixels, a base size that is too large or whose bucket has a side below 28, or what
/// [`native_size`] refuses.
pub fn resize(image: &RgbImage, resize: Resize) -> Result<RgbImage> {
    let plan = Plan::new(image, resize)?;
    Ok(plan.apply(image))
}

/// [`resize`] for the frames of a video, all of which get the size that fits the first.
///
/// Frames may be owned or borrowed, so those that [`Clip::sampled`](crate::video::Clip::sampled) picked need
/// not be copied.
///
/// # Errors
///
/// No frames, frames of different sizes, or what [`resize`] refuses.
pub fn resize_frames<F: Borrow<RgbImage>>(frames: &[F], resize: Resize) -> Result<Vec<RgbImage>> {
    let first = check_frames(frames)?;
    let plan = Plan::new(first, resize)?;
    Ok(frames.iter().map(|frame| plan.apply(frame.borrow())).collect())
}

/// Crops frames to the ratio of the bucket of `base` that is nearest to the first, and resizes them to that
/// bucket: its sides are multiples of 16, and the whole crop is kept.
///
/// # Errors
/// No frames, frames without pixels or of different sizes.
pub fn resize_to_bucket<F: Borrow<RgbImage>>(frames: &[F], base: u32) -> Result<Vec<RgbImage>> {
    let (width, height) = check_sides(check_frames(frames)?)?;
    let size = bucket(height, width, base);
    let crop = crop(height, width, size);
    Ok(frames.iter().map(|frame| resample(frame.borrow(), crop, size)).collect())
}

/// The first of frames that all have its size.
pub(crate) fn check_frames<F: Borrow<RgbImage>>(frames: &[F]) -> Result<&RgbImage> {
    let Some(first) = frames.first() else {
        return Err(VideoProblem::NoFrames.into());
    };
    let first = first.borrow();
    let size = first.dimensions();
    match frames.iter().position(|frame| frame.borrow().dimensions() != size) {
        None => Ok(first),
        Some(index) => {
            let found = frames[index].borrow().dimensions();
            Err(VideoProblem::FrameSize { index, expected: size, found }.into())
        }
    }
}

/// Width and height of a picture that has pixels.
fn check_sides(image: &RgbImage) -> Result<(u32, u32)> {
    match image.dimensions() {
        (0, _) | (_, 0) => Err(Error::of_size("picture", image.dimensions(), "expected sides above 0")),
        size => Ok(size),
    }
}

/// Everything that follows from the size of a picture.
struct Plan {
    /// What is used of the source.
    crop: Crop,
    /// To which size (height, width) the crop is resized.
    size: (u32, u32),
    /// What is kept of the resized picture.
    keep: Crop,
}

impl Plan {
    fn new(image: &RgbImage, resize: Resize) -> Result<Self> {
        let (width, height) = check_sides(image)?;
        match resize {
            Resize::Bucket { base } => Plan::bucket(height, width, base),
            Resize::Native { min_pixels, max_pixels } => {
                let size = native_size(height, width, min_pixels, max_pixels)?;
                let crop = Crop { top: 0, left: 0, height, width };
                Ok(Plan { crop, size, keep: Crop::centred(size, size) })
            }
        }
    }

    fn bucket(height: u32, width: u32, base: u32) -> Result<Self> {
        let size = bucket(height, width, base);
        if base > MAX_BASE || size.0 < FACTOR || size.1 < FACTOR {
            let expected = format!("at most {MAX_BASE}, and buckets with sides of at least {FACTOR}");
            let found = format!("{base}, whose bucket here is {}x{}", size.1, size.0);
            return Err(Error::option("base size", expected, found));
        }
        let kept = (size.0 / FACTOR * FACTOR, size.1 / FACTOR * FACTOR);
        // Both sizes are even, so the offsets are whole and the rounding of `centred` never matters.
        Ok(Plan { crop: crop(height, width, size), size, keep: Crop::centred(kept, size) })
    }

    fn apply(&self, image: &RgbImage) -> RgbImage {
        resample_part(image, self.crop, self.size, self.keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(height: u32, width: u32, how: Resize) -> (u32, u32) {
        let out = resize(&RgbImage::new(width, height), how).unwrap();
        (out.height(), out.width())
    }

    #[test]
    fn buckets_lose_what_28_does_not_divide() {
        let cases = [
            ("image_768res", (90, 210), (420, 1008)),
            ("image_768res", (90, 160), (504, 896)),
            ("image_768res", (300, 400), (560, 756)),
            ("image_768res", (5, 5), (672, 672)),
            ("image_768res", (400, 300), (756, 560)),
            ("video_480p", (480, 480), (588, 588)),
            ("video_480p", (720, 1280), (448, 812)),
        ];
        for (name, (h, w), expected) in cases {
            assert_eq!(size_of(h, w, Resize::resolution(name).unwrap()), expected, "{name} {h}x{w}");
        }
    }

    #[test]
    fn native_keeps_everything() {
        assert_eq!(size_of(30, 90, Resize::native()), (56, 112));
        // A white border must survive, the bucket would cut it off.
        let mut image = RgbImage::new(300, 100);
        (0..100).for_each(|y| (0..20).for_each(|x| image.put_pixel(x, y, ::image::Rgb([255; 3]))));
        assert!(resize(&image, Resize::native()).unwrap().get_pixel(0, 50).0[0] > 250);
        assert!(resize(&image, Resize::Bucket { base: 112 }).unwrap().get_pixel(0, 28).0[0] < 5);
    }

    #[test]
    fn frames_share_the_plan_of_the_first() {
        let frames: Vec<_> =
            (0..3).map(|i| RgbImage::from_pixel(40, 30, ::image::Rgb([i * 80; 3]))).collect();
        let out = resize_frames(&frames, Resize::Bucket { base: 70 }).unwrap();
        let borrowed: Vec<_> = frames.iter().collect();
        assert_eq!(resize_frames(&borrowed, Resize::Bucket { base: 70 }).unwrap(), out);
        for (frame, out) in frames.iter().zip(&out) {
            assert_eq!(resize(frame, Resize::Bucket { base: 70 }).unwrap(), *out);
        }
    }

    #[test]
    fn the_bucket_keeps_sides_that_are_no_multiples_of_28() {
        let frames = [RgbImage::new(97, 61), RgbImage::new(97, 61)];
        let out = resize_to_bucket(&frames, 64).unwrap();
        assert_eq!((out.len(), out[0].dimensions()), (2, (80, 48)));
        assert!(resize_to_bucket(&[RgbImage::new(0, 1)], 64).is_err());
        assert!(resize_to_bucket::<RgbImage>(&[], 64).is_err());
    }

    #[test]
    fn refuses() {
        let frames = [RgbImage::new(4, 5), RgbImage::new(5, 4)];
        let error = resize_frames(&frames, Resize::native()).unwrap_err().to_string();
        assert_eq!(error, "video: frame 1: expected 4x5 pixels like frame 0, found 5x4");
        assert!(resize_frames::<RgbImage>(&[], Resize::native()).is_err());

        for base in [0, 1, 16, 5000, u32::MAX] {
            let error = resize(&frames[0], Resize::Bucket { base }).unwrap_err();
            assert!(matches!(error, Error::Option { name: "base size", .. }), "{error}");
        }
        for how in [Resize::native(), Resize::Bucket { base: 224 }] {
            assert!(resize(&RgbImage::new(0, 7), how).is_err());
        }
        let error = Resize::resolution("image_1024res").unwrap_err().to_string();
        assert!(error.contains("image_768res") && error.contains("image_1024res"), "{error}");
    }
}
