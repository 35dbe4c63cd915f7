//! Mapped files: header checks, and the place of each tensor's bytes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::header;
use crate::bytes::Bytes;
use crate::error::{Error, MAX_NAME, Result};
use crate::metadata::{MAX_HEADER_BYTES, parse_json, read_file, shortened};

/// Name, dtype and shape of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full name.
    pub name: String,
    /// Element type as stored.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

#[derive(Clone)]
struct MappedFile {
    name: String,
    path: Option<PathBuf>,
    bytes: Bytes,
}

/// `x.safetensors.index.json`: the shard of each tensor.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

#[derive(Clone)]
pub(crate) struct Store {
    files: Vec<MappedFile>,
    names: Vec<String>,
    entries: HashMap<String, Entry>,
}

impl Store {
    pub(crate) fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut store = Self { files: Vec::new(), names: Vec::new(), entries: HashMap::new() };
        for path in paths {
            let path = path.as_ref();
            store.add(path.display().to_string(), Some(path.to_owned()), Bytes::map(path)?)?;
        }
        Ok(store)
    }

    pub(crate) fn open_in(dir: &Path, stem: &str) -> Result<Self> {
        let single = dir.join(format!("{stem}.safetensors"));
        let index = dir.join(format!("{stem}.safetensors.index.json"));
        if single.exists() {
            return Self::open(&[single]);
        }
        if !index.exists() {
            return Err(Error::File {
                file: dir.display().to_string(),
                message: format!(
                    "expected {stem}.safetensors or {stem}.safetensors.index.json, found neither"
                ),
            });
        }
        Self::open_index(dir, &index)
    }

    fn open_index(dir: &Path, index: &Path) -> Result<Self> {
        let bad = |message: String| Error::File { file: index.display().to_string(), message };
        let text = read_file(index, MAX_HEADER_BYTES)?;
        let ShardIndex { weight_map } = parse_json(&index.display().to_string(), &text)?;
        let mut shards: Vec<&str> = weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let beside = |shard: &str| Path::new(shard).file_name() == Some(shard.as_ref());
        if let Some(shard) = shards.iter().find(|shard| !beside(shard)) {
            let found = shortened(shard, MAX_NAME);
            return Err(bad(format!("expected shard names beside the index, found {found:?}")));
        }
        let paths: Vec<PathBuf> = shards.iter().map(|shard| dir.join(shard)).collect();
        let store = Self::open(&paths)?;
        for (name, shard) in &weight_map {
            let found = store.entries.get(name).map(|entry| &paths[entry.file]);
            if found.and_then(|path| path.file_name()) != Some(shard.as_ref()) {
                let name = shortened(name, MAX_NAME);
                return Err(bad(format!("promises {name} in {shard}, which does not hold it")));
            }
        }
        Ok(store)
    }

    pub(crate) fn from_bytes(name: &str, bytes: Bytes) -> Result<Self> {
        let mut store = Self::open::<PathBuf>(&[])?;
        store.add(name.to_owned(), None, bytes)?;
        Ok(store)
    }

    fn add(&mut self, name: String, path: Option<PathBuf>, bytes: Bytes) -> Result<()> {
        let bad = |message: String| Error::File { file: name.clone(), message };
        header::check(&name, &bytes)?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| bad(shortened(&error.to_string(), 2 * MAX_NAME).into_owned()))?;
        let data = header + 8;
        let file = self.files.len();
        for tensor in metadata.offset_keys() {
            let info = metadata.info(&tensor).expect("the name came from this header");
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            let entry = Entry { dtype: info.dtype, shape: info.shape.clone(), file, range };
            if let Some(first) = self.entries.insert(tensor.clone(), entry) {
                let (tensor, other) = (shortened(&tensor, MAX_NAME), &self.files[first.file].name);
                return Err(bad(format!("repeats {tensor}, which is in {other} too")));
            }
            self.names.push(tensor);
        }
        self.files.push(MappedFile { name, path, bytes });
        Ok(())
    }

    /// The tensors of both, those of `over` where both have a name.
    pub(crate) fn overlaid(&self, over: &Self) -> Self {
        let mut store = self.clone();
        for name in &over.names {
            let entry = over.entries[name].clone();
            let moved = Entry { file: self.files.len() + entry.file, ..entry };
            if store.entries.insert(name.clone(), moved).is_none() {
                store.names.push(name.clone());
            }
        }
        store.files.extend_from_slice(&over.files);
        store
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(crate) fn bytes(&self, entry: &Entry) -> Bytes {
        self.files[entry.file].bytes.slice(entry.range.clone())
    }

    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.get(name)?;
        Some(TensorInfo {
            name: name.to_owned(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            bytes: entry.range.len(),
        })
    }

    pub(crate) fn all(&self) -> Vec<TensorInfo> {
        self.names.iter().filter_map(|name| self.info(name)).collect()
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().filter_map(|f| f.path.clone()).collect()
    }

    pub(crate) fn release(&self) -> Result<()> {
        let io = |file: &MappedFile, source| Error::Io {
            path: file.path.clone().unwrap_or_else(|| PathBuf::from(&file.name)),
            source,
        };
        self.files.iter().try_for_each(|file| file.bytes.release().map_err(|source| io(file, source)))
    }

    pub(crate) fn describe(&self) -> String {
        match self.files.as_slice() {
            [] => "no file".into(),
            [one] => one.name.clone(),
            [first, rest @ ..] => format!("{} and {} more", first.name, rest.len()),
        }
    }
}
