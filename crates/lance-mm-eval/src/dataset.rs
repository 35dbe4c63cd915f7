//! Questions about pictures, from a file.

mod parse;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lance_mm_image::video::{self, Clip, UNKNOWN_FPS};
use lance_mm_image::{self as image, LoadOptions};

use super::text::{contains_expected, says};
use crate::error::{Error, Result};
use lance_mm_pipelines::inspect::Hash;
use lance_mm_pipelines::{AskOptions, ImageContext, ImageFeatures, Lance};

/// Questions in the order of their file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// What to call it.
    pub name: String,
    /// At least one after reading a file.
    pub samples: Vec<Sample>,
}

/// A question about something that is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// File and line, for messages.
    pub place: String,
    /// What is shown.
    pub shown: Shown,
    /// The question; empty asks for a description.
    pub question: String,
    /// A reference answer, if there is one.
    pub answer: Option<String>,
    /// What an answer must contain, where that is not the reference answer itself.
    pub expected: Option<String>,
    /// The sample's stratum.
    pub kind: Option<String>,
}

impl Sample {
    /// A question about one picture in memory, `name` its place in messages.
    pub fn of_picture(name: &str, bytes: &'static [u8], question: &str, answer: &str) -> Self {
        Self {
            place: name.to_owned(),
            shown: Shown::Images(vec![Picture::Memory { name: name.to_owned(), bytes }]),
            question: question.to_owned(),
            answer: Some(answer.to_owned()),
            expected: None,
            kind: None,
        }
    }
}

/// Pictures or a video.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Shown {
    /// Pictures, at least one.
    Images(Vec<Picture>),
    /// An animated GIF, or a folder of frames.
    Video(PathBuf),
}

/// A picture, not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Picture {
    /// A file.
    File(PathBuf),
    /// The bytes of one, with a name for messages.
    Memory {
        /// The name.
        name: String,
        /// The file's bytes.
        bytes: &'static [u8],
    },
}

impl Dataset {
    /// Reads a file of one JSON object a line, `{"image": "a.png", "question": "What?", "answer": "A star"}`:
    /// `image` or `video` (a path) or `images` (a list), `question`, and where there is one `answer`, `expected`
    /// and `kind`. Paths are relative to the file. Other fields are left alone. A file that is one JSON list of
    /// such objects, or one object with such a list under `cases` (then `file` and `task` may stand for
    /// `image` and `kind`), is read too.
    ///
    /// # Errors
    /// A file that cannot be read or is none of these, naming line and field; no samples. Pictures are not
    /// opened yet.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let name = path.display().to_string();
        let text = String::from_utf8(bytes)
            .map_err(|error| bad(&name, format!("expected UTF-8, found other bytes: {error}")))?;
        parse::dataset(&text, &name, path.parent().unwrap_or(Path::new("")))
    }

    /// The same with its first `n` samples only.
    pub fn limited(mut self, n: usize) -> Self {
        self.samples.truncate(n);
        self
    }

    /// Indices of samples, those that show the same together, in the order in which that comes first; descriptions are a
    /// group of their own.
    pub fn by_shown(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut places: HashMap<(&Shown, bool), usize> = HashMap::new();
        for (i, sample) in self.samples.iter().enumerate() {
            let place = *places.entry((&sample.shown, sample.has_question())).or_insert(groups.len());
            match groups.get_mut(place) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }
}

impl Sample {
    /// Whether something is asked; else a description is wanted.
    pub fn has_question(&self) -> bool {
        !self.question.is_empty()
    }

    /// Reads what is shown into a cache, for the question.
    pub(crate) fn context(
        &self,
        lance: &Lance,
        visuals: &[ImageFeatures],
        options: &AskOptions,
    ) -> Result<ImageContext> {
        Ok(if self.has_question() {
            lance.image_context(visuals, options)?
        } else {
            lance.caption_context(visuals, options)?
        })
    }

    /// Whether an answer is right, as far as a rule can tell: it contains `expected` or, without that,
    /// [says](says()) what `answer` does.
    pub(crate) fn is_answered_by(&self, answer: &str) -> Option<bool> {
        match (&self.expected, &self.answer) {
            (Some(expected), _) => Some(contains_expected(answer, expected)),
            (None, Some(wanted)) => says(answer, wanted),
            (None, None) => None,
        }
    }

    /// What an answer is held against: `expected`, else `answer`.
    pub fn wanted(&self) -> Option<&str> {
        self.expected.as_deref().or(self.answer.as_deref())
    }

    /// An error that names the sample.
    pub(crate) fn error(&self, message: impl ToString) -> Error {
        bad(&self.place, message)
    }
}

impl Shown {
    /// Runs a model's vision transformer over it. Photographs are turned upright.
    ///
    /// # Errors
    /// Files that cannot be read or used.
    pub fn encode(&self, lance: &Lance, options: &AskOptions) -> Result<Vec<ImageFeatures>> {
        let load = LoadOptions { auto_orient: true, ..LoadOptions::default() };
        match self {
            Self::Images(pictures) => pictures
                .iter()
                .map(|picture| {
                    let (bytes, name) = picture.read()?;
                    Ok(lance.encode_image(&image::decode(&bytes, &name, &load)?, options)?)
                })
                .collect(),
            Self::Video(path) if path.is_dir() => {
                let clip = Clip::from_dir(path, UNKNOWN_FPS, &load)?;
                Ok(vec![lance.encode_video(&clip, options)?])
            }
            Self::Video(path) => {
                let clip = Clip::from_gif(&read(path)?, &path.display().to_string(), &load)?;
                Ok(vec![lance.encode_video(&clip, options)?])
            }
        }
    }

    /// Sixteen hexadecimal digits of the bytes of what the model sees and a question: tells samples apart
    /// without telling what is in them.
    ///
    /// # Errors
    /// Files that cannot be read, a folder that is no video.
    pub fn hash(&self, question: &str) -> Result<String> {
        let mut hash = Hash::new();
        match self {
            Self::Images(pictures) => {
                for picture in pictures {
                    hash.bytes(&picture.read()?.0);
                }
            }
            Self::Video(path) => {
                // A GIF may be shown as a picture too, and is another sample then.
                hash.bytes(b"video");
                let files = match path.is_dir() {
                    true => video::sampled_files(path, UNKNOWN_FPS)?,
                    false => vec![path.clone()],
                };
                for file in files {
                    hash.bytes(&read(&file)?);
                }
            }
        }
        hash.bytes(question.as_bytes());
        Ok(format!("{:016x}", hash.finish()))
    }

    /// Names of the files.
    pub fn names(&self) -> Vec<String> {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        match self {
            Self::Images(pictures) => pictures
                .iter()
                .map(|picture| match picture {
                    Picture::File(path) => name(path),
                    Picture::Memory { name, .. } => name.clone(),
                })
                .collect(),
            Self::Video(path) => vec![name(path)],
        }
    }
}

impl Picture {
    fn read(&self) -> Result<(std::borrow::Cow<'static, [u8]>, String)> {
        match self {
            Self::File(path) => Ok((read(path)?.into(), path.display().to_string())),
            Self::Memory { name, bytes } => Ok(((*bytes).into(), name.clone())),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::io(path, source))
}

fn bad(name: &str, message: impl ToString) -> Error {
    Error::data(name, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_makes_the_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (gif, folder) = (dir.path().join("a.gif"), dir.path().join("frames"));
        std::fs::create_dir(&folder).unwrap();
        let write = |path: &Path, bytes: &str| std::fs::write(path, bytes).unwrap();
        write(&gif, "one");
        let frames = |bytes: &str| (0..12).for_each(|i| write(&folder.join(format!("{i}.png")), bytes));
        frames("one");
        let picture = Shown::Images(vec![Picture::File(gif.clone())]);
        let shown = [picture, Shown::Video(gif.clone()), Shown::Video(folder.clone())];
        let hashes = |question: &str| shown.each_ref().map(|shown| shown.hash(question).unwrap());
        let before = hashes("What?");
        assert_eq!(before, hashes("What?"));
        assert!(before[0] != before[1] && before.iter().zip(hashes("Who?")).all(|(a, b)| *a != b));
        write(&gif, "two");
        frames("two");
        assert!(before.iter().zip(hashes("What?")).all(|(a, b)| *a != b));
        let gone = Shown::Video(dir.path().join("gone.gif")).hash("").unwrap_err().to_string();
        assert!(gone.contains("gone.gif"), "{gone}");
    }
}
