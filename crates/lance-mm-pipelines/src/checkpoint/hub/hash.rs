//! Hashes of contents as the hub states them in its ETag.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash that a file's content must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ContentHash {
    /// SHA-256 of a file in large file storage.
    Sha256(String),
    /// SHA-1 of a file in git: of `blob LENGTH`, a NUL byte and the content.
    Git(String),
}

impl ContentHash {
    /// The hash that an ETag (or the name of a blob in the cache) states, by its length; `None` if it is no hash.
    pub(super) fn parse(etag: &str) -> Option<Self> {
        let hex = etag.to_ascii_lowercase();
        match hex.len() {
            _ if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(hex)),
            40 => Some(Self::Git(hex)),
            _ => None,
        }
    }

    /// Reads a file and compares; the error text where it differs.
    pub(super) fn check(&self, path: &Path) -> io::Result<Result<(), String>> {
        let mut file = File::open(path)?;
        let (name, expected, found) = match self {
            Self::Sha256(expected) => ("SHA-256", expected, digest(&mut file, Sha256::new())?),
            Self::Git(expected) => {
                let head = format!("blob {}\0", file.metadata()?.len());
                ("git hash", expected, digest(&mut file, Sha1::new_with_prefix(head))?)
            }
        };
        Ok(if *expected == found {
            Ok(())
        } else {
            Err(format!("expected {name} {expected}, found {found}"))
        })
    }
}

fn digest(file: &mut File, mut hash: impl Digest) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_git_and_sha256sum_print_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        // `git hash-object` and `sha256sum` of the same file.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        for etag in [git.to_owned(), git.to_uppercase(), sha256.to_owned()] {
            assert_eq!(ContentHash::parse(&etag).unwrap().check(file.path()).unwrap(), Ok(()));
        }
        std::fs::write(file.path(), "hellO\n").unwrap();
        let error = ContentHash::parse(git).unwrap().check(file.path()).unwrap().unwrap_err();
        assert!(error.starts_with(&format!("expected git hash {git}, found ")), "{error}");
        for etag in ["", "abc", &"g".repeat(40), &"0".repeat(41)] {
            assert_eq!(ContentHash::parse(etag), None);
        }
    }
}
