//! Reading fixtures.

use std::path::{Path, PathBuf};

use lance_mm::tensor::testing::assert_close;
use safetensors::SafeTensors;

/// A folder of `tests/fixtures`.
pub(crate) fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder)
}

/// The tensors of one recorded case.
pub(crate) struct Case {
    bytes: Vec<u8>,
    json: serde_json::Value,
}

impl Case {
    pub(crate) fn open(folder: &str, case: &str) -> Self {
        let path = |extension: &str| fixtures(folder).join(format!("{case}.{extension}"));
        let json = std::fs::read(path("json")).unwrap();
        Self {
            bytes: std::fs::read(path("safetensors")).unwrap(),
            json: serde_json::from_slice(&json).unwrap(),
        }
    }

    pub(crate) fn f32s(&self, name: &str) -> Vec<f32> {
        self.words(name).iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub(crate) fn u32s(&self, name: &str) -> Vec<u32> {
        self.words(name).iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).unwrap().data().as_chunks().0.to_vec()
    }

    /// Compares within the tolerance that was recorded with the tensor.
    #[track_caller]
    pub(crate) fn compare(&self, name: &str, found: &[f32]) {
        let tolerance = self.json["tensors"][name]["atol"].as_f64().unwrap();
        assert_close(name, found, &self.f32s(name), tolerance as f32);
    }
}
