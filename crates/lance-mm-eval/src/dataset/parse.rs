//! The forms of a file of questions: a JSON object a line, one list of them, or the cases of the nano model.

use std::fmt;
use std::path::Path;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Dataset, ImageSource, Media, Sample, bad};
use crate::error::Result;

/// Keys of a row. `file` and `task` occur in the cases of the nano model, where `kind` is that of the image.
const KEYS: [&str; 9] =
    ["image", "images", "video", "question", "answer", "expected", "kind", "file", "task"];
/// Keys of images or a video.
const MEDIA: [&str; 4] = ["image", "file", "images", "video"];

/// Reads the text of a file called `name` whose paths are relative to `dir`.
pub(super) fn dataset(text: &str, name: &str, dir: &Path) -> Result<Dataset> {
    let in_file = |error| refused(name, &error, None);
    let samples: Result<Vec<Sample>> = if text.trim_start().starts_with('[') {
        let rows: Vec<Row> = serde_json::from_str(text).map_err(in_file)?;
        rows.into_iter().enumerate().map(|(i, row)| row.sample(format!("{name}: [{i}]"), dir)).collect()
    } else if serde_json::from_str::<Head>(text).is_ok_and(|head| head.cases.is_some()) {
        let cases = serde_json::from_str::<Cases>(text).map_err(in_file)?.cases.into_iter().enumerate();
        cases.map(|(i, Case(row))| row.sample(format!("{name}: cases[{i}]"), dir)).collect()
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let row = |(i, line)| {
            let row: Row = serde_json::from_str(line).map_err(|error| refused(name, &error, Some(i + 1)))?;
            row.sample(format!("{name}: line {}", i + 1), dir)
        };
        lines.map(row).collect()
    };
    let samples = samples?;
    if samples.is_empty() {
        return Err(bad(name, "expected at least one sample, found none"));
    }
    Ok(Dataset { name: name.to_owned(), samples })
}

/// The error of serde_json with its line, or `line` where it read one alone, in our words.
fn refused(name: &str, error: &serde_json::Error, line: Option<usize>) -> crate::Error {
    let text = error.to_string();
    let cause = text.rsplit_once(" at line ").map_or(text.as_str(), |(cause, _)| cause);
    let message = if let Some((key, rest)) = cause.split_once("invalid type: ")
        && let Some((found, expected)) = rest.rsplit_once(", expected ")
    {
        format!("{key}expected {expected}, found {found}")
    } else if cause.starts_with("expected ") || cause.contains(": expected ") {
        cause.to_owned()
    } else {
        format!("expected a JSON object: {cause} at column {}", error.column())
    };
    bad(&format!("{name}: line {}", line.unwrap_or(error.line())), message)
}

/// Beginning of a file of cases.
#[derive(Deserialize)]
struct Head {
    cases: Option<IgnoredAny>,
}

/// The cases of the nano model.
#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

/// A row whose other keys are left alone: a case says more than its question.
struct Case(Row);

/// The values of a row. Null is no value.
#[derive(Default)]
struct Row {
    texts: Vec<(&'static str, String)>,
    images: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(RowVisitor { strict: true })
    }
}

impl<'de> Deserialize<'de> for Case {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(RowVisitor { strict: false }).map(Self)
    }
}

struct RowVisitor {
    /// Whether unknown keys are refused.
    strict: bool,
}

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Row;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Row, A::Error> {
        let (mut row, mut seen) = (Row::default(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            let Some(name) = KEYS.into_iter().find(|name| *name == key) else {
                if self.strict {
                    return Err(A::Error::custom(unknown(&key)));
                }
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("{name}: expected one value, found two")));
            }
            seen.push(name);
            let with_key = |error: A::Error| A::Error::custom(format!("{name}: {error}"));
            if name == "images" {
                row.images = map.next_value().map_err(with_key)?;
            } else if let Some(text) = map.next_value().map_err(with_key)? {
                row.texts.push((name, text));
            }
        }
        Ok(row)
    }
}

/// The error of a key that is none of ours, with the nearest of these.
fn unknown(key: &str) -> String {
    let distance = |name: &&'static str| (strsim::damerau_levenshtein(name, key), *name);
    // The distance of a long key would take long.
    let nearest = KEYS[..7].iter().filter(|_| key.len() < 32).map(distance).min();
    let nearest = nearest.filter(|(distance, _)| *distance <= 2 && 2 * distance <= key.len());
    let hint = nearest.map_or(String::new(), |(_, name)| format!(" (did you mean {name}?)"));
    format!("expected the keys {}, found {key:?}{hint}", KEYS[..7].join(", "))
}

impl Row {
    /// The first of these texts that is there.
    fn text(&self, names: &[&str]) -> Option<&str> {
        let of = |name: &&str| self.texts.iter().find(|(key, _)| key == name);
        names.iter().find_map(of).map(|(_, text)| text.as_str())
    }

    fn sample(self, place: String, dir: &Path) -> Result<Sample> {
        let media = self.media(&place, dir)?;
        let Some(question) = self.text(&["question"]) else {
            return Err(bad(&place, "question: expected a text, found no such field"));
        };
        // An empty question asks for a caption, blanks are a mistake.
        for (key, text) in &self.texts {
            if text.trim().is_empty() && !(*key == "question" && text.is_empty()) {
                return Err(bad(&place, format!("{key}: expected a text, found {text:?}")));
            }
        }
        let of_case = self.text(&["file"]).is_some();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Sample {
            media,
            question: question.to_owned(),
            answer: owned(self.text(&["answer"])),
            expected: owned(self.text(&["expected"])),
            kind: owned(self.text(if of_case { &["task", "kind"] } else { &["kind", "task"] })),
            place,
        })
    }

    fn media(&self, place: &str, dir: &Path) -> Result<Media> {
        let is_given =
            |key: &&str| if *key == "images" { self.images.is_some() } else { self.text(&[key]).is_some() };
        let given: Vec<&str> = MEDIA.into_iter().filter(is_given).collect();
        let image = |path: &String| ImageSource::File(dir.join(path));
        match (given.as_slice(), &self.images) {
            (["images"], Some(paths))
                if paths.is_empty() || paths.iter().any(|path| path.trim().is_empty()) =>
            {
                Err(bad(place, format!("images: expected a list of paths, found {paths:?}")))
            }
            (["images"], Some(paths)) => Ok(Media::Images(paths.iter().map(image).collect())),
            ([key], _) => {
                let path = dir.join(self.text(&[key]).unwrap_or_default());
                Ok(if *key == "video" {
                    Media::Video(path)
                } else {
                    Media::Images(vec![ImageSource::File(path)])
                })
            }
            _ => {
                let found = if given.is_empty() { "none of them".to_owned() } else { given.join(" and ") };
                Err(bad(place, format!("expected one of image, images and video, found {found}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::result::Result<Dataset, String> {
        dataset(text, "d.jsonl", Path::new("/data")).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_with_every_field() {
        let text = r#"{"image": "a.png", "question": "What?", "answer": "A", "kind": "k", "expected": "e"}

            {"images": ["a.png", "/b.png"], "question": ""}
            {"video": "clip", "question": "What?", "answer": null}"#;
        let samples = read(text).unwrap().samples;
        assert_eq!(samples[0].media, Media::Images(vec![ImageSource::File("/data/a.png".into())]));
        assert_eq!(
            (samples[0].wanted(), samples[0].kind.as_deref(), samples[0].answer.as_deref()),
            (Some("e"), Some("k"), Some("A"))
        );
        assert_eq!(samples[1].media.names(), ["a.png", "b.png"]);
        assert_eq!(samples[2].media, Media::Video("/data/clip".into()));
        assert_eq!((samples[2].place.as_str(), samples[2].wanted()), ("d.jsonl: line 4", None));
        let told = samples.iter().map(|sample| sample.is_answered_by("The 2 houses")).collect::<Vec<_>>();
        assert_eq!(told, [Some(true), None, None], "`expected` is e, whatever the answer counts");
        assert_eq!(samples[0].is_answered_by("2"), Some(false));
    }

    #[test]
    fn lists_and_cases() {
        let case = r#"{"file": "a.png", "kind": "pie", "task": "chart", "question": "What?", "answer": "A"}"#;
        let more = case.replacen('{', "{\"size\": [1, 2], ", 1);
        for text in [format!("{{\"count\": 1, \"cases\": [{more}]}}"), format!("[{case}]"), case.to_owned()] {
            let samples = read(&text).unwrap().samples;
            assert_eq!((samples.len(), samples[0].kind.as_deref()), (1, Some("chart")));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let row = |rest: &str| format!("{{\"image\": \"a\", \"question\": \"q\"{rest}}}");
        let keys = "expected the keys image, images, video, question, answer, expected, kind, found";
        for (text, expected) in [
            (String::new(), "expected at least one sample, found none"),
            ("[]".into(), "expected at least one sample, found none"),
            ("{\"cases\": 3}".into(), "line 1: expected a sequence, found integer `3`"),
            (
                row("") + "\n{\"image\":",
                "line 2: expected a JSON object: image: EOF while parsing a value at column 9",
            ),
            ("3".into(), "line 1: expected a JSON object, found integer `3`"),
            (
                "{\"question\": \"q\"}".into(),
                "line 1: expected one of image, images and video, found none of them",
            ),
            (
                row(", \"video\": \"b\""),
                "line 1: expected one of image, images and video, found image and video",
            ),
            ("{\"image\": \"a\"}".into(), "line 1: question: expected a text, found no such field"),
            ("\n\r\n{\"image\": 3}".into(), "line 3: image: expected a string, found integer `3`"),
            (
                "{\"images\": [], \"question\": \"q\"}".into(),
                "line 1: images: expected a list of paths, found []",
            ),
            ("{\"images\": [1]}".into(), "line 1: images: expected a string, found integer `1`"),
            ("{\"images\": \"a\"}".into(), "line 1: images: expected a sequence, found string \"a\""),
            (
                format!("[{},\n{}]", row(""), row(", \"answer\": [1]")),
                "line 2: answer: expected a string, found sequence",
            ),
            (
                row("") + "\n" + &row(", \"anwser\": \"A\""),
                &format!("line 2: {keys} \"anwser\" (did you mean answer?)"),
            ),
            (row(", \"id\": 7"), &format!("line 1: {keys} \"id\"")),
            (row(", \"question\": \"r\""), "line 1: question: expected one value, found two"),
            (row(", \"answer\": \"\""), "line 1: answer: expected a text, found \"\""),
            (
                "{\"image\": \"a\", \"question\": \" \"}".into(),
                "line 1: question: expected a text, found \" \"",
            ),
            ("{\"image\": \"\", \"question\": \"q\"}".into(), "line 1: image: expected a text, found \"\""),
        ] {
            assert_eq!(read(&text).unwrap_err(), format!("d.jsonl: {expected}"), "{text}");
        }
    }

    #[test]
    fn line_ends_of_other_systems_are_no_text() {
        let row = r#"{"image": "a", "question": "q"}"#;
        for text in [format!("{row}\r\n\r\n{row}\r\n"), format!("[{row},\r\n{row}]\n")] {
            let samples = read(&text).unwrap().samples;
            assert!(samples.len() == 2 && samples.iter().all(|sample| sample.question == "q"));
        }
    }

    #[test]
    fn samples_of_one_image_come_together() {
        let line = |image: &str| format!("{{\"image\": \"{image}\", \"question\": \"q\"}}\n");
        let data = read(&["a", "b", "a", "c", "b"].map(line).concat()).unwrap();
        assert_eq!(data.by_media(), [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(data.limited(2).samples.len(), 2);
    }
}
