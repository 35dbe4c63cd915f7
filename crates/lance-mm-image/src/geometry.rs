//! Sizes and crops: which part of an image is used, and the size it is resized to.
//!
//! Lance was trained on six aspect ratios. An image goes to the bucket nearest to its own ratio and loses what
//! does not fit at the sides. [`native_size`] keeps all of it.

use crate::FACTOR;
use crate::error::{Error, Result, not_empty};
use crate::size::Size;

/// Sides of a bucket are multiples of this. (The vision encoder needs 28, so the result is cropped once more.)
const STRIDE: f64 = 16.0;

/// Width and height of the ratios, in the order that decides ties.
const RATIOS: [(f64, f64); 6] = [(21.0, 9.0), (16.0, 9.0), (4.0, 3.0), (1.0, 1.0), (3.0, 4.0), (9.0, 16.0)];

/// Longest side over shortest side that [`native_size`] accepts.
const MAX_RATIO: f64 = 200.0;

/// Most pixels [`native_size`] may be asked for: 16 384 tokens, the limit of the published processor.
const MAX_NATIVE_PIXELS: u64 = 12_845_056;

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Pixels above the rectangle.
    pub top: u32,
    /// Pixels left of the rectangle.
    pub left: u32,
    /// Size of the rectangle.
    pub size: Size,
}

impl Crop {
    /// All of an image of this size.
    pub fn whole(size: Size) -> Self {
        Crop { top: 0, left: 0, size }
    }

    /// The rectangle of `size` in the middle of an image of `source`.
    ///
    /// An odd rest leaves the smaller half above and to the left. The rectangle must fit.
    pub(crate) fn centred(size: Size, source: Size) -> Self {
        Crop { top: (source.height - size.height) / 2, left: (source.width - size.width) / 2, size }
    }
}

/// The six sizes of a base size, for 21:9, 16:9, 4:3, 1:1, 3:4 and 9:16.
///
/// Sides are multiples of 16 and the area is about `base * base`. The same rule makes the buckets of the vision
/// encoder and of the VAE, which differ in the base only.
pub fn buckets(base: u32) -> [Size; 6] {
    RATIOS.map(|(w, h)| bucket_of_ratio(f64::from(base), w / h))
}

/// The better of two roundings: width first or height first. Nearer ratio wins, then nearer area.
fn bucket_of_ratio(base: f64, ratio: f64) -> Size {
    let round = |x: f64| STRIDE * (x / STRIDE).round_ties_even();
    let area = base * base;

    let wide = round((area * ratio).sqrt());
    let by_width = (round(wide / ratio), wide);
    let high = round((area / ratio).sqrt());
    let by_height = (high, round(high * ratio));

    let errors = |(h, w): (f64, f64)| ((w / h - ratio).abs(), (w * h - area).abs());
    let (h, w) = if errors(by_height) < errors(by_width) { by_height } else { by_width };
    Size { width: w as u32, height: h as u32 }
}

/// The bucket of `base` whose ratio is nearest to that of an image of size `source`, the first on a tie.
///
/// # Errors
///
/// A side of zero.
pub fn bucket(source: Size, base: u32) -> Result<Size> {
    not_empty(source, "image")?;
    let distance = |size: Size| (source.ratio() - size.ratio()).abs();
    let [first, others @ ..] = buckets(base);
    Ok(others.into_iter().fold(first, |best, size| if distance(size) < distance(best) { size } else { best }))
}

/// The part of an image of size `source` that is resized to `bucket`.
///
/// It has the bucket's ratio as nearly as whole pixels allow and is centred. Where the ratios nearly agree,
/// upstream moves it by about a pixel at random; here it stays in the middle.
pub fn crop(source: Size, bucket: Size) -> Crop {
    let (h, w) = (f64::from(source.height), f64::from(source.width));
    let ratio = bucket.ratio();

    // A crop of the image's own area fits only when the ratios agree up to rounding.
    let same_area = ((w * h / ratio).sqrt().round_ties_even(), (w * h * ratio).sqrt().round_ties_even());
    let fits = |(ch, cw): (f64, f64)| 0.0 < cw && cw <= w && 0.0 < ch && ch <= h;
    let (ch, cw) = if fits(same_area) {
        same_area
    } else if w / h < ratio {
        ((w / ratio).round_ties_even(), w)
    } else if w / h > ratio {
        (h, (h * ratio).round_ties_even())
    } else {
        (h, w)
    };
    Crop::centred(Size { width: cw as u32, height: ch as u32 }, source)
}

/// The size of a whole image whose sides are multiples of 28, near its own size.
///
/// The area is brought between `min_pixels` and `max_pixels`, the ratio kept as nearly as 28 allows. (A side
/// never gets shorter than 28, so a very long strip may end above `max_pixels`.) This is `smart_resize` of the
/// Qwen2-VL image processor in transformers.
///
/// # Errors
///
/// A side of zero, a ratio above 200, or bounds other than `min_pixels <= max_pixels` with `max_pixels` from
/// 784 (one token) to 12 845 056 (16 384 tokens).
pub(crate) fn native_size(source: Size, min_pixels: u64, max_pixels: u64) -> Result<Size> {
    check_bounds(min_pixels, max_pixels)?;
    check_ratio(source)?;
    let factor = f64::from(FACTOR);
    let (h, w) = (f64::from(source.height), f64::from(source.width));
    let (min, max) = (min_pixels as f64, max_pixels as f64);

    let nearest = |side: f64| factor * (side / factor).round_ties_even();
    let area = nearest(h) * nearest(w);
    let (h, w) = if area > max {
        let by = (h * w / max).sqrt();
        // Two divisions, as the published processor does: where the exact quotient is an integer, one division
        // by the product may round to the other side.
        let shrunk = |side: f64| factor.max(factor * (side / by / factor).floor());
        (shrunk(h), shrunk(w))
    } else if area < min {
        let by = (min / (h * w)).sqrt();
        let grown = |side: f64| factor * (side * by / factor).ceil();
        (grown(h), grown(w))
    } else {
        (nearest(h), nearest(w))
    };
    Ok(Size { width: w as u32, height: h as u32 })
}

fn check_bounds(min_pixels: u64, max_pixels: u64) -> Result<()> {
    let one_token = u64::from(FACTOR * FACTOR);
    if (one_token..=MAX_NATIVE_PIXELS).contains(&max_pixels) && min_pixels <= max_pixels {
        return Ok(());
    }
    let expected = format!("least <= most, most from {one_token} to {MAX_NATIVE_PIXELS}");
    Err(Error::option("pixels", expected, format!("{min_pixels} to {max_pixels}")))
}

fn check_ratio(source: Size) -> Result<()> {
    let (short, long) = (source.height.min(source.width), source.height.max(source.width));
    if short > 0 && f64::from(long) / f64::from(short) <= MAX_RATIO {
        return Ok(());
    }
    let message = format!("expected sides above 0 and a ratio of at most {MAX_RATIO}");
    Err(Error::of_size("image", source, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Height first, as upstream's tables have it.
    fn hw((height, width): (u32, u32)) -> Size {
        Size { width, height }
    }

    #[test]
    fn buckets_are_upstreams() {
        let cases: [(u32, [(u32, u32); 6]); 3] = [
            (672, [(432, 1008), (512, 912), (576, 768), (672, 672), (768, 576), (912, 512)]),
            (616, [(400, 928), (464, 832), (528, 704), (608, 608), (704, 528), (832, 464)]),
            (112, [(80, 192), (80, 144), (96, 128), (112, 112), (128, 96), (144, 80)]),
        ];
        for (base, expected) in cases {
            assert_eq!(buckets(base), expected.map(hw), "base {base}");
        }
    }

    #[test]
    fn crop_is_centred_and_has_the_ratio_of_the_bucket() {
        struct Case {
            source: (u32, u32),
            base: u32,
            bucket: (u32, u32),
            crop: [u32; 4],
        }
        let case = |source, base, bucket, crop| Case { source, base, bucket, crop };
        let cases = [
            case((1, 1), 56, (64, 64), [0, 0, 1, 1]),
            case((1, 40), 56, (32, 80), [0, 19, 1, 2]),
            case((40, 1), 56, (80, 48), [19, 0, 2, 1]),
            case((90, 3), 84, (112, 64), [42, 0, 5, 3]),
            case((29, 31), 84, (80, 80), [0, 1, 29, 29]),
            case((120, 70), 84, (112, 64), [0, 0, 120, 69]),
            // The branch in which upstream is random: the ratios agree up to a pixel.
            case((54, 96), 84, (64, 112), [0, 0, 54, 95]),
            case((720, 1280), 672, (512, 912), [0, 0, 719, 1280]),
            case((1080, 1920), 672, (512, 912), [1, 0, 1078, 1920]),
            case((1500, 500), 672, (912, 512), [304, 0, 891, 500]),
        ];
        for Case { source, base, bucket: expected, crop: [top, left, height, width] } in cases {
            let source = hw(source);
            let found = bucket(source, base).unwrap();
            assert_eq!(found, hw(expected), "{source}");
            assert_eq!(crop(source, found), Crop { top, left, size: Size { width, height } }, "{source}");
        }
    }

    #[test]
    fn crop_stays_inside_for_extreme_sizes() {
        for source in [(1, u32::MAX), (u32::MAX, 1), (2, 3), (65535, 65535), (1, 1)].map(hw) {
            let Crop { top, left, size } = crop(source, bucket(source, 672).unwrap());
            assert!(size.height >= 1 && size.width >= 1, "{source}: {size}");
            assert!(top + size.height <= source.height && left + size.width <= source.width, "{source}");
        }
    }

    #[test]
    fn native_sizes() {
        let cases = [
            ((1, 1), (56, 56)),
            ((1, 100), (28, 560)),
            ((27, 28), (56, 84)),
            ((42, 42), (56, 56)),
            ((70, 98), (56, 112)), // 2.5 and 3.5 tokens, both to even
            ((1080, 1920), (1092, 1932)),
            ((3585, 3584), (3584, 3584)),
            ((8000, 8000), (3584, 3584)),
            ((2000, 10), (812, 28)),
        ];
        for (source, expected) in cases {
            let found = native_size(hw(source), 3136, MAX_NATIVE_PIXELS).unwrap();
            assert_eq!(found, hw(expected), "{source:?}");
        }
        assert_eq!(native_size(hw((3000, 4000)), 3136, 1_003_520).unwrap(), hw((840, 1148)));
    }

    #[test]
    fn native_size_refuses() {
        for source in [(2001, 10), (0, 5), (5, 0)].map(hw) {
            let error = native_size(source, 3136, 1_003_520).unwrap_err();
            assert!(error.to_string().contains(&source.to_string()), "{error}");
        }
        for (min, max) in [(5000, 4000), (0, 783), (0, MAX_NATIVE_PIXELS + 1)] {
            let error = native_size(hw((100, 100)), min, max).unwrap_err();
            assert!(matches!(error, Error::Option { name: "pixels", .. }), "{error}");
        }
    }
}
