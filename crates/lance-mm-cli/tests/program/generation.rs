//! `lance-mm generate`, `edit`, `video`, `edit-video`, on a model with random weights.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Files, Run, command, lance_mm, run, with_input};

/// A checkpoint of both experts with a VAE, in `model`.
pub(crate) fn model() -> Files {
    let files = Files::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    fs::create_dir(files.path("model")).unwrap();
    for (from, names) in [
        (
            "generation/ckpt/mlx",
            &["config.json", "model.safetensors", "tokenizer.json", "vit.safetensors"][..],
        ),
        ("vae/ckpt/mlx", &["vae.safetensors"]),
    ] {
        for name in names {
            let bytes = fs::read(fixtures.join(from).join(name)).unwrap();
            files.write(&format!("model/{name}"), &bytes);
        }
    }
    files
}

/// An image of 32 x 32 pixels in two steps, unless `args` say otherwise.
fn generate(files: &Files, out: &str, args: &[&str]) -> Run {
    let (model, out) = (files.arg("model"), files.arg(out));
    let base = ["generate", "A red fox", "-o", &out, "-m", &model];
    let small: &[&str] = if args.contains(&"--size") { &[] } else { &["--size", "32x32"] };
    let short: &[&str] = if args.contains(&"--steps") { &[] } else { &["--steps", "2"] };
    lance_mm([&base, small, short, args].concat())
}

/// Everything in the folder but the model.
fn results(files: &Files) -> Vec<String> {
    let names = fs::read_dir(files.root()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "model").collect();
    names.sort();
    names
}

fn decoded(path: &Path) -> (png::Info<'static>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    (reader.info().clone(), pixels)
}

#[test]
fn the_same_seed_gives_the_same_file_and_says_how() {
    let files = model();
    let first = generate(&files, "a.png", &["--stats"]);
    let again = generate(&files, "b.png", &["--low-memory"]);
    assert_eq!((first.code, first.stdout), (0, format!("{}\n", files.arg("a.png"))), "{}", first.stderr);
    for part in ["load ", "prompt ", "steps ", "VAE decoder ", "file ", "s in all"] {
        assert!(first.stderr.contains(part), "no {part} in {}", first.stderr);
    }
    assert_eq!((again.code, again.stderr.contains("VAE")), (0, false), "{}", again.stderr);
    assert_eq!(fs::read(files.path("a.png")).unwrap(), fs::read(files.path("b.png")).unwrap());
    assert_eq!(results(&files), ["a.png", "b.png"]);

    let (info, _) = decoded(&files.path("a.png"));
    assert_eq!((info.width, info.height), (32, 32));
    let text = |keyword: &str| {
        let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword).unwrap();
        chunk.get_text().unwrap()
    };
    assert_eq!((text("prompt").as_str(), text("seed").as_str()), ("A red fox", "42"));
    let settings: serde_json::Value = serde_json::from_str(&text("settings")).unwrap();
    assert_eq!(
        (&settings["steps"], &settings["guidance"], &settings["model"]),
        (&2.into(), &4.0.into(), &"model".into())
    );
    assert_eq!((&settings["activations"], &settings["device"]), (&"bf16".into(), &"cpu".into()));
    assert!(!text("settings").contains(files.root().to_str().unwrap()), "a path of this machine");
}

#[test]
fn several_images_have_one_seed_after_the_other() {
    let files = model();
    let two = generate(&files, "fox.png", &["--count", "2", "--seed", "7", "-q"]);
    assert_eq!((two.code, two.stdout.lines().count(), two.stderr.as_str()), (0, 2, ""));
    let eight = generate(&files, "eight.png", &["--seed", "8", "-q"]);
    assert_eq!(eight.code, 0);
    let [first, second, eight] =
        ["fox-1.png", "fox-2.png", "eight.png"].map(|n| fs::read(files.path(n)).unwrap());
    assert!(second == eight && first != second);
}

#[test]
fn all_images_are_generated_when_nobody_reads_where_they_are() {
    let files = model();
    let (model, out) = (files.arg("model"), files.arg("fox.png"));
    let args = ["generate", "A fox", "-o", &out, "-m", &model, "--size", "32x32", "--steps", "1"];
    let mut child = command().args(args).args(["--count", "3", "-q"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(results(&files), ["fox-1.png", "fox-2.png", "fox-3.png"]);
}

#[test]
fn the_number_of_threads_does_not_change_the_image() {
    let files = model();
    let pixels = |threads: &str| {
        let out = files.arg(&format!("{threads}.png"));
        let args =
            ["generate", "A fox", "-o", &out, "-m", &files.arg("model"), "--size", "64x64", "--steps", "3"];
        assert_eq!(run(command().args(args).env("RAYON_NUM_THREADS", threads)).code, 0);
        decoded(Path::new(&out)).1
    };
    let (one, four) = (pixels("1"), pixels("4"));
    assert!(one.iter().zip(&four).all(|(a, b)| a.abs_diff(*b) <= 1));
}

#[test]
fn bad_input_is_told_before_any_work_and_leaves_nothing() {
    let files = model();
    let (model, out) = (files.arg("model"), files.arg("out.png"));
    let (broken, missing) = (files.write("broken.jpg", b"no image"), files.arg("none/out.png"));
    let clip = files.write("clip.png", b"\x1a\x45\xdf\xa3 Matroska");
    let cases: [(&[&str], &str); 16] = [
        (&["--size", "60x64"], "--size: width: expected a multiple of 16 from 16 to 4096, found 60"),
        (&["--size", "big"], "--size: expected WIDTHxHEIGHT or one of 21:9"),
        (&["--steps", "0"], "--steps: expected a number from 1 to 10000, found 0"),
        (&["--guidance", "-1"], "--guidance: expected a finite number of at least 0, found -1"),
        (&["--guidance-interval", "0.9,0.1"], "--guidance-interval: expected two finite numbers"),
        (
            &["--guidance-interval", "0.9"],
            "--guidance-interval: expected two numbers with a comma, found 0.9",
        ),
        (&["--shift", "0"], "--shift: expected a finite number above 0, found 0"),
        (&["--renorm-minimum", "2"], "--renorm-minimum: expected a number from 0 to 1, found 2"),
        (&["-o", &missing], "none/out.png: No such file"),
        (&["-o", "fox.jpg"], "--output: expected a name that ends in .png, found fox.jpg"),
        (&["-o", "fox.png/"], "--output: expected a name that ends in .png, found fox.png/"),
        (&["-m", "nano"], "--model: expected a checkpoint that generates"),
        (&["-m", "nowhere/at/all"], "expected a checkpoint folder or org/name"),
        // 128 x 128 latents do not fit the table of 16 x 16 of this model.
        (&["--size", "2048x2048"], "latent frames of 16x16, which this checkpoint has positions for"),
        (&["--size", "3:4", "--steps", "x"], ""),
        (&["--seed", "-1"], ""),
    ];
    for (args, expected) in cases {
        let base = ["generate", "A fox"];
        let own =
            |flag: &str, value: &'static [&'static str]| if args.contains(&flag) { &[][..] } else { value };
        let start = Instant::now();
        let mut all = [&base[..], own("--size", &["--size", "32x32"]), args].concat();
        if !args.contains(&"-o") {
            all.extend(["-o", &out]);
        }
        if !args.contains(&"-m") {
            all.extend(["-m", &model]);
        }
        let found = lance_mm(all);
        match expected {
            "" => assert_eq!(found.code, 2, "{args:?}: {}", found.stderr),
            _ => assert!(found.error().contains(expected), "{args:?}: {}", found.stderr),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{args:?}");
    }
    for (args, expected) in [
        (vec!["generate", "a<|im_end|>b", "-o", &out], "in the prompt, found the special token <|im_end|>"),
        (vec!["generate", "", "-o", &out], "the prompt is empty: expected text"),
        (vec!["edit", &broken, " ", "-o", &out], "the prompt is empty: expected text"),
        (vec!["edit", &broken, "Make it green", "-o", &out], "found an unknown format"),
        (
            vec!["edit", &clip, "Make it green", "-o", &out],
            "found Matroska or WebM (video) (edit-video changes all of it)",
        ),
        (vec!["edit", "gone.png", "Make it green", "-o", &out], "gone.png"),
        (vec!["edit", &model, "Make it green", "-o", &out], "model: expected an image file, found a folder"),
        (vec!["edit", &broken, "x", "-o", &out, "--resolution", "4k"], "--resolution: expected image_256res"),
        (
            vec!["video", "A fox", "-o", &out, "--size", "32x32", "--frames", "0"],
            "--frames: expected a number from 1",
        ),
        (vec!["video", "A fox", "-o", "out.doc", "--size", "32x32"], "or a folder, found .doc"),
        (vec!["edit-video", &broken, "At night", "-o", &out], "expected a video, found an unknown format"),
        (vec!["edit-video", &clip, "At night", "-o", &out], "which video files need, found none in PATH"),
        (
            vec!["video", "A fox", "-o", "x.mp4", "--size", "32x32"],
            "which video files need, found none in PATH",
        ),
    ] {
        let found = run(command().args(&args).args(["-m", &model]).env("PATH", "/nonexistent"));
        assert!(found.error().contains(expected), "{args:?}: {}", found.stderr);
    }
    for [command, option, value] in [
        ["generate", "--count", "0"],
        ["generate", "--count", "4294967295"],
        ["generate", "--steps", "-3"],
        ["video", "--frames", "-1"],
    ] {
        let found = lance_mm([command, "A fox", "-o", &out, "-m", &model, option, value]);
        assert_eq!(found.code, 2, "{option}");
        let expected = format!("error: invalid value '{value}' for '{option} <N>': ");
        assert!(found.stderr.starts_with(&expected), "{}", found.stderr);
    }
    assert_eq!(results(&files), ["broken.jpg", "clip.png"]);
}

#[test]
fn a_prompt_over_the_limit_is_refused() {
    let files = model();
    let config = fs::read_to_string(files.path("model/config.json")).unwrap();
    files.write("model/config.json", config.replace("128000", "45").as_bytes());
    let found = generate(&files, "a.png", &[]);
    assert!(found.error().contains("prompt: expected at most"), "{}", found.stderr);
    assert!(results(&files).is_empty());
}

#[test]
fn every_task_writes_every_form() {
    let files = model();
    let model = files.arg("model");
    assert_eq!(generate(&files, "fox.png", &["--size", "64x48"]).code, 0);
    let fox = files.arg("fox.png");
    let generate = |args: &[&str]| {
        let found = lance_mm([args, &["-m", &model, "--steps", "1", "-q"]].concat());
        assert_eq!((found.code, found.stderr.as_str()), (0, ""), "{args:?}");
    };
    let small = ["--resolution", "video_192p"];
    generate(&["edit", &fox, "Make it green", "-o", &files.arg("green.png"), "--resolution", "image_256res"]);
    let (info, _) = decoded(&files.path("green.png"));
    assert_eq!((info.width, info.height), (304, 224));

    generate(&["video", "It runs", "-o", &files.arg("a.gif"), "--size", "32x48", "--frames", "10"]);
    generate(&["video", "It runs", "-o", &files.arg("b.webp"), "--size", "32x32", "--frames", "5"]);
    generate(
        &[&["video", "It turns", "-o", &files.arg("c.png"), "--image", &fox, "--frames", "5"], &small[..]]
            .concat(),
    );
    let (info, _) = decoded(&files.path("c.png"));
    assert_eq!((info.width, info.height), (304, 224));
    assert_eq!(info.animation_control.unwrap().num_frames, 5);
    generate(
        &[&["edit-video", &files.arg("a.gif"), "At night", "-o", &files.arg("d/")], &small[..]].concat(),
    );
    let mut frames: Vec<String> = fs::read_dir(files.path("d"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    frames.sort();
    // Nine frames at 12.5 a second: nine are sampled.
    assert_eq!((frames.len(), frames[0].as_str()), (9, "001.png"), "{frames:?}");
    let again =
        lance_mm(["video", "x", "-o", &files.arg("d"), "--size", "32x32", "--steps", "1", "-m", &model]);
    assert!(again.error().contains("expected an empty folder or nothing"), "{}", again.stderr);
    assert_eq!(results(&files), ["a.gif", "b.webp", "c.png", "d", "fox.png", "green.png"]);
}

#[test]
fn standard_input_can_be_the_source() {
    let files = model();
    assert_eq!(generate(&files, "fox.png", &["--size", "64x48"]).code, 0);
    let (fox, model) = (files.arg("fox.png"), files.arg("model"));
    let bytes = fs::read(&fox).unwrap();
    let (by_name, by_input) = (files.arg("a.png"), files.arg("b.png"));
    let edit = |source: &str, out: &str, input: &[u8]| {
        let args = ["edit", source, "Make it green", "-o", out, "-m", &model, "--steps", "1", "-q"];
        with_input(args.iter().chain(&["--resolution", "image_256res"]), input)
    };
    for (source, out) in [(fox.as_str(), &by_name), ("-", &by_input)] {
        let found = edit(source, out, &bytes);
        assert_eq!((found.code, found.stderr.as_str()), (0, ""), "{source}");
    }
    assert!(fs::read(by_name).unwrap() == fs::read(by_input).unwrap());
    let found = edit("-", &files.arg("c.png"), b"");
    assert!(found.error().ends_with("found no data"), "{}", found.stderr);

    let out = files.arg("d.png");
    let args = ["video", "It turns", "--image", "-", "-o", &out, "-m", &model, "--frames", "1", "-q"];
    let found = with_input(args.iter().chain(&["--steps", "1", "--resolution", "video_192p"]), &bytes);
    assert_eq!((found.code, found.stderr.as_str()), (0, ""));
}

#[test]
fn sources_are_turned_upright() {
    let files = model();
    // Orientation 6: what lies 64 wide and 32 high is a portrait.
    let mut info = png::Info::with_size(64, 32);
    info.color_type = png::ColorType::Rgb;
    info.exif_metadata = Some(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".into());
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
    writer.write_image_data(&[90; 64 * 32 * 3]).unwrap();
    writer.finish().unwrap();
    let photo = files.write("photo.png", &bytes);
    fs::create_dir(files.path("frames")).unwrap();
    for name in ["frames/1.png", "frames/2.png"] {
        files.write(name, &bytes);
    }

    let (frames, model, out) = (files.arg("frames"), files.arg("model"), files.arg("a.png"));
    for task in [
        &["edit", &photo, "x", "--resolution", "image_256res"][..],
        &["video", "x", "--image", &photo, "--frames", "1", "--resolution", "video_192p"],
        &["edit-video", &frames, "x", "--resolution", "video_192p"],
    ] {
        for (option, portrait) in [(None, true), (Some("--no-auto-orient"), false)] {
            let found =
                run(command().args(task).args(["-o", &out, "-m", &model, "--steps", "1"]).args(option));
            assert_eq!(found.code, 0, "{task:?}: {}", found.stderr);
            let (info, _) = decoded(Path::new(&out));
            assert_eq!(info.height > info.width, portrait, "{task:?} {option:?}");
        }
    }
}

#[test]
fn quantized_weights_are_refused_unless_they_are_allowed() {
    let files = model();
    let (model, packed) = (files.arg("model"), files.arg("packed"));
    let made = lance_mm([
        "quantize",
        &model,
        &packed,
        "--recipe",
        "rtn",
        "--group-size",
        "32",
        "--gen",
        "fit",
        "-q",
    ]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let generate = |args: &[&str]| {
        let base = ["generate", "A fox", "--size", "32x32", "--steps", "1", "-m", &packed, "-o"];
        lance_mm([&base[..], &[&files.arg("a.png")], args].concat())
    };
    let refused = generate(&[]);
    let error = refused.error();
    for part in [
        "text to image: expected weights that are not quantized",
        "4 bits",
        "Lance-3B-bf16",
        "lance-mm eval generation",
    ] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    assert!(!files.path("a.png").exists());
    let allowed = generate(&["--allow-quantized"]);
    assert!(allowed.code == 0 && allowed.stderr.contains("note: "), "{}", allowed.stderr);
    assert!(allowed.stderr.contains("nothing shows that its weights generate well"), "{}", allowed.stderr);

    // The second caption is refused before the first is generated.
    let captions = ["--prompt", "A fox", "--prompt", "a<|im_end|>b", "--size", "32x32"];
    let refused = lance_mm(["eval", "generation", &model, &packed].iter().chain(&captions));
    assert!(refused.error().contains("found the special token <|im_end|>"), "{}", refused.stderr);

    // What was published as the loss of quantizing is that of the noise: the candidate keeps it.
    let json = files.arg("report.json");
    let args =
        ["eval", "generation", &model, &packed, "--prompt", "A fox", "--size", "96x96", "--steps", "8"];
    let report = lance_mm([&args[..], &["--guidance", "1", "--each-step", "--json", &json]].concat());
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert!(report.stdout.contains("| REF, noise cast to u32 |"), "{}", report.stdout);
    // Of five passes.
    let steps: Vec<String> = (1..=10).map(|tenth| format!("steps: {} of 40", 4 * tenth)).collect();
    assert_eq!(report.stderr.lines().collect::<Vec<_>>(), steps);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(files.path("report.json")).unwrap()).unwrap();
    let prompt = &json["report"]["prompts"][0];
    let number = |pointer: &str| prompt.pointer(pointer).unwrap().as_f64().unwrap();
    assert!(number("/candidate/start/zeros") < 0.001 && number("/cast_noise/start/zeros") > 0.8);
    let error = |run: &str| number(&format!("/{run}/latents/relative_error")).sqrt();
    assert!(
        error("candidate") < 0.15 && error("cast_noise") > 0.4,
        "{} {}",
        error("candidate"),
        error("cast_noise")
    );
    assert_eq!(prompt["candidate"]["steps"].as_array().unwrap().len(), 8);
    assert!(number("/candidate/steps/0/image/ssim") > number("/cast_noise/steps/0/image/ssim"));

    // Who allows quantized weights is told what was measured of them.
    let kept = files.path("packed").join("eval-generation.json");
    fs::copy(files.path("report.json"), &kept).unwrap();
    let told = generate(&["--allow-quantized"]);
    let expected = format!(
        "1 of its images beside those of {model}, on average: PSNR {:.1} dB, SSIM {:.3}, fine detail {:+.1} %",
        number("/candidate/image/psnr"),
        number("/candidate/image/ssim"),
        100.0 * number("/candidate/image/hf_ratio_change"),
    );
    assert!(told.stderr.contains(&expected), "no {expected} in {}", told.stderr);
    fs::write(&kept, "{}").unwrap();
    let damaged = generate(&["--allow-quantized"]);
    let expected = format!("{}: expected a report of eval generation", kept.display());
    assert!(damaged.error().starts_with(&expected), "{}", damaged.stderr);
}

/// Interrupts a run as soon as a name that begins with `name` is in the folder; it must end with the code of an
/// interruption.
#[cfg(unix)]
fn interrupt(files: &Files, run: &mut std::process::Command, name: &str) {
    let mut child = run.arg("-q").stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let exists = || results(files).iter().any(|found| found.starts_with(name));
    while !exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(exists(), "no {name}");
    // Not SIGINT, which a shell that runs the tests in the background has them ignore.
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(143), "{name}");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_way_is_replaced() {
    let files = model();
    let diary = files.write("diary", b"precious");
    // The last is the hidden name of an earlier version.
    for name in ["a.png", ".partial-a.png"] {
        std::os::unix::fs::symlink(&diary, files.path(name)).unwrap();
    }
    let found = generate(&files, "a.png", &["--steps", "1"]);
    assert_eq!(found.code, 0, "{}", found.stderr);
    assert_eq!(fs::read(&diary).unwrap(), b"precious");
    assert!(fs::symlink_metadata(files.path("a.png")).unwrap().is_file());
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing() {
    let files = model();
    let (model, png) = (files.arg("model"), files.arg("a.png"));
    let generate = |steps| {
        let mut run = command();
        run.args(["generate", "A fox", "-o", &png, "-m", &model, "--size", "64x64", "--steps", steps]);
        run
    };
    interrupt(&files, &mut generate("9000"), ".a.png.");
    assert_eq!(results(&files), [""; 0]);
    // Images that are done stay.
    interrupt(&files, generate("500").args(["--count", "50"]), "a-1.png");
    let (done, left) = (results(&files), |i| format!("a-{i}.png"));
    assert!(done.len() < 50 && done.iter().all(|name| (1..50).any(|i| *name == left(i))), "{done:?}");
}

#[cfg(unix)]
#[test]
fn an_interruption_while_ffmpeg_writes_leaves_nothing() {
    let files = model();
    let bin = fake_ffmpeg(&files, &format!("touch {}; sleep 1;", files.arg("begun")));
    let mut run = command();
    run.args(["video", "A fox", "-o", &files.arg("a.mp4"), "-m", &files.arg("model"), "--size", "32x32"]);
    run.args(["--frames", "5", "--steps", "1"]).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    interrupt(&files, &mut run, "begun");
    // Nor does ffmpeg write anything once the program has ended.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(results(&files), ["begun", "bin", "calls"]);
}

/// Programs that stand for ffmpeg and ffprobe: they note how they were called, hand out frames of one colour
/// each, and keep what they are given, after the shell has run `first`.
#[cfg(unix)]
fn fake_ffmpeg(files: &Files, first: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let dir = files.path("bin");
    fs::create_dir(&dir).unwrap();
    let log = files.arg("calls");
    let probe = format!(
        "#!/bin/sh\necho \"ffprobe $*\" >> {log}\n\
         printf 'avg_frame_rate=24/1\\nnb_read_packets=20\\n'\n"
    );
    // The last argument is the file to write, or - for images to hand out.
    let ffmpeg = format!(
        "#!/bin/sh\necho \"ffmpeg $*\" >> {log}\nfor last; do :; done\n\
         case \"$last\" in\n-version) ;;\n-) {first} for i in 1 2 3 4 5 6 7 8 9; do printf 'P6\\n2 2\\n255\\n'; \
         printf \"$i$i$i$i$i$i$i$i$i$i$i$i\"; done ;;\n*) {first} cat > \"${{last#file:}}\" ;;\nesac\n"
    );
    for (name, text) in [("ffprobe", probe), ("ffmpeg", ffmpeg)] {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

#[cfg(unix)]
#[test]
fn video_files_go_through_ffmpeg() {
    let files = model();
    // It complains of more than a pipe holds, and would wait for ever if nobody read that.
    let bin = fake_ffmpeg(&files, "yes damaged | head -c 300000 >&2;");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let (model, clip) = (files.arg("model"), files.write("clip.mp4", b"\0\0\0\x14ftypisom\0\0\0\0mp41"));
    let out = files.arg("out.mp4");
    let args = ["edit-video", &clip, "At night", "-o", &out, "-m", &model, "--steps", "1", "-q"];
    let found = run(command().args(args).args(["--resolution", "video_192p"]).env("PATH", &path));
    assert_eq!((found.code, found.stderr.as_str()), (0, ""));
    // Nine frames of 256 x 256, as they went in.
    assert_eq!(fs::metadata(&out).unwrap().len(), 9 * 256 * 256 * 3);
    let calls = fs::read_to_string(files.path("calls")).unwrap();
    for part in [
        "select=eq(n\\,0)+eq(n\\,2)+eq(n\\,4)+eq(n\\,7)",
        "-video_size 256x256 -framerate 12",
        "-xerror",
        "file:",
    ] {
        assert!(calls.contains(part), "no {part} in {calls}");
    }
    assert_eq!(results(&files), ["bin", "calls", "clip.mp4", "out.mp4"]);

    let asked = run(command()
        .args(["ask", "-q", &clip, "What happens?", "-n", "2", "-m", &model])
        .env("PATH", &path));
    assert_eq!(asked.code, 0, "{}", asked.stderr);
    let json =
        run(command().args(["ask", "--json", &clip, "What?", "-n", "1", "-m", &model]).env("PATH", &path));
    assert!(
        json.stdout.contains("\"kind\":\"video\"") && json.stdout.contains("\"grid\":[5,"),
        "{}",
        json.stdout
    );

    // It is a video by its name, whose rate may be told without --video.
    let upper = files.write("IMG_1.MOV", b"\0\0\0\x14ftypqt  \0\0\0\0qt  ");
    for (fps, frames) in [("24", 9), ("12", 17)] {
        let args = ["ask", "-q", &upper, "What?", "-n", "1", "-m", &model, "--fps", fps];
        let asked = run(command().args(args).env("PATH", &path));
        assert_eq!(asked.code, 0, "{}", asked.stderr);
        let calls = fs::read_to_string(files.path("calls")).unwrap();
        let last = calls.lines().rfind(|line| line.contains("IMG_1.MOV")).unwrap();
        assert!(last.contains(&format!("-frames:v {frames} ")), "{last}");
    }

    // An error names the file, not only the program.
    fs::write(bin.join("ffmpeg"), "#!/bin/sh\n[ \"$1\" = -version ] || { echo no room >&2; exit 1; }\n")
        .unwrap();
    let asked = run(command().args(["ask", "-q", &clip, "What?", "-m", &model]).env("PATH", &path));
    assert_eq!(asked.error(), format!("{clip}: ffmpeg: no room"));
    let args =
        ["video", "A fox", "-o", &out, "-m", &model, "--size", "32x32", "--frames", "5", "--steps", "1"];
    let generated = run(command().args(args).arg("-q").env("PATH", &path));
    assert_eq!(generated.error(), format!("--output {out}: video: ffmpeg: no room"));
}
