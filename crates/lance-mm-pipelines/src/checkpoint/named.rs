//! Checkpoints by name: a folder, a repository of the hub, the bundled model.

use std::path::{Path, PathBuf};

use super::Checkpoint;
use super::hub::RepoName;
use crate::error::{Error, Result};

/// Name of the bundled model.
const BUNDLED: &str = "nano";

/// Whether `name` is the bundled model, and no folder of this name exists.
pub fn is_bundled(name: impl AsRef<Path>) -> bool {
    let name = name.as_ref();
    name.as_os_str() == BUNDLED && !name.exists()
}

/// Folder of the checkpoint `name`: a path that exists, else `org/name` or `org/name@revision` of a model in the hub's
/// cache, complete as [`RepoName::require_cached`] says.
///
/// # Errors
/// A name that is neither, the bundled model's included; [`Error::NotCached`].
pub fn folder_of(name: impl AsRef<Path>) -> Result<PathBuf> {
    Ok(Place::of(name.as_ref())?.folder)
}

impl Checkpoint {
    /// Opens the checkpoint `name`: a folder as [`open`](Self::open) takes it; `org/name` or `org/name@revision` of a
    /// model in the hub's cache, into which [`hub::pull`](super::hub) and the program's `pull` download it; or `nano`,
    /// the small bundled model (with the feature `nano`).
    ///
    /// An existing folder comes first. Nothing is downloaded.
    ///
    /// # Errors
    /// A name that is none of these; [`Error::NotCached`]; everything that is wrong with the files.
    pub fn named(name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        if is_bundled(name) {
            return Self::bundled();
        }
        let Place { folder, repo } = Place::of(name)?;
        Ok(Self { repo, ..Self::open(folder)? })
    }

    /// The small model that is compiled into this library. It knows simple synthetic images only.
    #[cfg(feature = "nano")]
    fn bundled() -> Result<Self> {
        Self::in_memory(&super::CheckpointBytes {
            name: BUNDLED,
            config: lance_mm_nano::CONFIG,
            generation_config: lance_mm_nano::GENERATION_CONFIG,
            tokenizer: lance_mm_nano::TOKENIZER,
            model: lance_mm_nano::MODEL,
            vit: lance_mm_nano::VIT,
        })
    }

    #[cfg(not(feature = "nano"))]
    fn bundled() -> Result<Self> {
        Err(unknown(BUNDLED.as_ref(), "found a name that needs the feature `nano`"))
    }
}

/// Folder of a checkpoint, and the repository it is a snapshot of.
struct Place {
    folder: PathBuf,
    repo: Option<RepoName>,
}

impl Place {
    fn of(name: &Path) -> Result<Self> {
        if name.exists() {
            return Ok(Self { folder: name.to_owned(), repo: None });
        }
        let Some(repo) = name.to_str().and_then(RepoName::parse) else {
            return Err(match name.to_str().and_then(RepoName::suggest) {
                Some(repo) => unknown(name, &format!("found nothing at this path: write {repo}")),
                None => unknown(name, "found nothing at this path"),
            });
        };
        Ok(Self { folder: repo.require_cached()?, repo: Some(repo) })
    }
}

fn unknown(name: &Path, found: &str) -> Error {
    Error::Checkpoint {
        name: format!("model {name:?}"),
        message: format!("expected a checkpoint folder or org/name, {found}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_before_other_names() {
        let dir = env!("CARGO_MANIFEST_DIR");
        assert_eq!(folder_of(dir).unwrap(), Path::new(dir));
        assert!(is_bundled("nano") && !is_bundled("./nano") && !is_bundled(dir));
        for name in ["", "foo", "./foo/bar", "nano"] {
            let error = folder_of(name).unwrap_err().to_string();
            let expected = format!(
                "model {name:?}: expected a checkpoint folder or org/name, found nothing at this path"
            );
            assert_eq!(error, expected);
        }
        let error = folder_of("https://huggingface.co/a/b/tree/v1").unwrap_err().to_string();
        assert!(error.ends_with("found nothing at this path: write a/b@v1"), "{error}");
    }
}
