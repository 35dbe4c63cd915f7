//! The two forms of a file of questions.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Dataset, ImageSource, Media, Sample, bad};
use crate::error::Result;

/// Reads the text of a file called `name` whose paths are relative to `dir`.
pub(super) fn dataset(text: &str, name: &str, dir: &Path) -> Result<Dataset> {
    let samples = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(list)) => list_of_samples(&list, name, "", dir)?,
        Ok(Value::Object(object)) if object.contains_key("cases") => match &object["cases"] {
            Value::Array(list) => list_of_samples(list, name, "cases", dir)?,
            other => return Err(bad(name, format!("cases: expected a list, found {}", kind(other)))),
        },
        _ => lines(text, name, dir)?,
    };
    if samples.is_empty() {
        return Err(bad(name, "expected at least one sample, found none"));
    }
    Ok(Dataset { name: name.to_owned(), samples })
}

fn lines(text: &str, name: &str, dir: &Path) -> Result<Vec<Sample>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let place = format!("{name}: line {}", i + 1);
            let value: Value = serde_json::from_str(line.trim_start_matches('\u{feff}'))
                .map_err(|error| bad(&place, format!("expected a JSON object: {}", cause(&error))))?;
            sample(&value, place, dir)
        })
        .collect()
}

fn list_of_samples(list: &[Value], name: &str, field: &str, dir: &Path) -> Result<Vec<Sample>> {
    let place = |i: usize| format!("{name}: {field}[{i}]");
    list.iter().enumerate().map(|(i, value)| sample(value, place(i), dir)).collect()
}

/// serde_json's word without its line number, which would be that of the line itself.
fn cause(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(" at line ") {
        Some((cause, _)) => format!("{cause} at column {}", error.column()),
        None => text,
    }
}

fn sample(value: &Value, place: String, dir: &Path) -> Result<Sample> {
    let Value::Object(object) = value else {
        return Err(bad(&place, format!("expected a JSON object, found {}", kind(value))));
    };
    let fields = Fields { object, place: &place };
    let media = fields.media(dir)?;
    let Some(question) = fields.text(&["question"])? else {
        return Err(bad(&place, "question: expected a text, found no such field"));
    };
    Ok(Sample {
        media,
        question,
        answer: fields.text(&["answer"])?,
        expected: fields.text(&["expected"])?,
        // In the cases of the nano model `kind` is that of the image and `task` that of the question.
        kind: fields.text(if object.contains_key("file") { &["task", "kind"] } else { &["kind", "task"] })?,
        place,
    })
}

struct Fields<'a> {
    object: &'a Map<String, Value>,
    place: &'a str,
}

impl Fields<'_> {
    /// The first of these fields that is there and not null.
    fn get(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.object.get(*name).filter(|v| !v.is_null())?)))
    }

    fn text(&self, names: &[&'static str]) -> Result<Option<String>> {
        match self.get(names) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text.clone())),
            Some((name, other)) => {
                Err(bad(self.place, format!("{name}: expected a text, found {}", kind(other))))
            }
        }
    }

    fn media(&self, dir: &Path) -> Result<Media> {
        let given: Vec<&str> = ["image", "file", "images", "video"]
            .into_iter()
            .filter(|name| self.get(&[*name]).is_some())
            .collect();
        if given.len() != 1 {
            let found = if given.is_empty() { "none of them".to_owned() } else { given.join(" and ") };
            return Err(bad(self.place, format!("expected one of image, images and video, found {found}")));
        }
        if let Some(path) = self.text(&["image", "file"])? {
            return Ok(Media::Images(vec![ImageSource::File(dir.join(path))]));
        }
        if let Some((name, value)) = self.get(&["images"]) {
            let paths = value.as_array().filter(|list| !list.is_empty()).map(|list| {
                list.iter()
                    .map(|path| path.as_str().map(|path| ImageSource::File(dir.join(path))))
                    .collect::<Option<Vec<_>>>()
            });
            return match paths.flatten() {
                Some(images) => Ok(Media::Images(images)),
                None => Err(bad(self.place, format!("{name}: expected a list of paths, found {value}"))),
            };
        }
        let path = self.text(&["video"])?;
        Ok(Media::Video(dir.join(path.unwrap_or_default())))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
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
        let text = r#"{"image": "a.png", "question": "What?", "answer": "A", "kind": "k", "expected": "e", "other": 1}

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
        for text in [format!("{{\"count\": 1, \"cases\": [{case}]}}"), format!("[{case}]"), case.to_owned()] {
            let samples = read(&text).unwrap().samples;
            assert_eq!((samples.len(), samples[0].kind.as_deref()), (1, Some("chart")));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "d.jsonl: expected at least one sample, found none"),
            ("[]", "d.jsonl: expected at least one sample, found none"),
            ("{\"cases\": 3}", "d.jsonl: cases: expected a list, found a number"),
            (
                "{\"image\": \"a\", \"question\": \"q\"}\n{\"image\":",
                "d.jsonl: line 2: expected a JSON object: EOF while parsing a value at column 9",
            ),
            ("3", "d.jsonl: line 1: expected a JSON object, found a number"),
            (
                "{\"question\": \"q\"}",
                "d.jsonl: line 1: expected one of image, images and video, found none of them",
            ),
            (
                "{\"image\": \"a\", \"video\": \"b\"}",
                "d.jsonl: line 1: expected one of image, images and video, found image and video",
            ),
            ("{\"image\": \"a\"}", "d.jsonl: line 1: question: expected a text, found no such field"),
            (
                "{\"image\": 3, \"question\": \"q\"}",
                "d.jsonl: line 1: image: expected a text, found a number",
            ),
            (
                "{\"images\": [], \"question\": \"q\"}",
                "d.jsonl: line 1: images: expected a list of paths, found []",
            ),
            (
                "[{\"image\": \"a\", \"question\": \"q\", \"answer\": [1]}]",
                "d.jsonl: [0]: answer: expected a text, found a list",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), expected, "{text}");
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
