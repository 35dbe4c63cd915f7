use std::io::Write;

use safetensors::Dtype;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use lance_mm_tensor::StopFlag;

use super::*;
use crate::progress::{Progress, Written};

/// `{"w": storage 0, 6 floats, from `offset` on, shape and strides as given}`.
fn pickle(offset: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let head = b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n\
        ((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ";
    let [(a, b), (c, d)] = [shape, strides].map(|[x, y]| (x, y));
    let numbers = [b'K', offset, b'K', a, b'K', b, 0x86, b'K', c, b'K', d, 0x86];
    [head.as_slice(), &numbers, b"\x89ccollections\nOrderedDict\n)RtRu."].concat()
}

/// Name and bytes.
type Entry<'a> = (&'a str, &'a [u8]);

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(format!("x/{name}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

fn read_bytes(bytes: &[u8]) -> crate::error::Result<Vec<FileTensor>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pth");
    std::fs::write(&path, bytes).unwrap();
    open(&path)
}

fn values(tensor: &FileTensor) -> Vec<f32> {
    let bytes: Vec<u8> = tensor.chunks().flat_map(|chunk| chunk.unwrap()).collect();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn strides_and_offsets_are_followed() {
    let cases = [
        (0, [2, 3], [3, 1], vec![0., 1., 2., 3., 4., 5.]),
        (0, [3, 2], [1, 3], vec![0., 3., 1., 4., 2., 5.]),
        (2, [2, 2], [2, 1], vec![2., 3., 4., 5.]),
        (0, [1, 3], [77, 2], vec![0., 2., 4.]),
        (200, [0, 3], [3, 1], vec![]),
    ];
    for (offset, shape, strides, expected) in cases {
        let bytes = archive(&[("data.pkl", &pickle(offset, shape, strides)), ("data/0", &floats(6))]);
        let tensors = read_bytes(&bytes).unwrap();
        assert_eq!((tensors[0].name.as_str(), values(&tensors[0])), ("w", expected), "{shape:?} {strides:?}");
    }
}

#[test]
fn tensors_that_leave_their_storage_are_refused() {
    for (offset, shape, strides) in [(1, [2, 3], [3, 1]), (0, [2, 3], [4, 1]), (0, [2, 4], [0, 1])] {
        let bytes = archive(&[("data.pkl", &pickle(offset, shape, strides)), ("data/0", &floats(6))]);
        let error = format!("{}", read_bytes(&bytes).err().unwrap());
        assert!(error.contains("x.pth: w: shape") && error.contains("leaves its storage of 6"), "{error}");
    }
}

#[test]
fn wrong_archives_are_named() {
    let (pickle, six, five) = (pickle(0, [2, 3], [3, 1]), floats(6), floats(5));
    let cases: [(&[Entry<'_>], &str); 5] = [
        (&[("data.pkl", &pickle), ("data/0", &five)], "w: expected a storage of 6 × F32, found 20 bytes"),
        (&[("data.pkl", &pickle), ("data/1", &six)], "w: data/0: not in the zip archive"),
        (&[("data.pkl", &pickle), ("data/0", &six), ("byteorder", b"big")], "byteorder little, found big"),
        (&[("data/0", &six)], "expected one data.pkl"),
        (&[("data.pkl", b"\x80\x02cos\nsystem\n."), ("data/0", &six)], "global os.system is not one"),
    ];
    for (entries, expected) in cases {
        let error = format!("{}", read_bytes(&archive(entries)).err().unwrap());
        assert!(error.contains("x.pth: ") && error.contains(expected), "{error}");
    }
    for (bytes, expected) in [
        (b"version https://git-lfs.github.com/spec/v1\n".as_slice(), "Git LFS pointer"),
        (b"\x80\x02}.", "expected a zip archive"),
        (b"", "expected a zip archive"),
        (b"PK\x03\x04", "zip archive"),
    ] {
        let error = format!("{}", read_bytes(bytes).err().unwrap());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn damaged_archives_do_not_panic() {
    let whole = archive(&[("data.pkl", &pickle(0, [2, 3], [3, 1])), ("data/0", &floats(6))]);
    for at in 0..whole.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            if let Ok(tensors) = read_bytes(&bytes) {
                tensors.iter().flat_map(FileTensor::chunks).for_each(drop);
            }
        }
    }
    for length in 0..whole.len() {
        assert!(read_bytes(&whole[..length]).is_err(), "{length}");
    }
}

#[test]
fn what_is_written_is_read_by_us_and_by_candle() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floats");
    std::fs::write(&path, floats(6)).unwrap();
    let source = Source::open(&path).unwrap();
    let tensor =
        |name: &str, shape: &[usize]| FileTensor::new(&source, name.into(), Dtype::F32, shape.to_vec(), 0);
    let path = dir.path().join("x.pth");
    let tensors = vec![tensor("b", &[2, 3]).permuted(&[1, 0]), tensor("a", &[6])];
    let stop = StopFlag::new();
    let mut names = Vec::new();
    let mut observer =
        |written: Written<'_>| names.push(format!("{} {}/{}", written.tensor, written.done, written.total));
    write(&path, "x", tensors, &mut Progress::new(48, &stop, &mut observer)).unwrap();
    assert_eq!(names, ["a 24/48", "b 48/48"]);

    let ours = open(&path).unwrap();
    assert_eq!(values(&ours[0]), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(
        (ours[1].shape.as_slice(), values(&ours[1])),
        ([3, 2].as_slice(), vec![0., 3., 1., 4., 2., 5.])
    );
    let theirs = candle_core::pickle::read_all(&path).unwrap();
    let b = &theirs.iter().find(|(name, _)| name == "b").unwrap().1;
    assert_eq!(b.to_vec2::<f32>().unwrap(), [[0., 3.], [1., 4.], [2., 5.]]);
}
