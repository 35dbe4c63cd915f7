//! Image and video preprocessing of Qwen2.5-VL: from a file to the patches that the vision encoder reads.
//!
//! Resized pixels equal Pillow's to the bit, patches those of Lance's published Python (JPEG decoders may differ by a
//! few levels).
//!
//! Start from [`load`] or [`decode`], which give an [`RgbImage`], then [`prepare_image`]: it resizes as [`Resize`] says
//! and cuts the result into [`Patches`], `pixel_values` and `image_grid_thw` of transformers. The values are plain
//! f32 of shape `(N, 1176)`, so that any framework can take them. For videos, start from [`video::Clip`] and
//! [`prepare_video`]. Neither needs a network, a GPU or a tensor library; both may run on any thread.
//!
//! ```
//! use lance_mm_image::{LoadOptions, PATCH_VALUES, Resize, Rgb, RgbImage, decode, encode_png, prepare_image};
//!
//! let png = encode_png(&RgbImage::from_pixel(400, 300, Rgb([127; 3])), &[])?;
//! let image = decode(&png, "photo.png", &LoadOptions::default())?;
//! let patches = prepare_image(&image, Resize::native())?;
//! assert_eq!((patches.t, patches.h, patches.w), (1, 22, 28));
//! assert_eq!(patches.values.len(), 22 * 28 * PATCH_VALUES);
//! # Ok::<(), lance_mm_image::Error>(())
//! ```
//!
//! The steps are public too: [`resize`] (Pillow's bicubic filter in [`resample`]), [`patches`], and
//! [`resize_to_bucket`] with [`to_vae_pixels`] for a VAE. [`encode_png`] and [`video::Animation`] write images and
//! frames.

mod bmp;
mod bytes;
mod decoded;
mod error;
mod exif;
mod fault;
mod format;
mod geometry;
mod gif;
mod guard;
mod jpeg;
mod limits;
mod load;
mod multi_frame;
mod patches;
mod png;
mod pnm;
mod resample;
mod resize;
mod rgb;
mod size;
mod tiff;
mod tiff_directory;
mod vae_pixels;
pub mod video;
mod webp;
mod write_png;

pub use ::image::{Rgb, RgbImage};

pub use error::{Error, Result, VideoProblem};
pub use format::FileKind;
pub use geometry::{Crop, bucket, buckets, crop};
pub use limits::LoadOptions;
pub use load::{decode, from_raw, load, read, read_file, read_start};
pub use multi_frame::{MultiFrame, multi_frame};
pub use patches::{PATCH_VALUES, Patches, patches, prepare_image, prepare_video};
pub use resample::resample;
pub use resize::{Resize, Resolution, resize, resize_frames, resize_to_bucket};
pub use size::Size;
pub use vae_pixels::{from_vae_pixels, to_vae_pixels};
pub use write_png::{encode_png, encode_png_animation};

/// Sides of a prepared image are multiples of this: a 2 x 2 group of patches of 14 pixels, one token.
pub(crate) const FACTOR: u32 = 28;
