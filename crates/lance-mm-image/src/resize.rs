//! The two ways to bring an image to a size the vision encoder accepts.

use std::borrow::Borrow;

use ::image::RgbImage;

use crate::FACTOR;
use crate::error::{Error, Result, VideoProblem};
use crate::geometry::{Crop, bucket, crop, native_size};
use crate::resample::{resample, resample_part};
use crate::size::Size;

/// Base sizes of the buckets that an image is resized to, for the VAE and for the vision encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Base size for the VAE, and so of the result of an edit.
    pub vae: u32,
    /// Base size for the vision encoder.
    pub vit: u32,
}

/// Upstream's names.
const RESOLUTIONS: [(&str, Resolution); 6] = [
    ("image_256res", Resolution { vae: 256, vit: 224 }),
    ("image_512res", Resolution { vae: 512, vit: 448 }),
    ("image_768res", Resolution::IMAGE),
    ("video_192p", Resolution { vae: 256, vit: 224 }),
    ("video_360p", Resolution { vae: 480, vit: 476 }),
    ("video_480p", Resolution::VIDEO),
];

impl Resolution {
    /// `image_768res`, the default for images.
    pub const IMAGE: Self = Self { vae: 768, vit: 672 };
    /// `video_480p`, the default for videos.
    pub const VIDEO: Self = Self { vae: 640, vit: 616 };

    /// The resolution of one of upstream's names, `image_768res` for example.
    ///
    /// # Errors
    ///
    /// A name that upstream does not have.
    pub fn named(name: &str) -> Result<Self> {
        match RESOLUTIONS.iter().find(|(known, _)| *known == name) {
            Some((_, resolution)) => Ok(*resolution),
            None => Err(Error::option("resolution", RESOLUTIONS.map(|(known, _)| known).join(", "), name)),
        }
    }
}

/// Largest accepted base size. A bucket then has about 21 000 tokens, more than any preset by 30 times.
const MAX_BASE: u32 = 4096;

/// How an image is brought to sides that are multiples of 28, as the vision encoder needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Upstream's way, in which Lance was trained and evaluated: crop to the nearest of six ratios, resize to
    /// about `base * base` pixels, crop the sides to multiples of 28.
    ///
    /// A 3:1 panorama loses 22 % of its width, a 1:3 strip 41 % of its height.
    Bucket {
        /// Side of the square bucket, in pixels.
        base: u32,
    },
    /// The whole image near its own size, as Qwen2.5-VL and lance-mlx do.
    ///
    /// The area is brought between the bounds, the ratio kept as nearly as 28 allows: `smart_resize` of the
    /// Qwen2-VL image processor in transformers. (A side never gets shorter than 28, so a very long strip may end
    /// above `max_pixels`.)
    Native {
        /// Smaller images are enlarged to this area; at most `max_pixels`.
        min_pixels: u64,
        /// Larger images are reduced to this area: 784 (one token) to 12 845 056 (16 384 tokens).
        max_pixels: u64,
    },
}

impl Resize {
    /// The whole image with 4 to 1280 tokens.
    pub const fn native() -> Self {
        Resize::Native { min_pixels: 3136, max_pixels: 1_003_520 }
    }

    /// The buckets of the vision encoder at a resolution of upstream's.
    ///
    /// # Errors
    ///
    /// As [`Resolution::named`].
    pub fn resolution(name: &str) -> Result<Self> {
        Ok(Resize::Bucket { base: Resolution::named(name)?.vit })
    }

    /// The size of the result of [`resize`] for an image of size `source`, without any pixels.
    ///
    /// The vision encoder makes one token of 28 x 28 pixels.
    ///
    /// # Errors
    ///
    /// A side of zero, a base size that is too large or whose bucket has a side below 28, a ratio above 200 or
    /// bounds out of range for [`Resize::Native`].
    pub fn output_size(self, source: Size) -> Result<Size> {
        Ok(Plan::new(source, self)?.keep.size)
    }
}

/// Crops and resizes an image so that its sides are multiples of 28.
///
/// # Errors
///
/// As [`Resize::output_size`].
pub fn resize(image: &RgbImage, resize: Resize) -> Result<RgbImage> {
    Ok(Plan::new(Size::of(image), resize)?.apply(image))
}

/// Crops and resizes the frames of a video, all to the size that fits the first.
///
/// Frames may be owned or borrowed, so those that [`Clip::sampled`](crate::video::Clip::sampled) selects need
/// not be copied.
///
/// # Errors
///
/// No frames, frames of different sizes, or as [`Resize::output_size`].
pub fn resize_frames<F: Borrow<RgbImage>>(frames: &[F], resize: Resize) -> Result<Vec<RgbImage>> {
    let plan = Plan::new(frame_size(frames)?, resize)?;
    Ok(frames.iter().map(|frame| plan.apply(frame.borrow())).collect())
}

/// Crops frames to the ratio of the bucket of `base` that is nearest to the first, and resizes them to that
/// bucket, as a VAE needs them: sides are multiples of 16, and the whole crop is kept.
///
/// # Errors
///
/// No frames, frames without pixels or of different sizes.
pub fn resize_to_bucket<F: Borrow<RgbImage>>(frames: &[F], base: u32) -> Result<Vec<RgbImage>> {
    let source = frame_size(frames)?;
    let size = bucket(source, base)?;
    let crop = crop(source, size);
    Ok(frames.iter().map(|frame| resample(frame.borrow(), crop, size)).collect())
}

/// The size that all frames share.
pub(crate) fn frame_size<F: Borrow<RgbImage>>(frames: &[F]) -> Result<Size> {
    let mut sizes = frames.iter().map(|frame| Size::of(frame.borrow()));
    let expected = sizes.next().ok_or(VideoProblem::NoFrames)?;
    match (1..).zip(sizes).find(|(_, size)| *size != expected) {
        None => Ok(expected),
        Some((index, found)) => Err(VideoProblem::FrameSize { index, expected, found }.into()),
    }
}

/// Everything that follows from the size of an image.
struct Plan {
    /// Part of the source that is used.
    crop: Crop,
    /// Size that the crop is resized to.
    size: Size,
    /// Part of the resized image that is kept.
    keep: Crop,
}

impl Plan {
    fn new(source: Size, resize: Resize) -> Result<Self> {
        match resize {
            Resize::Bucket { base } => Plan::bucket(source, base),
            Resize::Native { min_pixels, max_pixels } => {
                let size = native_size(source, min_pixels, max_pixels)?;
                Ok(Plan { crop: Crop::whole(source), size, keep: Crop::whole(size) })
            }
        }
    }

    fn bucket(source: Size, base: u32) -> Result<Self> {
        let size = bucket(source, base)?;
        if base > MAX_BASE || size.height < FACTOR || size.width < FACTOR {
            let expected = format!("at most {MAX_BASE}, and buckets with sides of at least {FACTOR}");
            return Err(Error::option("base size", expected, format!("{base}, whose bucket here is {size}")));
        }
        let kept = Size { width: size.width / FACTOR * FACTOR, height: size.height / FACTOR * FACTOR };
        // Both sizes are even, so the offsets are integers and the rounding of `centred` never matters.
        Ok(Plan { crop: crop(source, size), size, keep: Crop::centred(kept, size) })
    }

    fn apply(&self, image: &RgbImage) -> RgbImage {
        resample_part(image, self.crop, self.size, self.keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(height: u32, width: u32, how: Resize) -> (u32, u32) {
        let source = RgbImage::new(width, height);
        let size = Size::of(&resize(&source, how).unwrap());
        assert_eq!(how.output_size(Size::of(&source)).unwrap(), size);
        (size.height, size.width)
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
        assert_eq!(Resolution::named("video_360p").unwrap(), Resolution { vae: 480, vit: 476 });
        let error = Resize::resolution("image_1024res").unwrap_err().to_string();
        assert!(error.contains("image_768res") && error.contains("image_1024res"), "{error}");
    }
}
