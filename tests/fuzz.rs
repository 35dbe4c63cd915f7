//! Damaged input for every parser of data from outside, in one process: whatever the bytes, a parser returns, and its
//! memory is bounded. `LANCE_MM_FUZZ_CASES` sets the inputs of a target (200), `LANCE_MM_FUZZ_SEED` their seed (1).
//!
//! The corpus is small valid files: images in `corpus/`, the configuration, the tokenizer and a header of the bundled
//! model. Bytes are flipped, cut, repeated and overwritten with extreme lengths; values of JSON are replaced by others.

#![expect(unsafe_code, reason = "an allocator that counts")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use lance_mm::Tokenizer;
use lance_mm::image::{self, LoadOptions};
use lance_mm::models::Config;
use lance_mm::tensor::{Quantization, Weights};
use lance_mm_eval::Dataset;
use serde_json::{Value, json};

/// The system's allocator, with the bytes in use and their maximum.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(used, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; `alloc` took it from the system.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that an input may take: a constant, and some for each of its own.
// Decoders of images are granted 160 MB.
const BASE: usize = 200 << 20;
const PER_BYTE: usize = 400;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a parser on inputs. Inputs that end it by a panic, or take too much memory, are listed.
fn fuzz(target: &str, mut input: impl FnMut(&mut Random) -> Vec<u8>, parse: impl Fn(&[u8])) {
    // Memory is counted for the process: one target at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random(setting("LANCE_MM_FUZZ_SEED", 1));
    let mut wrong = Vec::new();
    let cases = setting("LANCE_MM_FUZZ_CASES", 200);
    for case in 0..cases {
        let bytes = input(&mut random);
        let before = USED.load(Relaxed);
        PEAK.store(before, Relaxed);
        let ended = catch_unwind(AssertUnwindSafe(|| parse(&bytes)));
        let taken = PEAK.load(Relaxed).saturating_sub(before);
        let reason = match ended {
            Err(_) => "a panic".to_owned(),
            Ok(()) if taken > BASE + PER_BYTE * bytes.len() => format!("{taken} bytes of memory"),
            Ok(()) => continue,
        };
        let path = std::env::temp_dir().join(format!("lance-mm-fuzz-{target}-{case}"));
        std::fs::write(&path, &bytes).unwrap();
        wrong.push(format!(
            "{target}, case {case}: {reason}; its {} bytes are in {}",
            bytes.len(),
            path.display()
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Damages bytes in up to four places.
fn damaged(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    const LENGTHS: [u32; 9] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(16)).min(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = *random.one_of(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => (at..end).for_each(|i| bytes[i] = random.next() as u8),
            way => {
                let length = *random.one_of(&LENGTHS);
                let length = if way == 6 { length.to_le_bytes() } else { length.to_be_bytes() };
                let width = *random.one_of(&[2, 4]);
                for (place, byte) in bytes[at..].iter_mut().zip(&length[..width]) {
                    *place = *byte;
                }
            }
        }
    }
    bytes
}

/// Places of a JSON value, itself included.
fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(places).sum(),
        Value::Object(object) => object.values().map(places).sum(),
        _ => 0,
    }
}

/// Changes the value at a place.
fn change(value: &mut Value, place: &mut usize, to: &mut dyn FnMut(&mut Value)) {
    if *place == 0 {
        *place = usize::MAX;
        return to(value);
    }
    *place -= 1;
    let inner: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(object) => object.values_mut().collect(),
        _ => return,
    };
    for value in inner {
        if *place != usize::MAX {
            change(value, place, to);
        }
    }
}

/// Replaces up to three values of a JSON document, and damages its text once in eight.
fn damaged_json(random: &mut Random, original: &Value) -> Vec<u8> {
    let mut value = original.clone();
    for _ in 0..=random.below(3) {
        let mut place = random.below(places(&value));
        let with = match random.below(14) {
            0 => Value::Null,
            1 => json!([]),
            2 => json!({}),
            3 => json!([null]),
            4 => json!(""),
            5 => json!("\u{1b}[31m\u{0}"),
            6 => json!(-1),
            7 => json!(0),
            8 => json!(u64::MAX),
            9 => json!(1e308),
            10 => json!(1u64 << random.below(64)),
            11 => json!(true),
            12 => (0..60).fold(json!(1), |inner, _| json!([inner])),
            _ => json!({"type": "Sequence", "bits": 3, "group_size": 7, "": []}),
        };
        change(&mut value, &mut place, &mut |value| *value = with.clone());
    }
    let text = value.to_string().into_bytes();
    if random.below(8) == 0 { damaged(random, &text) } else { text }
}

/// Deeply nested lists and objects, which no parser may follow to the end of its stack.
fn nested(depth: usize) -> Vec<u8> {
    [&b"{\"a\":["[..], &vec![b'['; depth], &vec![b']'; depth], b"]}"].concat()
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

/// 1 MP, so that memory is that of the format and not of the pixels.
fn small() -> LoadOptions {
    LoadOptions { auto_orient: true, max_pixels: 1 << 20, max_clip_pixels: 1 << 22 }
}

#[test]
fn images() {
    let files = corpus();
    for (name, bytes) in &files {
        let image = image::decode(bytes, name, &small()).unwrap();
        assert!([(20, 13), (13, 20)].contains(&image.dimensions()), "{name}");
    }
    let input = |random: &mut Random| {
        let (_, bytes) = random.one_of(&files);
        damaged(random, bytes)
    };
    fuzz("images", input, |bytes| {
        if let Ok(image) = image::decode(bytes, "x", &small()) {
            assert!(image.width() > 0 && image.height() > 0);
        }
        let _ = image::multi_frame(bytes);
    });
}

#[test]
fn configurations() {
    let config: Value = serde_json::from_slice(lance_mm_nano::CONFIG).unwrap();
    assert!(Config::from_json(&nested(100_000)).is_err());
    fuzz(
        "configurations",
        |random| damaged_json(random, &config),
        |bytes| {
            if let Ok(config) = Config::from_json(bytes) {
                assert!(config.head_dim() > 0 && config.vision.depth > 0);
            }
            if let Ok(value) = serde_json::from_slice(bytes) {
                let _ = Quantization::from_config(&value);
            }
        },
    );
}

#[test]
fn tokenizers() {
    let tokenizer: Value = serde_json::from_slice(lance_mm_nano::TOKENIZER).unwrap();
    assert!(Tokenizer::from_json(&nested(100_000), "x").is_err());
    fuzz(
        "tokenizers",
        |random| damaged_json(random, &tokenizer),
        |bytes| {
            if let Ok(tokenizer) = Tokenizer::from_json(bytes, "x") {
                let _ = tokenizer.encode("What is it? 12 \u{1f600}");
            }
        },
    );
}

#[test]
fn safetensors_headers() {
    let length = u64::from_le_bytes(*lance_mm_nano::VIT.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&lance_mm_nano::VIT[8..8 + length]).unwrap();
    // A few tensors of the file, so that most damage meets one that is read.
    let few: serde_json::Map<String, Value> = header
        .as_object()
        .unwrap()
        .clone()
        .into_iter()
        .filter(|(name, _)| name.contains("blocks.0.norm"))
        .collect();
    let few = Value::Object(few);
    let input = |random: &mut Random| {
        let header = damaged_json(random, &few);
        let length = if random.below(8) == 0 { random.next() } else { header.len() as u64 };
        [&length.to_le_bytes()[..], &header, &[0; 4096]].concat()
    };
    fuzz("safetensors", input, |bytes| {
        if let Ok(weights) = Weights::from_vec("x", bytes.to_vec()) {
            for tensor in weights.tensors() {
                assert!(weights.with_bytes(&tensor.name, <[u8]>::len).is_some());
            }
        }
    });
}

#[test]
fn data_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.png"), lance_mm_nano::DEMOS[0].png).unwrap();
    let row = json!({"image": "a.png", "question": "What?", "answer": "A star", "kind": "shape"});
    let path = dir.path().join("rows.jsonl");
    let input = |random: &mut Random| {
        let rows: Vec<Vec<u8>> = (0..3).map(|_| damaged_json(random, &row)).collect();
        rows.join(&b'\n')
    };
    fuzz("data", input, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = Dataset::read(&path) {
            assert!(error.to_string().contains("rows.jsonl"), "{error}");
        }
    });
}
