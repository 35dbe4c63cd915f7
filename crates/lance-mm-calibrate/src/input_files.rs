//! Files of the source, which must stay as they are while a quantization reads them.

use std::fs;
use std::path::{Path, PathBuf};

use lance_mm_pipelines::checkpoint::{CheckpointFiles, FileState};

use crate::error::{Error, Result};

/// Length and time of each file when a run began.
// Weights are mapped: a file that another program cuts short meanwhile ends the process by a signal (SIGBUS), which no
// check prevents; one that is written to gives other bytes, which the check at the end finds.
pub(crate) struct InputFiles(Vec<(PathBuf, FileState)>);

impl InputFiles {
    pub(crate) fn new(files: &CheckpointFiles) -> Result<Self> {
        let weights = [&files.model, &files.vit, &files.vae].into_iter().flatten();
        let mut paths: Vec<PathBuf> = Vec::new();
        for part in weights {
            paths.extend(part.files()?);
        }
        paths.extend(files.config.iter().chain(&files.generation_config).chain(&files.tokenizer).cloned());
        paths.into_iter().map(|path| Ok((path.clone(), state(&path)?))).collect::<Result<_>>().map(Self)
    }

    /// Checks that all files are as they were.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        for (path, before) in &self.0 {
            if state(path)? != *before {
                return Err(Error::file(
                    path.display(),
                    format!(
                        "changed while it was read: expected the {} bytes it had at first",
                        before.length
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn state(path: &Path) -> Result<FileState> {
    fs::metadata(path).map(|metadata| FileState::of(&metadata)).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_changes_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model-1.safetensors", "model.safetensors.index.json"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let files = CheckpointFiles::find(dir.path()).unwrap();
        let inputs = InputFiles::new(&files).unwrap();
        assert_eq!(inputs.0.len(), 3);
        inputs.check_unchanged().unwrap();
        fs::write(dir.path().join("model-1.safetensors"), "more").unwrap();
        let error = inputs.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("model-1.safetensors: changed while it was read"), "{error}");
    }
}
