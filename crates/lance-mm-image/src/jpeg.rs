//! Detection of truncated JPEG files.
//!
//! The decoder fills missing parts with gray. That suits a viewer, but a model would describe the gray.

/// End of image, the last marker of a file.
const END: u8 = 0xd9;

/// Whether the end marker follows the image's data, as opposed to that of an embedded preview.
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            END => return true,
            // Start of image and markers without content.
            0x01 | 0xd0..=0xd8 => after,
            // Everything else has a length, which counts itself.
            _ => match after.first_chunk() {
                Some(length) => after.get(usize::from(u16::from_be_bytes(*length))..).unwrap_or_default(),
                None => return false,
            },
        };
    }
    false
}

/// The next marker and what follows it, past image data: there 0xff is always followed by 0 or a restart.
fn next_marker(mut bytes: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        let start = bytes.iter().position(|b| *b == 0xff)?;
        bytes = &bytes[start + 1..];
        match bytes.split_first()? {
            (0x00 | 0xff | 0xd0..=0xd7, _) => {}
            (marker, after) => return Some((*marker, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_end_of_the_image_only() {
        let start = [0xff, 0xd8];
        let preview = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 3, 9, 1, 2, 0xff, 0, 0xff, 0xd0, 3, 0xff, 0xff];
        let file = [&start[..], &preview, &scan, &[0xd9]].concat();
        assert!(is_complete(&file));
        for n in 0..file.len() {
            assert!(!is_complete(&file[..n]), "the first {n} bytes");
        }
        // Some cameras append data of their own.
        assert!(is_complete(&[&file[..], &[1, 2, 3]].concat()));
    }
}
