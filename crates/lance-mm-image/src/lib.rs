//! Pictures on their way in: from a file to the rows the ViT reads.
//!
//! [`load`] turns a file into RGB, [`resize`] brings it to a size the model was trained on, [`patches`] cuts
//! it into normalised rows. All of it is integer arithmetic up to the last table look-up, so the rows equal
//! upstream's bit for bit (JPEG decoders may differ by a few levels).
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use lance_mm_image as image;
//! // A picture that is in memory already needs no file.
//! let picture = image::from_raw(image::Size { width: 400, height: 300 }, vec![127; 300 * 400 * 3])?;
//! let picture = image::resize(&picture, image::Resize::resolution("image_768res")?)?;
//! assert_eq!((picture.height(), picture.width()), (560, 756));
//!
//! let rows = image::patches(&[picture])?;
//! assert_eq!((rows.t, rows.h, rows.w), (1, 40, 54));
//! assert_eq!(rows.values.len(), 40 * 54 * image::PATCH_VALUES);
//! # Ok(())
//! # }
//! ```
//!
//! Sizes are written height first, as in the model's tables; only [`RgbImage`] itself has the width first.

mod encoded;
mod error;
mod format;
mod geometry;
mod gif;
mod jpeg;
mod load;
mod multi_frame;
mod patches;
mod resample;
mod resize;
mod rgb;
mod vae_pixels;
pub mod video;
mod write_png;

pub use ::image::{Rgb, RgbImage};

pub use error::{Error, Result, VideoProblem};

pub use format::FileKind;
pub use geometry::{Crop, Size, bucket, buckets, crop};
pub use load::{LoadOptions, decode, from_raw, load, read};
pub use multi_frame::{MultiFrame, multi_frame};
pub use patches::{PATCH_VALUES, Patches, patches, prepare_image, prepare_video};
pub use resample::resample;
pub use resize::{Resize, resize, resize_frames, resize_to_bucket};
pub use vae_pixels::{from_vae_pixels, to_vae_pixels};
pub use write_png::{encode_png, encode_png_animation};

/// Sides of a prepared picture are multiples of this: a 2 x 2 group of patches of 14 pixels, one token.
pub(crate) const FACTOR: u32 = 28;
