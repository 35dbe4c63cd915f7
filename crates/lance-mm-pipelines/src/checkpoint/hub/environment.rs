//! Environment variables of the hub, read as Hugging Face's own programs read them. A variable that is set to nothing
//! counts as not set.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Variables, and the home folder.
pub(super) struct Environment<'a> {
    var: &'a dyn Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
}

impl<'a> Environment<'a> {
    pub(super) fn of_process() -> Self {
        Self::new(&|name| env::var_os(name), env::home_dir())
    }

    pub(super) fn new(var: &'a dyn Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        Self { var, home: home.filter(|home| !home.as_os_str().is_empty()) }
    }

    fn var(&self, name: &str) -> Option<OsString> {
        (self.var)(name).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.var(name).map(|value| self.expand(value))
    }

    /// `~` at the beginning, `$NAME` and `${NAME}` replaced. Names of variables that are not set stay.
    fn expand(&self, value: OsString) -> PathBuf {
        let text = match value.into_string() {
            Ok(text) => text,
            Err(value) => return PathBuf::from(value),
        };
        let mut parts = text.split('$');
        let mut expanded = OsString::from(parts.next().unwrap_or_default());
        for part in parts {
            let braced = part.strip_prefix('{').and_then(|part| part.split_once('}'));
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let (name, rest) =
                braced.unwrap_or_else(|| part.split_at(part.find(|c| !is_name(c)).unwrap_or(part.len())));
            match (self.var)(name).filter(|_| !name.is_empty()) {
                Some(found) => {
                    expanded.push(found);
                    expanded.push(rest);
                }
                None => {
                    expanded.push("$");
                    expanded.push(part);
                }
            }
        }
        let path = PathBuf::from(expanded);
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path,
        }
    }

    /// Folder of Hugging Face's programs.
    fn home(&self) -> Option<PathBuf> {
        let cache =
            || self.path("XDG_CACHE_HOME").or_else(|| self.home.as_ref().map(|home| home.join(".cache")));
        self.path("HF_HOME").or_else(|| cache().map(|cache| cache.join("huggingface")))
    }

    /// Folder of the cache.
    pub(super) fn cache(&self) -> Result<PathBuf> {
        let named = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        let cache = named.or_else(|| self.home().map(|home| home.join("hub")));
        cache.ok_or_else(|| Error::Hub {
            name: "hub".into(),
            message: "expected a home folder, HF_HOME or HF_HUB_CACHE for its cache, found none".into(),
        })
    }
}

#[cfg(feature = "hub")]
impl Environment<'_> {
    /// Whether nothing may be asked of the hub.
    pub(super) fn is_offline(&self) -> bool {
        let value = self.var("HF_HUB_OFFLINE").or_else(|| self.var("TRANSFORMERS_OFFLINE"));
        value.is_some_and(is_true)
    }

    /// Address of the hub, without a slash at the end.
    pub(super) fn endpoint(&self) -> Result<String> {
        let Some(value) = self.var("HF_ENDPOINT") else { return Ok("https://huggingface.co".to_owned()) };
        let value =
            value.into_string().map_err(|_| bad("HF_ENDPOINT", "expected an address, found no text"))?;
        Ok(value.trim().trim_end_matches('/').to_owned())
    }

    /// File of certificates that are trusted in place of the usual ones, where a company's proxy opens connections.
    pub(super) fn certificates(&self) -> Option<PathBuf> {
        let names = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"];
        names.iter().find_map(|name| self.path(name)).filter(|path| path.is_file())
    }

    /// The token, from a variable or from the file that Hugging Face's programs write; `None` without one.
    pub(super) fn token(&self) -> Result<Option<String>> {
        if self.var("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true) {
            return Ok(None);
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(value) = self.var(name) {
                let token = token(name, value.as_encoded_bytes())?;
                if token.is_some() {
                    return Ok(token);
                }
            }
        }
        match self.path("HF_TOKEN_PATH").or_else(|| self.home().map(|home| home.join("token"))) {
            Some(path) => token_file(&path),
            None => Ok(None),
        }
    }
}

#[cfg(feature = "hub")]
fn is_true(value: OsString) -> bool {
    value
        .to_str()
        .is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
}

/// Without the space around it. It is never part of a message.
#[cfg(feature = "hub")]
fn token(name: &str, bytes: &[u8]) -> Result<Option<String>> {
    match std::str::from_utf8(bytes).map(str::trim) {
        Ok("") => Ok(None),
        Ok(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(token.to_owned())),
        _ => Err(bad(name, "expected a token, found characters that no token has")),
    }
}

#[cfg(feature = "hub")]
fn token_file(path: &std::path::Path) -> Result<Option<String>> {
    use std::io::Read;

    const MAX_TOKEN: u64 = 4096;
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN).read_to_end(&mut bytes));
    read.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    token(&path.display().to_string(), &bytes)
}

#[cfg(feature = "hub")]
fn bad(name: &str, message: &str) -> Error {
    Error::Hub { name: name.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn with<T>(vars: &[(&str, &str)], read: impl Fn(Environment<'_>) -> T) -> T {
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        read(Environment::new(&var, Some("/home/me".into())))
    }

    #[test]
    fn the_cache_is_where_hugging_face_has_it() {
        for (vars, expected) in [
            (&[][..], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")][..], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")][..], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")][..], "/old"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")][..], "/new"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "")][..], "/home/me/.cache/huggingface/hub"),
            (&[("HF_HUB_CACHE", "~/models")][..], "/home/me/models"),
            (&[("HF_HOME", "$DATA/${USER}s/hf"), ("DATA", "/data"), ("USER", "me")][..], "/data/mes/hf/hub"),
            (&[("HF_HUB_CACHE", "/a$NONE/$")][..], "/a$NONE/$"),
        ] {
            let found = with(vars, |environment| environment.cache().unwrap());
            assert_eq!(found, Path::new(expected), "{vars:?}");
        }
        let none = Environment::new(&|_| None, None).cache().unwrap_err().to_string();
        assert!(none.starts_with("hub: expected a home folder"), "{none}");
    }

    #[cfg(feature = "hub")]
    #[test]
    fn offline_endpoint_and_token() {
        for (value, expected) in [
            ("1", true),
            ("true", true),
            ("YES", true),
            ("On", true),
            ("0", false),
            ("no", false),
            ("2", false),
        ] {
            assert_eq!(with(&[("HF_HUB_OFFLINE", value)], |e| e.is_offline()), expected, "{value}");
        }
        assert!(!with(&[], |e| e.is_offline()) && with(&[("TRANSFORMERS_OFFLINE", "1")], |e| e.is_offline()));

        let endpoint = |value| with(&[("HF_ENDPOINT", value)], |e| e.endpoint().unwrap());
        assert_eq!(endpoint(""), "https://huggingface.co");
        assert_eq!(endpoint("https://mirror.example/hf/"), "https://mirror.example/hf");

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " hf_file\n").unwrap();
        let path = file.path().to_str().unwrap();
        for (vars, expected) in [
            (&[("HF_TOKEN_PATH", path)][..], Some("hf_file")),
            (&[("HF_TOKEN_PATH", path), ("HUGGING_FACE_HUB_TOKEN", "hf_old\n")], Some("hf_old")),
            (&[("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", "hf_new")], Some("hf_new")),
            (&[("HF_TOKEN", " \n"), ("HF_TOKEN_PATH", path)], Some("hf_file")),
            (&[("HF_TOKEN", "hf_new"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
            (&[("HF_HOME", "/nonexistent")], None),
        ] {
            assert_eq!(with(vars, |e| e.token().unwrap()).as_deref(), expected, "{vars:?}");
        }
        let error = with(&[("HF_TOKEN", "hf_\r\nX: y")], |e| e.token()).unwrap_err().to_string();
        assert_eq!(error, "HF_TOKEN: expected a token, found characters that no token has");
    }
}
