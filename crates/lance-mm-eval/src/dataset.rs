//! Questions about images, from a file.

mod parse;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use lance_mm_image::video::{self, Clip, UNKNOWN_FPS};
use lance_mm_image::{self as image, LoadOptions};

use super::text::{contains_expected, says};
use crate::error::{Error, Result};
use lance_mm_pipelines::inspect::Hash;
use lance_mm_pipelines::{AskOptions, ImageContext, ImageFeatures, Lance};

/// Most bytes of a file of questions.
const MAX_BYTES: u64 = 64 << 20;

/// Samples in the order of their file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// Name in messages and reports.
    pub name: String,
    /// At least one after reading a file.
    pub samples: Vec<Sample>,
}

/// A question about images or a video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// File and line, for messages.
    pub place: String,
    /// Images or a video that the question is about.
    pub media: Media,
    /// The question; empty asks for a caption.
    pub question: String,
    /// A reference answer, if there is one.
    pub answer: Option<String>,
    /// Text that an answer must contain, where that is not the reference answer itself.
    pub expected: Option<String>,
    /// The sample's stratum.
    pub kind: Option<String>,
}

impl Sample {
    /// A question about one image in memory, `name` its place in messages.
    pub fn of_image(name: &str, bytes: &'static [u8], question: &str, answer: &str) -> Self {
        Self {
            place: name.to_owned(),
            media: Media::Images(vec![ImageSource::Memory { name: name.to_owned(), bytes }]),
            question: question.to_owned(),
            answer: Some(answer.to_owned()),
            expected: None,
            kind: None,
        }
    }
}

/// Images or a video.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Media {
    /// Images, at least one.
    Images(Vec<ImageSource>),
    /// An animated GIF, or a folder of frames.
    Video(PathBuf),
}

/// An image, not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageSource {
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
    /// and `kind`. Paths are relative to the file. A file that is one JSON list of such objects, or one object with
    /// such a list under `cases` (then `file` and `task` may stand for `image` and `kind`, and other keys are left
    /// alone), is read too.
    ///
    /// # Errors
    /// A file that cannot be read, has more than 64 MiB or is none of these; a key that is unknown or occurs twice, a
    /// value of another type, naming line and key; no samples. Images are not opened yet.
    pub fn read(path: &Path) -> Result<Self> {
        parse::dataset(&read_text(path)?, &path.display().to_string(), path.parent().unwrap_or(Path::new("")))
    }

    /// The same with its first `n` samples only.
    pub fn limited(mut self, n: usize) -> Self {
        self.samples.truncate(n);
        self
    }

    /// Indices of samples, those of the same media together, in order of first occurrence; captions (samples without a
    /// question) are groups of their own.
    pub fn by_media(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut places: HashMap<(&Media, bool), usize> = HashMap::new();
        for (i, sample) in self.samples.iter().enumerate() {
            let place = *places.entry((&sample.media, sample.has_question())).or_insert(groups.len());
            match groups.get_mut(place) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }
}

impl Sample {
    /// Whether there is a question; a sample without one asks for a caption.
    pub fn has_question(&self) -> bool {
        !self.question.is_empty()
    }

    /// Prefills the images or video into a cache, for the question.
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

    /// Text that an answer is compared with: `expected`, else `answer`.
    pub fn wanted(&self) -> Option<&str> {
        self.expected.as_deref().or(self.answer.as_deref())
    }

    /// Encodes the images or video with a model's vision encoder. Photographs are turned upright by EXIF.
    ///
    /// # Errors
    /// Files that cannot be read or used, with the sample's place.
    pub fn encode(&self, lance: &Lance, options: &AskOptions) -> Result<Vec<ImageFeatures>> {
        self.media.encode(lance, options).map_err(|error| self.located(error))
    }

    /// Hash of the encoded files and the question, 16 hexadecimal digits: tells samples apart without
    /// revealing their content.
    ///
    /// # Errors
    /// Files that cannot be read, a folder that is no video, with the sample's place.
    pub fn hash(&self, question: &str) -> Result<String> {
        self.media.hash(question).map_err(|error| self.located(error))
    }

    /// An error that names the sample.
    pub(crate) fn error(&self, message: impl ToString) -> Error {
        bad(&self.place, message)
    }

    /// An error with file and line of the sample, unless it has them or is no error of it.
    pub(crate) fn located(&self, error: Error) -> Error {
        match error {
            Error::Pipeline(lance_mm_pipelines::Error::Interrupted) => error,
            Error::Sample { ref place, .. } if *place == self.place => error,
            Error::Data { ref name, .. } if *name == self.place => error,
            error => Error::Sample { place: self.place.clone(), source: Box::new(error) },
        }
    }
}

impl Media {
    fn encode(&self, lance: &Lance, options: &AskOptions) -> Result<Vec<ImageFeatures>> {
        let load = LoadOptions { auto_orient: true, ..LoadOptions::default() };
        match self {
            Self::Images(images) => images
                .iter()
                .map(|image| {
                    let (bytes, name) = image.read()?;
                    Ok(lance.encode_image(&image::decode(&bytes, &name, &load)?, options)?)
                })
                .collect(),
            Self::Video(path) if path.is_dir() => {
                let clip = Clip::from_dir(path, UNKNOWN_FPS, &load)?;
                Ok(vec![lance.encode_video(&clip, options)?])
            }
            Self::Video(path) => {
                let clip = Clip::from_gif(&read(path)?, &path.display().to_string(), None, &load)?;
                Ok(vec![lance.encode_video(&clip, options)?])
            }
        }
    }

    fn hash(&self, question: &str) -> Result<String> {
        let mut hash = Hash::new();
        match self {
            Self::Images(images) => {
                for image in images {
                    hash.bytes(&image.read()?.0);
                }
            }
            Self::Video(path) => {
                // A GIF may be shown as an image too, and is another sample then.
                hash.bytes(b"video");
                let files =
                    if path.is_dir() { video::sampled_files(path, UNKNOWN_FPS)? } else { vec![path.clone()] };
                for file in files {
                    hash.bytes(&read(&file)?);
                }
            }
        }
        hash.bytes(question.as_bytes());
        Ok(format!("{:016x}", hash.finish()))
    }

    /// File names without folders.
    pub fn names(&self) -> Vec<String> {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        match self {
            Self::Images(images) => images
                .iter()
                .map(|image| match image {
                    ImageSource::File(path) => name(path),
                    ImageSource::Memory { name, .. } => name.clone(),
                })
                .collect(),
            Self::Video(path) => vec![name(path)],
        }
    }
}

impl ImageSource {
    fn read(&self) -> Result<(std::borrow::Cow<'static, [u8]>, String)> {
        match self {
            Self::File(path) => Ok((read(path)?.into(), path.display().to_string())),
            Self::Memory { name, bytes } => Ok(((*bytes).into(), name.clone())),
        }
    }
}

/// Text of a file of questions or prompts, without a byte order mark.
///
/// # Errors
/// A file that cannot be read, has more than 64 MiB or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let io = |source| Error::io(path, source);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    let name = path.display().to_string();
    if bytes.len() as u64 > MAX_BYTES {
        return Err(bad(&name, format!("expected at most {MAX_BYTES} bytes of text, found more")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        bad(&format!("{name}: line {line}"), "expected UTF-8, found other bytes")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Bytes of an image file. Anything else is refused before it is read: a device or a pipe may have no end.
fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display().to_string();
    let found = fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if !found.is_file() {
        let found = if found.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(bad(&name, format!("expected an image file, found {found}")));
    }
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    Ok(image::read(file, &name)?)
}

fn bad(name: &str, message: impl ToString) -> Error {
    Error::data(name, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_without_a_mark_and_other_bytes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_text(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"\xef\xbb\xbfa\r\n").unwrap(), "a\r\n");
        assert!(read(b"a\n\xff").unwrap_err().ends_with("a.txt: line 2: expected UTF-8, found other bytes"));
        fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(
            read_text(&path)
                .unwrap_err()
                .to_string()
                .ends_with("expected at most 67108864 bytes of text, found more")
        );
    }

    #[test]
    fn what_is_seen_makes_the_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (gif, folder) = (dir.path().join("a.gif"), dir.path().join("frames"));
        std::fs::create_dir(&folder).unwrap();
        let write = |path: &Path, bytes: &str| fs::write(path, format!("GIF89a{bytes}")).unwrap();
        write(&gif, "one");
        let frames = |bytes: &str| (0..12).for_each(|i| write(&folder.join(format!("{i}.png")), bytes));
        frames("one");
        let image = Media::Images(vec![ImageSource::File(gif.clone())]);
        let shown = [image, Media::Video(gif.clone()), Media::Video(folder.clone())];
        let hashes = |question: &str| shown.each_ref().map(|shown| shown.hash(question).unwrap());
        let before = hashes("What?");
        assert_eq!(before, hashes("What?"));
        assert!(before[0] != before[1] && before.iter().zip(hashes("Who?")).all(|(a, b)| *a != b));
        write(&gif, "two");
        frames("two");
        assert!(before.iter().zip(hashes("What?")).all(|(a, b)| *a != b));
        let gone = Media::Video(dir.path().join("gone.gif")).hash("").unwrap_err().to_string();
        assert!(gone.contains("gone.gif"), "{gone}");
    }
}
