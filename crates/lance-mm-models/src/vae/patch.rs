//! Pictures as frames of patches: two by two pixels are one, their values its channels.

use candle_core::Tensor;
use lance_mm_tensor::{Error, Result};

/// Pixels a patch is high and wide.
pub(super) const PATCH: usize = 2;

/// `(3, H, W)` to `(H/2, W/2, 12)`. Inside a channel columns come before rows.
///
/// # Errors
/// Odd sides.
pub fn patchify(x: &Tensor) -> Result<Tensor> {
    let (c, h, w) = x.dims3()?;
    if !h.is_multiple_of(PATCH) || !w.is_multiple_of(PATCH) {
        let expected = format!("sides of a multiple of {PATCH}");
        return Err(Error::input("picture", expected, format!("{:?}", x.dims())));
    }
    let (h, w) = (h / PATCH, w / PATCH);
    // (C, H, row, W, column) -> (H, W, C, column, row)
    let x = x.reshape((c, h, PATCH, w, PATCH))?.permute((1, 3, 0, 4, 2))?;
    Ok(x.reshape((h, w, c * PATCH * PATCH))?)
}

/// The inverse of [`patchify`].
///
/// # Errors
/// Channels that are no multiple of four.
pub fn unpatchify(x: &Tensor) -> Result<Tensor> {
    let (h, w, c) = x.dims3()?;
    if !c.is_multiple_of(PATCH * PATCH) {
        let expected = format!("channels of a multiple of {}", PATCH * PATCH);
        return Err(Error::input("patches", expected, format!("{:?}", x.dims())));
    }
    let c = c / (PATCH * PATCH);
    // (H, W, C, column, row) -> (C, H, row, W, column)
    let x = x.reshape((h, w, c, PATCH, PATCH))?.permute((2, 0, 4, 1, 3))?;
    Ok(x.reshape((c, h * PATCH, w * PATCH))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn columns_come_before_rows_and_the_way_back_is_exact() {
        let x = Tensor::arange(0f32, 24.0, &Device::Cpu).unwrap().reshape((1, 4, 6)).unwrap();
        let patches = patchify(&x).unwrap();
        let first = patches.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
        assert_eq!(first.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0.0, 6.0, 1.0, 7.0]);
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&unpatchify(&patches).unwrap()), flat(&x));
        assert!(patchify(&x.narrow(1, 0, 3).unwrap()).is_err() && unpatchify(&x).is_err());
    }
}
