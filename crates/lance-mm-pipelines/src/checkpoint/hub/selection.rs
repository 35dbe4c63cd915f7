//! Files of a repository that are downloaded.

use super::RECOMMENDED;
use super::cache::is_file_name;
use super::client::quoted;

/// The tokenizer in one file.
pub(super) const TOKENIZER_JSON: &str = "tokenizer.json";
/// The tokenizer in three.
const TOKENIZER_PARTS: [&str; 3] = ["vocab.json", "merges.txt", "tokenizer_config.json"];

/// Files of one repository. Lance has at most 30.
const MAX_FILES: usize = 1000;

/// Files to fetch, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) files: Vec<String>,
    pub(super) has_tokenizer: bool,
    pub(super) has_vit: bool,
}

impl Selection {
    /// Chooses among the files at the top of a repository. The model's weights come last: where they are,
    /// everything is.
    ///
    /// # Errors
    /// No configuration or no model; too many files; a name that cannot be a file's.
    pub(super) fn new(names: &[String], all: bool) -> Result<Self, String> {
        let has = |name: &str| names.iter().any(|found| found == name);
        let mut files: Vec<String> = Vec::new();
        files.extend(
            ["config.json", "generation_config.json"]
                .iter()
                .filter(|name| has(name))
                .map(|name| (*name).to_owned()),
        );
        let (config, mut has_tokenizer) = (has("config.json"), has(TOKENIZER_JSON));
        if has_tokenizer {
            files.push(TOKENIZER_JSON.to_owned());
        } else if TOKENIZER_PARTS[..2].iter().all(|name| has(name)) {
            has_tokenizer = true;
            files.extend(TOKENIZER_PARTS.iter().filter(|name| has(name)).map(|name| (*name).to_owned()));
        }
        let (vit, model) = (weights(names, "vit"), weights(names, "model"));
        if !config || model.is_empty() {
            let expected = "expected config.json and model.safetensors";
            return Err(format!(
                "{expected}, found {}; a model that can be read is {RECOMMENDED}",
                listed(names)
            ));
        }
        let has_vit = !vit.is_empty();
        files.extend(vit);
        if all {
            let chosen = |name: &String| files.contains(name) || model.contains(name);
            let wanted = |name: &&String| {
                !name.contains('/')
                    && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"))
            };
            let others: Vec<String> =
                names.iter().filter(wanted).filter(|name| !chosen(name)).cloned().collect();
            files.extend(others);
        }
        files.extend(model);
        if files.len() > MAX_FILES {
            return Err(format!("expected at most {MAX_FILES} files to download, found {}", files.len()));
        }
        if let Some(name) = files.iter().find(|name| !is_file_name(name)) {
            return Err(format!("expected names of files, found \"{}\"", quoted(name)));
        }
        Ok(Self { files, has_tokenizer, has_vit })
    }
}

/// The single file, or the shards and their index, which comes last.
fn weights(names: &[String], stem: &str) -> Vec<String> {
    let single = format!("{stem}.safetensors");
    if names.contains(&single) {
        return vec![single];
    }
    let index = format!("{stem}.safetensors.index.json");
    if !names.contains(&index) {
        return Vec::new();
    }
    let prefix = format!("{stem}-");
    let is_shard =
        |name: &&String| name.starts_with(&prefix) && name.ends_with(".safetensors") && !name.contains('/');
    names.iter().filter(is_shard).cloned().chain([index]).collect()
}

fn listed(names: &[String]) -> String {
    let shown = |names: &[String]| names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    match names {
        [] => "no files".to_owned(),
        _ if names.len() <= 4 => shown(names),
        _ => format!("{} and {} more files", shown(&names[..4]), names.len() - 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(names: &[&str], all: bool) -> Result<Selection, String> {
        Selection::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), all)
    }

    #[test]
    fn what_questions_need_with_the_model_last() {
        let names = [
            "README.md",
            "model.safetensors",
            "vae.safetensors",
            "config.json",
            "vit.safetensors",
            "tokenizer.json",
            "vocab.json",
        ];
        let found = select(&names, false).unwrap();
        assert_eq!(found.files, ["config.json", "tokenizer.json", "vit.safetensors", "model.safetensors"]);
        assert!(found.has_tokenizer && found.has_vit);
        let found = select(&names, true).unwrap();
        assert_eq!(found.files[3..], ["vae.safetensors", "model.safetensors"]);
    }

    #[test]
    fn shards_and_tokenizer_parts() {
        let names = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "other/model-1.safetensors",
            "vocab.json",
            "merges.txt",
        ];
        let found = select(&names, true).unwrap();
        assert_eq!(found.files, ["config.json", "vocab.json", "merges.txt", names[1], names[2], names[3]]);
        assert!(found.has_tokenizer && !found.has_vit);
        assert!(!select(&["config.json", "model.safetensors", "vocab.json"], false).unwrap().has_tokenizer);
    }

    #[test]
    fn other_repositories_are_told() {
        let found = select(&[], false).unwrap_err();
        assert!(found.starts_with("expected config.json and model.safetensors, found no files; "), "{found}");
        let names = ["a", "b\x1b[2J", "Lance_3B/model.safetensors", "Lance_3B/llm_config.json", "e"];
        let found = select(&names, false).unwrap_err();
        let listed =
            "found a, b\\u{1b}[2J, Lance_3B/model.safetensors, Lance_3B/llm_config.json and 1 more files; ";
        assert!(found.contains(listed), "{found}");
        assert!(select(&["config.json"], true).is_err() && select(&["model.safetensors"], true).is_err());
    }

    #[test]
    fn names_that_leave_the_folder_are_refused_or_ignored() {
        let good = ["config.json", "model.safetensors", "tokenizer.json"];
        let with = |name: &str, all| select(&[&good[..], &[name]].concat(), all);
        for name in
            ["../x.safetensors", "/etc/x.safetensors", "a/../x.safetensors", "..", "\0", "", "config.json\n"]
        {
            assert_eq!(with(name, true).unwrap().files.len(), 3, "{name:?}");
        }
        for name in [
            "..\\x.safetensors",
            "C:x.safetensors",
            "\x1b]0;x\x07.safetensors",
            "a\0.safetensors",
            ".safetensors",
        ] {
            let error = with(name, true).unwrap_err();
            assert!(
                error.starts_with("expected names of files, found ") && !error.contains('\x1b'),
                "{error:?}"
            );
            assert!(with(name, false).is_ok());
        }
        let shards = ["config.json", "model.safetensors.index.json", "model-\\..\\..\\x.safetensors"];
        assert!(select(&shards, false).is_err());
        let many: Vec<String> = (0..2000).map(|i| format!("{i}.safetensors")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).chain(good).collect();
        assert_eq!(select(&many, true).unwrap_err(), "expected at most 1000 files to download, found 2003");
        assert!(select(&many, false).is_ok());
    }
}
