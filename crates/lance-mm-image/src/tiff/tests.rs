//! Odd files: every way of storing the same small image.

use std::io::Write as _;

use ::image::{Rgb, RgbImage};

use crate::{LoadOptions, decode, multi_frame};

const WIDTH: u32 = 21;
const HEIGHT: u32 = 13;

/// Writer of one image. Shorts and longs are longs; offsets of chunks are filled in.
#[derive(Clone)]
struct Tiff {
    big_endian: bool,
    is_big: bool,
    tags: Vec<(u16, Vec<u32>)>,
    chunks: Vec<Vec<u8>>,
    is_tiled: bool,
}

impl Tiff {
    /// Strips, tiles or planes of `samples` samples of `bits` bits.
    fn new(bits: u32, samples: u32, photometric: u32, chunks: Vec<Vec<u8>>) -> Self {
        let tags = vec![
            (256, vec![WIDTH]),
            (257, vec![HEIGHT]),
            (258, vec![bits; samples as usize]),
            (262, vec![photometric]),
            (277, vec![samples]),
        ];
        Tiff { big_endian: false, is_big: false, tags, chunks, is_tiled: false }
    }

    fn tag(mut self, tag: u16, values: &[u32]) -> Self {
        self.tags.push((tag, values.to_vec()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let word = |value: u64, n: usize| {
            if self.big_endian {
                value.to_be_bytes()[8 - n..].to_vec()
            } else {
                value.to_le_bytes()[..n].to_vec()
            }
        };
        let (offsets, counts) = if self.is_tiled { (324, 325) } else { (273, 279) };
        let mut tags = self.tags.clone();
        tags.push((counts, self.chunks.iter().map(|chunk| chunk.len() as u32).collect()));
        tags.push((offsets, vec![0; self.chunks.len()]));
        tags.sort();
        let (head, entry, place) = if self.is_big { (16, 20, 8) } else { (8, 12, 4) };
        let directory = head + if self.is_big { 8 } else { 2 } + entry * tags.len() + place;
        // The directory, values that do not fit into it, the chunks.
        let far = |values: &Vec<u32>| 4 * values.len() > place;
        let values_len: usize = tags.iter().filter(|(_, values)| far(values)).map(|(_, v)| 4 * v.len()).sum();
        let mut at = directory + values_len;
        for chunk in 0..self.chunks.len() {
            let entry = tags.iter_mut().find(|(tag, _)| *tag == offsets).unwrap();
            entry.1[chunk] = at as u32;
            at += self.chunks[chunk].len();
        }
        let mut out = if self.big_endian { b"MM".to_vec() } else { b"II".to_vec() };
        if self.is_big {
            out.extend(
                [word(43, 2), word(8, 2), word(0, 2), word(16, 8), word(tags.len() as u64, 8)].concat(),
            );
        } else {
            out.extend([word(42, 2), word(8, 4), word(tags.len() as u64, 2)].concat());
        }
        let mut values_at = directory;
        let mut rest = Vec::new();
        for (tag, values) in &tags {
            out.extend([word((*tag).into(), 2), word(4, 2), word(values.len() as u64, place)].concat());
            let data: Vec<u8> = values.iter().flat_map(|value| word((*value).into(), 4)).collect();
            if far(values) {
                out.extend(word(values_at as u64, place));
                values_at += data.len();
                rest.extend(data);
            } else {
                out.extend(&data);
                out.extend(vec![0; place - data.len()]);
            }
        }
        out.extend(word(0, place));
        out.extend(rest);
        out.extend(self.chunks.concat());
        out
    }
}

fn image() -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| Rgb([(x * 12) as u8, (y * 19) as u8, (x * y) as u8]))
}

fn gray(levels: u32) -> RgbImage {
    RgbImage::from_fn(WIDTH, HEIGHT, |x, y| Rgb([((x + 3 * y) % levels * 255 / (levels - 1)) as u8; 3]))
}

/// First channel of an image, packed to samples of some bits.
fn packed(image: &RgbImage, bits: u32) -> Vec<u8> {
    let rows = image.rows().map(|row| {
        let bits_of = |value: u8| (0..bits).map(move |i| value >> (7 - i) & 1);
        let bits: Vec<u8> = row.flat_map(|pixel| bits_of(pixel.0[0])).collect();
        bits.chunks(8).map(|byte| (0..8).fold(0, |v, i| v << 1 | byte.get(i).unwrap_or(&0))).collect()
    });
    rows.collect::<Vec<Vec<u8>>>().concat()
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn lzw(data: &[u8]) -> Vec<u8> {
    weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8).encode(data).unwrap()
}

fn reversed(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| byte.reverse_bits()).collect()
}

/// Tiles of one channel, the last padded.
fn tiles(channel: impl Fn(u32, u32) -> u8, side: u32) -> Vec<Vec<u8>> {
    let places = (0..HEIGHT.div_ceil(side)).flat_map(|y| (0..WIDTH.div_ceil(side)).map(move |x| (x, y)));
    let inside = |x, y| if x < WIDTH && y < HEIGHT { channel(x, y) } else { 0 };
    let tile = |(x, y)| (0..side * side).map(|i| inside(x * side + i % side, y * side + i / side)).collect();
    places.map(tile).collect()
}

fn assert_reads(tiff: &Tiff, expected: &RgbImage, what: &str) {
    for big_endian in [false, true] {
        for is_big in [false, true] {
            let bytes = Tiff { big_endian, is_big, ..tiff.clone() }.bytes();
            let found = decode(&bytes, "x", &LoadOptions::default());
            let found = found.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(&found, expected, "{what}, big endian {big_endian}, BigTIFF {is_big}");
            assert_eq!(multi_frame(&bytes), None);
            for n in (0..bytes.len()).step_by(7) {
                assert!(decode(&bytes[..n], "x", &LoadOptions::default()).is_err(), "{what}, {n} bytes");
            }
        }
    }
}

#[test]
fn every_compression_and_order_of_bits() {
    let raw = image().into_raw();
    let mut differences = raw.clone();
    for row in differences.chunks_exact_mut(WIDTH as usize * 3) {
        for i in (3..row.len()).rev() {
            row[i] = row[i].wrapping_sub(row[i - 3]);
        }
    }
    let literal: Vec<u8> = raw.chunks(128).flat_map(|c| [&[c.len() as u8 - 1][..], c].concat()).collect();
    let rgb = |data: Vec<u8>, compression| Tiff::new(8, 3, 2, vec![data]).tag(259, &[compression]);
    assert_reads(&rgb(raw.clone(), 1), &image(), "plain");
    assert_reads(&rgb(lzw(&raw), 5), &image(), "LZW");
    assert_reads(&rgb(deflated(&raw), 8), &image(), "deflate");
    assert_reads(&rgb(literal, 32773), &image(), "PackBits");
    assert_reads(&rgb(lzw(&differences), 5).tag(317, &[2]), &image(), "LZW of differences");
    assert_reads(&rgb(deflated(&differences), 32946).tag(317, &[2]), &image(), "deflate of differences");
    assert_reads(&rgb(reversed(&raw), 1).tag(266, &[2]), &image(), "low bit first");
    let strips = raw.chunks(WIDTH as usize * 3 * 4).map(deflated).collect();
    let strips = Tiff::new(8, 3, 2, strips).tag(259, &[8]).tag(278, &[4]);
    assert_reads(&strips, &image(), "strips");
}

#[test]
fn planes_and_tiles() {
    let source = image();
    let channel = |c: usize| {
        let source = source.clone();
        move |x, y| source.get_pixel(x, y).0[c]
    };
    let planes = (0..3).map(|c| image().pixels().map(|pixel| pixel.0[c]).collect()).collect();
    assert_reads(&Tiff::new(8, 3, 2, planes).tag(284, &[2]), &image(), "planes");
    // Sides that the tiles do not divide: the crate `tiff` panics here.
    let tiled = (0..3).flat_map(|c| tiles(channel(c), 16)).collect();
    let tiled = Tiff::new(8, 3, 2, tiled).tag(284, &[2]).tag(322, &[16]).tag(323, &[16]);
    assert_reads(&Tiff { is_tiled: true, ..tiled }, &image(), "planes of tiles");
    let wide = |c| tiles(channel(c), 16).into_iter().map(|tile| tile.iter().flat_map(|v| [*v; 2]).collect());
    let tiled =
        Tiff::new(16, 3, 2, (0..3).flat_map(wide).collect()).tag(284, &[2]).tag(322, &[16]).tag(323, &[16]);
    assert_reads(&Tiff { is_tiled: true, ..tiled }, &image(), "planes of tiles, 16 bits");
}

#[test]
fn gray_of_every_depth_and_palettes() {
    let not = |data: &[u8]| data.iter().map(|byte| !byte).collect::<Vec<u8>>();
    for (bits, levels) in [(1, 2), (2, 4), (4, 16), (8, 256)] {
        let (expected, data) = (gray(levels), packed(&gray(levels), bits));
        assert_reads(&Tiff::new(bits, 1, 1, vec![data.clone()]), &expected, &format!("{bits} bits"));
        assert_reads(&Tiff::new(bits, 1, 0, vec![not(&data)]), &expected, &format!("{bits} bits, 0 white"));
        // Red rises, green falls, blue is 7.
        let last = levels - 1;
        let values = (0..levels).map(|i| i * 65535 / last).chain((0..levels).rev().map(|i| i * 65535 / last));
        let map: Vec<u32> = values.chain(std::iter::repeat_n(0x7ff, levels as usize)).collect();
        let coloured = RgbImage::from_fn(WIDTH, HEIGHT, |x, y| {
            let value = expected.get_pixel(x, y).0[0];
            Rgb([value, 255 - value, 7])
        });
        let tiff = Tiff::new(bits, 1, 3, vec![data]).tag(320, &map);
        assert_reads(&tiff, &coloured, &format!("palette of {bits} bits"));
    }
}

#[test]
fn alpha_is_blended_with_white() {
    let pixels: [[u8; 4]; 3] = [[50, 100, 200, 100], [9, 1, 2, 0], [7, 8, 9, 255]];
    let data = (0..WIDTH * HEIGHT).flat_map(|i| pixels[i as usize % 3]).collect::<Vec<u8>>();
    let expected = |colours: [[u8; 3]; 3]| {
        RgbImage::from_fn(WIDTH, HEIGHT, |x, y| Rgb(colours[(x + y * WIDTH) as usize % 3]))
    };
    let tiff = Tiff::new(8, 4, 2, vec![data]);
    let straight = expected([[175, 194, 233], [255; 3], [7, 8, 9]]);
    assert_reads(&tiff.clone().tag(338, &[2]), &straight, "straight");
    assert_reads(&tiff, &straight, "no word about it");
    let divided = expected([[205, 255, 255], [255; 3], [7, 8, 9]]);
    assert_reads(&tiff.clone().tag(338, &[1]), &divided, "associated");
    let opaque = expected([[50, 100, 200], [9, 1, 2], [7, 8, 9]]);
    assert_reads(&tiff.tag(338, &[0]), &opaque, "something else");
}

#[test]
fn fax_codes() {
    // White is 0 in photometric 0; the encoder's rows come from iterators of colours.
    let expected = gray(2);
    let colours = |row: &[u8]| {
        row.iter().map(|v| if *v == 0 { fax::Color::Black } else { fax::Color::White }).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<u8>> = expected.rows().map(|row| row.map(|pixel| pixel.0[0]).collect()).collect();
    let mut encoder = fax::encoder::Encoder::new(fax::VecWriter::new());
    for row in &rows {
        let Ok(()) = encoder.encode_line(colours(row).into_iter(), WIDTH as u16);
    }
    let Ok(writer) = encoder.finish();
    let data = writer.finish();
    assert_reads(&Tiff::new(1, 1, 0, vec![data.clone()]).tag(259, &[4]), &expected, "T.6");
    let tiff = Tiff::new(1, 1, 0, vec![reversed(&data)]).tag(259, &[4]).tag(266, &[2]);
    assert_reads(&tiff, &expected, "T.6, low bit first");
}

#[test]
fn run_lengths_of_fax_machines() {
    // 21 pixels, each row 4 white, 3 black, 14 white: codes 1011, 10, 110100 and an end-of-line code before each.
    let expected =
        RgbImage::from_fn(WIDTH, HEIGHT, |x, _| Rgb([if (4..7).contains(&x) { 0 } else { 255 }; 3]));
    let row = "1011 10 110100".replace(' ', "");
    let bytes = |bits: &str| {
        let bits: Vec<u8> = bits.bytes().map(|bit| bit - b'0').collect();
        bits.chunks(8).map(|b| (0..8).fold(0, |v, i| v << 1 | b.get(i).unwrap_or(&0))).collect::<Vec<u8>>()
    };
    let aligned = bytes(&row).repeat(HEIGHT as usize);
    assert_reads(&Tiff::new(1, 1, 0, vec![aligned]).tag(259, &[2]), &expected, "aligned");
    let lines = format!("000000000001{row}").repeat(HEIGHT as usize) + &"000000000001".repeat(6);
    assert_reads(&Tiff::new(1, 1, 0, vec![bytes(&lines)]).tag(259, &[3]), &expected, "T.4");
    // In two dimensions: a row of runs, then rows that change where the one above does.
    let first = format!("000000000001 1 {row}");
    let mixed = first + &"000000000001 0 1 1 1".repeat(HEIGHT as usize - 1);
    let tiff = Tiff::new(1, 1, 0, vec![bytes(&mixed.replace(' ', ""))]).tag(259, &[3]).tag(292, &[1]);
    assert_reads(&tiff, &expected, "T.4 in two dimensions");
}

#[test]
fn a_jpeg_with_tables_of_its_own() {
    use ::image::codecs::jpeg::JpegEncoder;

    let mut jpeg = Vec::new();
    image().write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, 90)).unwrap();
    let expected = decode(&jpeg, "x", &LoadOptions::default()).unwrap();
    let tiff = Tiff::new(8, 3, 6, vec![jpeg]).tag(259, &[7]);
    let bytes = tiff.bytes();
    assert_eq!(decode(&bytes, "x", &LoadOptions::default()).unwrap(), expected);
}

#[test]
fn what_is_not_read_is_named() {
    let message = |tiff: Tiff| decode(&tiff.bytes(), "x", &LoadOptions::default()).unwrap_err().to_string();
    let data = || vec![vec![0; 4000]];
    for (tiff, expected) in [
        (Tiff::new(8, 3, 2, data()).tag(259, &[50000]), "Zstandard compression"),
        (Tiff::new(8, 3, 2, data()).tag(259, &[6]), "old-style JPEG compression"),
        (Tiff::new(32, 1, 1, data()).tag(339, &[3]), "floating point samples of 32 bits"),
        (Tiff::new(8, 3, 8, data()), "Lab colours"),
        (Tiff::new(8, 7, 2, data()), "7 samples a pixel"),
        (Tiff::new(8, 3, 6, data()), "YCbCr samples that are not JPEG"),
    ] {
        assert_eq!(message(tiff), format!("x: unsupported TIFF: {expected}"));
    }
    // Tiles of gigabytes for an image of a few pixels.
    let tiled = Tiff::new(8, 3, 2, data()).tag(322, &[65536]).tag(323, &[65536]);
    let found = message(Tiff { is_tiled: true, ..tiled });
    assert_eq!(found, "x: unsupported TIFF: tiles of 65536x65536 in an image of 21x13");
}
