//! `lance-mm bench`.

use serde_json::Value;

use crate::support::{Files, NANO_BF16, command, lance_mm, run};

#[test]
fn every_part_is_measured_against_a_limit() {
    let run = lance_mm(["bench", "--quick", "--json", "--cases"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(json["machine"]["threads"].as_u64().unwrap() > 0);
    let limits: Vec<&str> = names(&json["machine"]["limits"]);
    assert_eq!(limits[0], "read bandwidth");
    assert!(limits[1].starts_with("int8 peak, ") && limits[2].starts_with("bf16 peak, "), "{limits:?}");

    let model = &json["models"][0];
    assert_eq!((model["name"].as_str(), model["quantized"].as_bool()), (Some("bundled nano"), Some(true)));
    let found = names(&model["rows"]);
    for what in [
        "load",
        "time to first token",
        "second question to first",
        "decode after 64 tokens",
        "decode after 4096 tokens",
        "weights of a step, read",
        "decode to reading its weights",
        "decode of 8 sequences",
        "8 sequences to one",
        "prompt of 512 tokens",
        "prompt of 1024 tokens",
        "vision encoder, 504 x 504 pixels",
        "vision encoder, 1008 x 1008 pixels",
    ] {
        assert!(found.contains(&what), "{what}: {found:?}");
    }
    if cfg!(target_os = "linux") {
        assert!(found.contains(&"peak memory, anonymous"), "{found:?}");
    }
    for row in model["rows"].as_array().unwrap() {
        assert!(row["median"].as_f64().unwrap() > 0.0 && row["min"].as_f64() <= row["max"].as_f64(), "{row}");
        if let Some(share) = row["share"]["median"].as_f64() {
            assert!(share > 0.0 && share.is_finite(), "{row}");
        }
    }
    let cases = model["cases"].as_array().unwrap();
    assert_eq!(cases.len(), lance_mm_nano::DEMOS.len());
    for (case, demo) in cases.iter().zip(&lance_mm_nano::DEMOS) {
        assert_eq!(case["question"], demo.question);
        let number = |name: &str| case[name].as_f64().unwrap();
        let rest = number("seconds_per_token") * number("tokens");
        assert!((number("seconds") - number("prompt_seconds") - rest).abs() < 1e-9, "{case}");
    }
}

fn names(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect()
}

#[test]
fn several_models_stand_side_by_side() {
    let run = lance_mm(["bench", "nano", "nano", "--quick", "--only", "prefill", "--low-memory"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("## Ratios to bundled nano"), "{}", run.stdout);
    assert!(!run.stdout.contains("decode") && !run.stdout.contains("## Answers"), "{}", run.stdout);
}

#[test]
fn what_follows_cases_is_a_model_and_none_is_that_of_the_environment() {
    let measured = |args: &[&str]| {
        let quick = ["bench", "--quick", "--json", "--only", "prefill"];
        let found = run(command().args(quick).args(args).env("LANCE_MM_MODEL", NANO_BF16));
        let json: Value = serde_json::from_str(&found.stdout).unwrap();
        let models = json["models"].as_array().unwrap();
        assert_eq!((found.code, models.len()), (0, 1), "{}", found.stderr);
        let cases = models[0]["cases"].as_array().map_or(0, Vec::len);
        (models[0]["name"].as_str().unwrap().to_owned(), cases)
    };
    assert_eq!(measured(&["--cases", "nano"]), ("bundled nano".to_owned(), lance_mm_nano::DEMOS.len()));
    assert_eq!(measured(&[]), (NANO_BF16.to_owned(), 0));
}

#[test]
#[cfg(target_os = "linux")]
fn a_soak_test_reads_memory_at_ten_points() {
    let soak = |questions: &str, more: &[&str]| {
        lance_mm([&["bench", "-q", "--only", "soak", "--questions", questions], more].concat())
    };
    let json: Value = serde_json::from_str(&soak("40", &["--json"]).stdout).unwrap();
    let model = &json["models"][0];
    assert_eq!(model["rows"].as_array().unwrap().len(), 0, "no other part");
    let points = model["soak"]["points"].as_array().unwrap();
    assert_eq!((points.len(), &points[0]["questions"], &points[9]["questions"]), (10, &4.into(), &40.into()));
    assert!(model["soak"]["bytes_per_question"].as_f64().is_some());
    let table = soak("40", &[]);
    assert!(table.stdout.contains("Slope of anonymous memory: "), "{}", table.stdout);
    assert!(soak("9", &[]).error().starts_with("--questions: expected at least 40"));
}

#[test]
fn what_cannot_be_measured_is_told() {
    let files = Files::demos();
    assert!(lance_mm(["bench", "/nowhere"]).error().contains("/nowhere"));
    let cases = lance_mm(["bench", "--cases=/nowhere.jsonl"]);
    assert!(cases.error().contains("/nowhere.jsonl"));
    assert!(lance_mm(["bench", &files.demo(0)]).error().contains("demo_chart.png"));
    assert_eq!(lance_mm(["bench", "--only", "speed"]).code, 2);
}
