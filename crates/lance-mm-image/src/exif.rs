//! Orientation of an image, from EXIF or XMP data as Pillow reads them.

use crate::tiff_directory::Directory;

/// Orientation of 1 to 8 (TIFF 6.0, tag 274). 1 is upright.
pub(crate) type Orientation = u8;

/// Orientation in EXIF data. Some writers, libvips among them, put `Exif\0\0` before it in every format.
pub(crate) fn orientation(mut data: &[u8]) -> Option<Orientation> {
    const ORIENTATION: u16 = 274;
    while let Some(rest) = data.strip_prefix(b"Exif\0\0") {
        data = rest;
    }
    let value = Directory::read(data).ok()?.uint(ORIENTATION)?;
    valid(value)
}

/// Orientation in XMP data: `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
pub(crate) fn xmp_orientation(data: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut found = data.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    found.find_map(|(at, _)| {
        let rest = &data[at + NAME.len()..];
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        valid(u64::from(rest.first()?.checked_sub(b'0')?))
    })
}

fn valid(value: u64) -> Option<Orientation> {
    u8::try_from(value).ok().filter(|value| (1..=8).contains(value))
}

/// Orientation from what a file has of both; EXIF is asked first.
pub(crate) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Option<Orientation> {
    exif.and_then(orientation).or_else(|| xmp.and_then(xmp_orientation))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// EXIF data with one entry, in either byte order.
    pub(crate) fn exif(orientation: u16, big: bool, prefix: bool) -> Vec<u8> {
        let u16 = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let u32 = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut data = if prefix { b"Exif\0\0".to_vec() } else { Vec::new() };
        data.extend(if big { b"MM" } else { b"II" });
        data.extend(
            [&u16(42)[..], &u32(8), &u16(1), &u16(274), &u16(3), &u32(1), &u16(orientation)].concat(),
        );
        data.extend([0; 6]);
        data
    }

    #[test]
    fn every_byte_order_and_prefix() {
        for (big, prefix) in [(false, false), (false, true), (true, false), (true, true)] {
            for value in 1..=8 {
                assert_eq!(orientation(&exif(value, big, prefix)), Some(value as u8));
            }
            for value in [0, 9, 255, 256 + 6] {
                assert_eq!(orientation(&exif(value, big, prefix)), None);
            }
            let whole = exif(6, big, prefix);
            for n in 0..whole.len() {
                orientation(&whole[..n]);
            }
        }
        assert_eq!(orientation(b"nonsense"), None);
        assert_eq!(orientation(&[&b"Exif\0\0"[..], &exif(8, true, true)].concat()), Some(8));
    }

    #[test]
    fn xmp_is_asked_where_exif_says_nothing() {
        assert_eq!(xmp_orientation(b"<rdf tiff:Orientation=\"6\"/>"), Some(6));
        assert_eq!(xmp_orientation(b"<tiff:Orientation>3</tiff:Orientation>"), Some(3));
        assert_eq!(xmp_orientation(b"tiff:Orientation=6 tiff:Orientation"), None);
        assert_eq!(of(Some(&exif(8, false, false)), Some(b"tiff:Orientation=\"6\"")), Some(8));
        assert_eq!(of(Some(b"II*\0"), Some(b"tiff:Orientation=\"6\"")), Some(6));
        assert_eq!(of(None, None), None);
    }
}
