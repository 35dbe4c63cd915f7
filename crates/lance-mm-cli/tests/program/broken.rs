//! Bad files, bad models and bad options: one line of error, code 1, nothing on standard output.

use std::fs;

use crate::generation::model;
use crate::support::{Files, lance_mm};

#[test]
fn images_that_are_none() {
    let files = Files::demos();
    let formats = "expected PNG, JPEG, GIF, WebP, BMP, TIFF or PNM";
    let cases = [
        (files.arg("gone.png"), "gone.png: No such file or directory (os error 2)".to_owned()),
        (files.write("zero.png", b""), format!("zero.png: {formats}, found no data")),
        (files.write("text.png", b"some text"), format!("text.png: {formats}, found an unknown format")),
        (
            files.write("huge.png", &png_header(60_000, 60_000)),
            "huge.png: expected at most 179000000 pixels, found 3600000000 (PNG of 60000x60000)".to_owned(),
        ),
        (
            files.write("cut.png", &lance_mm_nano::DEMOS[0].png[..5000]),
            "cut.png: damaged or truncated PNG".to_owned(),
        ),
    ];
    for (path, expected) in cases {
        for args in [["ask", &path, "What?"].as_slice(), &["chat", &path]] {
            let run = lance_mm(args);
            assert!(run.error().contains(&expected), "{}", run.stderr);
            assert_eq!(run.stdout, "");
        }
    }
}

/// The start of a PNG: a header with a right checksum, and an empty chunk of data.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        let crc = !body.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
        });
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc.to_be_bytes()].concat()
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", b"")].concat()
}

#[test]
fn questions_and_options_that_cannot_be() {
    let files = Files::demos();
    let plate = files.demo(2);
    let cases: [(&[&str], &str); 12] = [
        (&[""], "the question is empty: expected text (--caption asks for a description)"),
        (&["  "], "the question is empty: expected text (--caption asks for a description)"),
        (
            &["a<|im_end|>b"],
            "prompt: expected plain text in the question, found the special token <|im_end|>",
        ),
        (&["a", "--instruction", "<|im_start|>"], "prompt: expected plain text in the system message, found"),
        (&["a", "--resize", "big"], "--resize: expected native, image_256res, image_512res, image_768res,"),
        (&["a", "--temperature", "-1"], "--temperature: expected a finite number of at least 0, found -1"),
        (&["a", "--temperature", "nan"], "--temperature: expected a finite number of at least 0, found NaN"),
        (&["a", "--top-p", "1.5"], "--top-p: expected a number above 0 and at most 1, found 1.5"),
        (
            &["a", "--repetition-penalty", "0"],
            "--repetition-penalty: expected a finite number above 0, found 0",
        ),
        (&["a", "--max-new-tokens", "0"], "--max-new-tokens: expected at least 1, found 0"),
        (
            &["a", "--max-new-tokens", "99999999"],
            "--max-new-tokens: expected at most 128000 tokens in all, found",
        ),
        (&["a", "--stop", ""], "--stop: "),
    ];
    for (args, expected) in cases {
        let run = lance_mm(["ask", &plate].iter().chain(args));
        assert!(run.error().starts_with(expected), "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
    let text = lance_mm(["ask", "--text", ""]);
    assert_eq!(text.error(), "the question is empty: expected text");
}

#[test]
fn models_that_are_not_there() {
    let files = Files::demos();
    let plate = files.demo(2);
    let ask = |model: &str| lance_mm(["ask", "--model", model, &plate, "What?"]).error().to_owned();
    assert_eq!(
        ask("foo"),
        "model \"foo\": expected a checkpoint folder or org/name, found nothing at this path"
    );
    assert_eq!(ask(""), "model \"\": expected a checkpoint folder or org/name, found nothing at this path");
    assert!(ask("./foo/bar").contains("found nothing at this path"));
    let repository = ask("foo/bar@v1");
    assert!(repository.starts_with("foo/bar@v1: not in the hub's cache /"), "{repository}");
    assert!(repository.ends_with("; run: lance-mm pull foo/bar@v1"), "{repository}");
    assert!(
        ask(files.root().to_str().unwrap())
            .contains("expected model.safetensors or its index in this folder")
    );
    assert!(ask(&plate).contains("demo_plate.png"));
}

#[test]
fn a_vae_that_cannot_be_read_concerns_generation_alone() {
    let files = Files::nano();
    let vae = files.write("nano/vae.safetensors", b"version https://git-lfs.github.com/spec/v1\n");
    let answer = lance_mm([
        "ask",
        "-m",
        &files.arg("nano"),
        &files.demo(2),
        "What is the license plate number of the car?",
    ]);
    assert_eq!((answer.code, answer.stdout.as_str()), (0, "BX62 BFY\n"), "{}", answer.stderr);
    let files = model();
    let vae = files.write("model/vae.safetensors", &fs::read(vae).unwrap());
    let (model, out) = (files.arg("model"), files.arg("a.png"));
    let generated = lance_mm(["generate", "A fox", "-m", &model, "-o", &out, "--size", "32x32"]);
    assert!(
        generated.error().starts_with(&format!("{vae}: expected weights, found a Git LFS pointer")),
        "{}",
        generated.stderr
    );
}

#[test]
fn models_that_are_broken() {
    let edit = |files: &Files, from: &str, to: &str| {
        let config = fs::read_to_string(files.path("nano/config.json")).unwrap();
        let edited = config.replacen(from, to, 1);
        assert_ne!(edited, config, "{from}");
        files.write("nano/config.json", edited.as_bytes());
    };
    let cut = |files: &Files, name: &str, bytes: &[u8]| {
        files.write(&format!("nano/{name}"), bytes);
    };
    let remove = |files: &Files, name: &str| fs::remove_file(files.path("nano").join(name)).unwrap();
    type Case<'a> = (&'a str, &'a dyn Fn(&Files), &'a [&'a str]);
    let cases: [Case<'_>; 9] = [
        (
            "truncated model",
            &|f| cut(f, "model.safetensors", &lance_mm_nano::MODEL[..1_000_000]),
            &["model.safetensors"],
        ),
        ("truncated vit", &|f| cut(f, "vit.safetensors", &lance_mm_nano::VIT[..7]), &["vit.safetensors"]),
        (
            "wrong shape",
            &|f| edit(f, "\"intermediate_size\": 640", "\"intermediate_size\": 672"),
            &["mlp", "672", "640"],
        ),
        (
            "mode",
            &|f| edit(f, "{", "{\"quantization\": {\"mode\": \"foo\", \"bits\": 4, \"group_size\": 32},"),
            &["mode", "foo"],
        ),
        ("no json", &|f| cut(f, "config.json", b"{\"hidden_size\": "), &["config.json"]),
        ("no tokenizer", &|f| remove(f, "tokenizer.json"), &["tokenizer.json"]),
        ("no config", &|f| remove(f, "config.json"), &["config.json"]),
        ("no model", &|f| remove(f, "model.safetensors"), &["model.safetensors"]),
        ("no vit", &|f| remove(f, "vit.safetensors"), &["vit.safetensors"]),
    ];
    for (name, damage, expected) in cases {
        let files = Files::nano_bf16();
        damage(&files);
        let run = lance_mm(["ask", "--model", &files.arg("nano"), &files.demo(2), "What?"]);
        let error = run.error();
        assert!(expected.iter().all(|word| error.contains(word)), "{name}: {error}");
        assert_eq!(run.stdout, "", "{name}");
    }
}
