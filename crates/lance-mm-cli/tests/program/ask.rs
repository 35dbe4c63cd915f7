//! `lance-mm ask`.

use std::fs;

use serde_json::Value;

use crate::support::{Files, NANO_BF16, command, lance_mm, run, with_input};

const PLATE: &str = "What is the license plate number of the car?";
const NOTE: &str = "model: bundled nano (knows simple synthetic images only; \
                    --model mlx-community/Lance-3B-AWQ-INT4 for the real one)\n";

#[test]
fn the_demo_questions_are_answered() {
    let files = Files::demos();
    for (i, demo) in lance_mm_nano::DEMOS.iter().enumerate() {
        let run = lance_mm(["ask", &files.demo(i), demo.question]);
        assert_eq!((run.code, run.stdout, run.stderr.as_str()), (0, format!("{}\n", demo.answer), NOTE));
    }
}

#[test]
fn json_tells_how_the_answer_came_about() {
    let files = Files::demos();
    let plate = files.demo(2);
    let found = lance_mm(["ask", "--json", &plate, PLATE]);
    assert_eq!((found.code, found.stderr.as_str(), found.stdout.lines().count()), (0, "", 1));
    let json: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(json["answer"], "BX62 BFY");
    assert_eq!(json["finish_reason"], "stop");
    assert_eq!(json["model"], "bundled nano");
    assert_eq!(json["question"], PLATE);
    assert_eq!(json["seed"], Value::Null);
    assert_eq!(json["completion_tokens"], json["ids"].as_array().unwrap().len());
    let image = &json["images"][0];
    assert_eq!((&image["source"], &image["kind"]), (&Value::from(plate.as_str()), &Value::from("image")));
    let grid: Vec<u64> = image["grid"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(image["tokens"], grid.iter().product::<u64>());
    assert!(json["prompt_tokens"].as_u64() > image["tokens"].as_u64());
    let times = json["times"].as_object().unwrap();
    for name in ["load", "encode", "prefill", "decode", "total", "tokens_per_second"] {
        assert!(times[name].as_f64().unwrap() > 0.0, "{name}");
    }
    let sum: f64 =
        ["load", "encode", "prefill", "decode"].iter().map(|name| times[*name].as_f64().unwrap()).sum();
    assert!(sum <= times["total"].as_f64().unwrap());

    let seeded = lance_mm(["ask", "--json", "--temperature", "2", "--text", "Hello", "-n", "4"]);
    let json: Value = serde_json::from_str(&seeded.stdout).unwrap();
    let seed = json["seed"].as_u64().unwrap().to_string();
    let again = lance_mm(["ask", "--json", "-t", "2", "--text", "Hello", "-n", "4", "--seed", &seed]);
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&json["ids"], &json["seed"]), (&again["ids"], &again["seed"]));
}

#[test]
fn the_device_can_be_chosen() {
    let files = Files::demos();
    let found = lance_mm(["ask", "--json", "--device", "cpu", &files.demo(2), PLATE]);
    let json: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!((&json["answer"], &json["device"]), (&Value::from("BX62 BFY"), &Value::from("cpu")));
    // Refused before a model is loaded, and by every command that runs one.
    let (plate, data) =
        (files.demo(2), files.write("data.jsonl", b"{\"image\": \"a.png\", \"question\": \"?\"}"));
    let (png, gif) = (files.arg("f.png"), files.arg("f.gif"));
    let commands: [&[&str]; 11] = [
        &["ask", "--text", "Hello"],
        &["chat", &plate],
        &["bench"],
        &["generate", "-m", ".", "A fox", "-o", &png],
        &["edit", "-m", ".", &plate, "Winter", "-o", &png],
        &["video", "-m", ".", "A fox", "-o", &gif],
        &["eval", "parity", "nano", "nano", "--data", &data],
        &["eval", "layers", "nano", "nano", "--data", &data],
        &["eval", "generation", ".", ".", "--prompt", "A fox"],
        &["eval", "oracle", "nano"],
        &["eval", "ppl", "nano", "--text", &data],
    ];
    for args in commands {
        let found = lance_mm(args.iter().chain(&["--device", "gpu"]));
        assert_eq!(found.code, 2, "{args:?}: {}", found.stderr);
        assert!(
            found.stderr.contains("expected auto, cpu or metal, found gpu"),
            "{args:?}: {}",
            found.stderr
        );
        if cfg!(not(target_os = "macos")) {
            let found = lance_mm(args.iter().chain(&["--device", "metal"]));
            let expected = "device: expected cpu or auto, found metal, but this build has no Metal";
            assert!(found.error().starts_with(expected), "{args:?}: {}", found.stderr);
        }
    }
}

#[test]
fn standard_input_can_be_the_image() {
    let demo = lance_mm_nano::DEMOS[3];
    let run = with_input(["ask", "-q", "-", demo.question], demo.png);
    assert_eq!((run.code, run.stdout, run.stderr.as_str()), (0, format!("{}\n", demo.answer), ""));
    let none = lance_mm(["ask", "-", demo.question]);
    assert_eq!(
        none.error(),
        "standard input: expected PNG, JPEG, GIF, WebP, BMP, TIFF or PNM, found no data"
    );
}

#[test]
fn a_description_a_text_and_several_images() {
    let files = Files::demos();
    // It was not trained on this prompt: what it says hangs on every bit, so the unquantized model is asked.
    for flag in ["--caption", "--describe", "-c"] {
        let run = lance_mm(["ask", flag, "--json", "-m", NANO_BF16, &files.demo(5)]);
        let json: Value = serde_json::from_str(&run.stdout).unwrap();
        assert!(json.get("question").is_none() && json["answer"].as_str().unwrap().contains("solar eclipse"));
    }
    let bundled = lance_mm(["ask", "--caption", &files.demo(5), "-n", "2"]);
    assert!(bundled.stderr.contains("note: nano was trained on questions only"), "{}", bundled.stderr);
    let text = lance_mm(["ask", "--text", "--json", "Hello", "-n", "2"]);
    let json: Value = serde_json::from_str(&text.stdout).unwrap();
    assert_eq!((text.code, json["images"].as_array().unwrap().len()), (0, 0));
    let two = lance_mm(["ask", &files.demo(0), &files.demo(2), "What?", "-n", "2", "--json"]);
    let json: Value = serde_json::from_str(&two.stdout).unwrap();
    assert_eq!(json["images"].as_array().unwrap().len(), 2);
    assert_eq!(json["finish_reason"], "length");
}

#[test]
fn each_image_has_a_line_of_its_own() {
    let files = Files::demos();
    let question = "What is the license plate number of the car?";
    let images = [files.demo(2), files.arg("gone.png"), files.demo(5)];
    let mut args = vec!["ask", "-q", "--each", "-m", NANO_BF16];
    args.extend(images.iter().map(String::as_str));
    let run = lance_mm(args.into_iter().chain([question]));
    let lines: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((run.code, lines.len()), (1, 3), "{}", run.stderr);
    for (line, image) in lines.iter().zip(&images) {
        assert_eq!(line["images"][0]["source"], image.as_str());
    }
    assert_eq!((&lines[0]["answer"], &lines[0]["error"]), (&"BX62 BFY".into(), &Value::Null));
    assert_eq!(lines[1]["error"], format!("{}: No such file or directory (os error 2)", images[1]));
    let alone = lance_mm(["ask", "-q", "-m", NANO_BF16, &images[2], question]);
    assert_eq!(lines[2]["answer"], alone.stdout.trim_end());
    assert!(run.stderr.ends_with("error: 1 image could not be answered about\n"), "{}", run.stderr);
}

#[test]
fn options_reach_the_model() {
    let files = Files::demos();
    let (landmark, question) = (files.demo(4), lance_mm_nano::DEMOS[4].question);
    let stopped = lance_mm(["ask", &landmark, question, "--stop", "Rome", "--stop", "Colosseum"]);
    assert_eq!(stopped.stdout, "The image shows the\n");
    let short = lance_mm(["ask", &landmark, question, "--max-new-tokens", "3", "--stats"]);
    assert_eq!(short.code, 0);
    assert!(
        short.stderr.contains("answer of 3 tokens") && short.stderr.contains("ended by length"),
        "{}",
        short.stderr
    );
    assert_eq!(short.stderr.contains("; memory "), cfg!(target_os = "linux"), "{}", short.stderr);
    let low = lance_mm(["ask", &landmark, question, "--low-memory"]);
    assert_eq!(low.stdout, lance_mm(["ask", &landmark, question]).stdout);
    let grid = |args: &[&str]| {
        let run = lance_mm(["ask", "--json", "-n", "1", &landmark, question].iter().chain(args));
        let json: Value = serde_json::from_str(&run.stdout).unwrap();
        json["images"][0]["tokens"].as_u64().unwrap()
    };
    let sizes = [grid(&[]), grid(&["--resize", "native"]), grid(&["--resize", "image_512res"])];
    assert_eq!(sizes, [16, 64, 256]);
    let note = lance_mm(["ask", &landmark, question, "--top-p", "0.5"]);
    assert!(note.stderr.starts_with("note: --top-p, --top-k and --seed have no effect"), "{}", note.stderr);
    let file = lance_mm(["ask", "-n", "1", &landmark, &landmark]);
    assert!(file.code == 0 && file.stderr.contains("is read as the question"), "{}", file.stderr);
    let instruction = lance_mm(["ask", "--json", "-n", "1", "--instruction", "Hi", &landmark, question]);
    let json: Value = serde_json::from_str(&instruction.stdout).unwrap();
    let usual = lance_mm(["ask", "--json", "-n", "1", &landmark, question]);
    let usual: Value = serde_json::from_str(&usual.stdout).unwrap();
    assert!(json["prompt_tokens"].as_u64() < usual["prompt_tokens"].as_u64());
}

#[test]
fn videos_are_folders_and_animations() {
    let files = Files::demos();
    fs::create_dir(files.path("frames")).unwrap();
    for i in 0..10 {
        files.write(&format!("frames/{i}.png"), lance_mm_nano::DEMOS[2].png);
    }
    let frames = files.arg("frames");
    let run = lance_mm(["ask", "--video", "--json", "-n", "2", &frames, "What happens?"]);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&json["images"][0]["kind"], &json["images"][0]["grid"][0]),
        (&Value::from("video"), &Value::from(3))
    );
    let slow = lance_mm(["ask", "--video", "--fps", "12", "--json", "-n", "2", &frames, "What happens?"]);
    let json: Value = serde_json::from_str(&slow.stdout).unwrap();
    assert_eq!(json["images"][0]["grid"][0], 5);
    let hint = lance_mm(["ask", &frames, "What happens?"]);
    assert!(hint.error().contains("found a folder (--video reads its images as frames)"));
    let zero = lance_mm(["ask", "--video", "--fps", "0", &frames, "What happens?"]);
    assert_eq!(zero.error(), "--fps: expected a rate that rounds to at least 1, found 0");

    let gif = files.write("two.gif", &animation());
    let still = lance_mm(["ask", "-n", "1", &gif, "What?"]);
    assert_eq!(still.code, 0);
    assert!(
        still.stderr.contains("two.gif is animated: its first frame is used (--video"),
        "{}",
        still.stderr
    );
    let moving = lance_mm(["ask", "-n", "1", "--video", "--json", &gif, "What?"]);
    let json: Value = serde_json::from_str(&moving.stdout).unwrap();
    assert_eq!((moving.code, &json["images"][0]["kind"]), (0, &Value::from("video")));
    let fast = lance_mm(["ask", "--video", "--fps", "1000", &gif, "What?"]);
    let expected = "two.gif: expected at least 42 frames at 1000 frames per second, found 2";
    assert!(fast.error().ends_with(expected), "{}", fast.stderr);
}

#[test]
fn a_note_says_that_only_the_first_image_is_read() {
    let files = Files::new();
    let tiff = files.write("pages.tif", &pages());
    let apng = files.write("two.png", &animated_png());
    for (file, note) in [
        (&tiff, "has more than one page: the first is used"),
        (&apng, "is animated: its first frame is used"),
    ] {
        let found = lance_mm(["ask", "-n", "1", file, "What?"]);
        let note = format!("note: {file} {note}\n");
        assert!(found.code == 0 && found.stderr.contains(&note), "{}", found.stderr);
        let quiet = lance_mm(["ask", "-q", "-n", "1", file, "What?"]);
        assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    }
}

#[test]
fn a_still_is_no_video() {
    let files = Files::demos();
    let still = files.demo(2);
    let named = files.write("clip.mp4", lance_mm_nano::DEMOS[2].png);
    let webp = files.write("two.webp", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x04\0\0\x02\0\0");
    let apng = files.write("two.png", &animated_png());
    let ask = |file: &str| run(command().args(["ask", "--video", file, "What?"]).env("PATH", "/nonexistent"));
    for file in [&still, &named] {
        assert_eq!(ask(file).error(), format!("{file}: expected a video, found a PNG image"));
    }
    let found = ask(&webp);
    let expected = "expected a video, found an animated WebP, which is read as an image \
                    (GIF files, folders of frames and video files are videos)";
    assert_eq!(found.error(), format!("{webp}: {expected}"));
    // Its frames are ffmpeg's to read.
    let found = ask(&apng);
    assert!(found.error().contains("expected the program ffmpeg"), "{}", found.stderr);
}

/// A TIFF of two pages, both of one gray pixel.
fn pages() -> Vec<u8> {
    let entry = |tag: u16, value: u32| {
        [&tag.to_le_bytes()[..], &3u16.to_le_bytes(), &1u32.to_le_bytes(), &value.to_le_bytes()].concat()
    };
    // Width, height, bits, compression, black is zero, where the pixel is, rows and bytes of it.
    let fields = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 4), (278, 1), (279, 1)];
    let page = |next: u32| {
        let entries = fields.map(|(tag, value)| entry(tag, value)).concat();
        [&(fields.len() as u16).to_le_bytes()[..], &entries, &next.to_le_bytes()].concat()
    };
    let first = page(8 + page(0).len() as u32);
    [&b"II*\0\x08\0\0\0"[..], &first, &page(0)].concat()
}

/// A PNG of two frames of four pixels.
fn animated_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    encoder.set_animated(2, 0).unwrap();
    let mut writer = encoder.write_header().unwrap();
    for level in [10, 200] {
        writer.write_image_data(&[level; 4]).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

/// A GIF of two frames of one black pixel, for half a second each.
fn animation() -> Vec<u8> {
    let frame: &[u8] = b"\x21\xf9\x04\0\x32\0\0\0\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0";
    let head: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff";
    [head, frame, frame, b"\x3b"].concat()
}

#[test]
fn files_that_are_no_images_are_named_with_advice() {
    let files = Files::new();
    let expected = "expected PNG, JPEG, GIF, WebP, BMP, TIFF or PNM";
    let video = format!("{expected}, found MP4 or QuickTime (video)");
    let mp4 = b"\0\0\0\x14ftypisom\0\0\0\0mp41";
    let cases: [(&[u8], String); 4] = [
        (
            b"\0\0\0\x14ftypheic\0\0\0\0mif1",
            format!(
                "{expected}, found HEIC: convert it to JPEG or PNG first \
                 (on a Mac: sips -s format jpeg in.heic --out out.jpg)"
            ),
        ),
        (
            b"\0\0\0\x14ftypavif\0\0\0\0mif1",
            format!(
                "{expected}, found AVIF: convert it to JPEG or PNG first \
                 (on a Mac: sips -s format jpeg in.avif --out out.jpg)"
            ),
        ),
        (b"%PDF-1.7\n", format!("{expected}, found PDF: render its pages to images first")),
        (mp4, format!("{video} (--video shows all of it)")),
    ];
    for (bytes, message) in cases {
        let photo = files.write("photo.jpg", bytes);
        let found = lance_mm(["ask", &photo, "What?"]);
        assert_eq!(found.error(), format!("{photo}: {message}"));
    }
    let found = with_input(["ask", "-", "What?"], mp4);
    assert_eq!(found.error(), format!("standard input: {video} (a video must be a file)"));
}

#[test]
#[cfg(target_os = "linux")]
fn files_that_are_no_images_are_not_read_to_their_end() {
    let files = Files::new();
    let clip = files.write("clip", b"\0\0\0\x14ftypisom\0\0\0\0mp41");
    // Far more than the memory, of which the file system holds the beginning only.
    fs::OpenOptions::new().write(true).open(&clip).unwrap().set_len(1 << 40).unwrap();
    let found = lance_mm(["ask", &clip, "What?"]);
    assert!(found.error().contains("found MP4 or QuickTime"), "{}", found.stderr);
    // Of standard input no end comes.
    let zeros = fs::File::open("/dev/zero").unwrap();
    let found = run(command().args(["ask", "-", "What?"]).stdin(zeros));
    assert!(found.error().ends_with("found an unknown format"), "{}", found.stderr);
}

#[test]
fn a_folder_is_a_model() {
    let files = Files::nano();
    let (nano, plate) = (files.arg("nano"), files.demo(2));
    let by_option = lance_mm(["ask", "--model", &nano, &plate, PLATE]);
    assert_eq!((by_option.stdout.as_str(), by_option.stderr.as_str()), ("BX62 BFY\n", ""));
    let by_variable = run(command().args(["ask", &plate, PLATE]).env("LANCE_MM_MODEL", &nano));
    assert_eq!((by_variable.stdout.as_str(), by_variable.stderr.as_str()), ("BX62 BFY\n", ""));
    let bundled = run(command().args(["ask", "-m", "nano", &plate, PLATE]).env("LANCE_MM_MODEL", &nano));
    assert_eq!((bundled.stdout.as_str(), bundled.stderr.as_str()), ("BX62 BFY\n", NOTE));
}

#[test]
#[cfg(target_os = "linux")]
fn names_that_are_not_utf8_can_be_told_apart() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let files = Files::demos();
    let names: Vec<_> = [&b"a\xff.png"[..], b"a\xfe.png", b"b\xff.png"].map(OsStr::from_bytes).into();
    for name in &names[..2] {
        fs::copy(files.demo(2), files.root().join(name)).unwrap();
    }
    let found = run(command()
        .args(["ask", "-q", "-n", "1", "--each"])
        .args(&names)
        .arg(PLATE)
        .current_dir(files.root()));
    let sources: Vec<Value> = found
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["images"][0].take())
        .collect();
    let expected = [("a\\xFF.png", "a%FF.png"), ("a\\xFE.png", "a%FE.png"), ("b\\xFF.png", "b%FF.png")];
    for (source, (name, bytes)) in sources.iter().zip(expected) {
        assert_eq!((&source["source"], &source["source_bytes"]), (&name.into(), &bytes.into()));
    }
    assert_eq!((sources.len(), found.code), (3, 1), "{}", found.stderr);
    assert!(found.stderr.starts_with("error: b\\xFF.png: No such file"), "{}", found.stderr);
}

#[test]
fn misspelt_names_and_addresses_get_a_hint() {
    let files = Files::demos();
    let address = "expected a file, found an address: download it first (curl ";
    for (path, expected) in [
        ("https://example.org/a.png".to_owned(), address),
        ("htps://example.org/a.png".into(), address),
        ("http:/example.org/a.png".into(), address),
        ("file:///home/a.png".into(), "expected a path, found an address: write /home/a.png"),
        (files.demo(2).replace("plate", "palte"), "(did you mean demo_plate.png?)"),
        (files.arg("other.png"), "(os error 2)"),
    ] {
        for args in
            [["ask", &path, "What?"].as_slice(), &["chat", &path], &["ask", "--video", &path, "What?"]]
        {
            let found = lance_mm(args);
            assert!(found.error().starts_with(&path) && found.error().contains(expected), "{}", found.stderr);
        }
    }
}
