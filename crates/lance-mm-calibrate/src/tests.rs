//! A quantization from end to end.

use std::fs;
use std::path::Path;

use lance_mm_eval::{Dataset, Sample};
use lance_mm_image::{self as image, LoadOptions};
use lance_mm_pipelines::{AskOptions, Lance};
use lance_mm_tensor::StopFlag;

use super::*;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/nano-bf16");

/// The six demo questions.
fn dataset() -> Dataset {
    let sample =
        |demo: &lance_mm_nano::Demo| Sample::of_image(demo.file, demo.png, demo.question, demo.answer);
    Dataset { name: "demos".into(), samples: lance_mm_nano::DEMOS.iter().map(sample).collect() }
}

/// Names and bytes of a folder's files.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn answers_the_demos(folder: &Path) -> bool {
    let lance = Lance::from_pretrained(folder).unwrap();
    lance_mm_nano::DEMOS.iter().all(|demo| {
        let picture = image::decode(demo.png, demo.file, &LoadOptions::default()).unwrap();
        lance.ask(&picture, demo.question, &AskOptions::default()).unwrap().text == demo.answer
    })
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let options = || QuantizeOptions { calib_tokens: 128, ..QuantizeOptions::default() };
    let dataset = dataset();
    let report = quantize(NANO, Some(&dataset), &whole, &options(), &mut |_| {}).unwrap();
    assert!(!report.existed());
    assert!(report.linears().iter().filter(|l| l.drift.is_some()).all(|l| l.final_error < l.plain));
    assert_eq!((report.linears().len(), report.fusions().is_empty()), (30, false));
    assert!(answers_the_demos(&whole));
    for stage in [Progress::Samples { done: 3, total: 6 }, Progress::Layer { index: 2, total: 4 }] {
        let mut stopped = options();
        stopped.stop = StopFlag::new();
        let stop = stopped.stop.clone();
        let mut observer = |progress| {
            if progress == stage {
                stop.stop();
            }
        };
        let error = quantize(NANO, Some(&dataset), &cut, &stopped, &mut observer).unwrap_err();
        assert!(matches!(error, Error::Stopped), "{error}");
        assert!(!cut.exists());
    }
    let mut layers = Vec::new();
    let mut observer = |progress| {
        if let Progress::Layer { index, .. } = progress {
            layers.push(index);
        }
    };
    quantize(NANO, Some(&dataset), &cut, &options(), &mut observer).unwrap();
    assert_eq!(layers, [2, 3]);
    assert!(files(&whole) == files(&cut), "the bytes differ");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a work folder is left");
    let report = quantize(NANO, Some(&dataset), &cut, &options(), &mut |_| {}).unwrap();
    assert!(report.existed() && report.linears().len() == 30);
}

#[test]
fn rounding_to_nearest_needs_no_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options =
        |recipe| QuantizeOptions { recipe, bits: 8, vit_bits: Some(8), ..QuantizeOptions::default() };
    let report = quantize(NANO, None, &out, &options(Recipe::Rtn), &mut |_| {}).unwrap();
    assert!(report.linears().iter().all(|linear| linear.bits == 8) && report.fusions().is_empty());
    assert!(answers_the_demos(&out));
    let error = quantize(NANO, None, &out, &options(Recipe::Awq), &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "calibration: expected a dataset, found none");
    let error =
        quantize(&out, None, dir.path().join("twice"), &options(Recipe::Rtn), &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Quantized { .. }), "{error}");
}

#[test]
fn options_are_refused_by_name() {
    let refused = |options: QuantizeOptions| options.validate().unwrap_err().to_string();
    let default = QuantizeOptions::default;
    assert_eq!(
        refused(QuantizeOptions { vit_bits: Some(5), ..default() }),
        "option vit_bits: expected 8 or 4, found 5"
    );
    let mixed = QuantizeOptions { recipe: Recipe::AwqMixed, ..default() };
    assert!(refused(QuantizeOptions { bits_per_weight: 16.0, ..mixed.clone() }).contains("bits_per_weight"));
    assert!(refused(QuantizeOptions { uniform_bits: true, ..mixed }).contains("uniform_bits"));
    assert!(refused(QuantizeOptions { bits: 7, ..default() }).contains("bits 2, 3, 4, 5, 6 or 8"));
}
