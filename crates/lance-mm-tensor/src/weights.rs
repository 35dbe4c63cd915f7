//! Weights of a checkpoint: mapped safetensors files and a prefix of tensor names.

mod header;
mod store;

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use safetensors::Dtype;

use crate::bytes::Bytes;
use crate::dense::DenseWeight;
use crate::dtype::FloatType;
use crate::error::{Error, Problem, Problems, Result};
use crate::precision::{ActivationPrecision, AffinePrecision};
use crate::quantization::Quantization;
use store::Store;
pub use store::TensorInfo;

/// The tensors of one or several safetensors files, with a prefix for names.
///
/// Files are mapped, not read: opening a checkpoint costs its headers, and only the pages of tensors that
/// are read become resident. Reading a missing or misshapen tensor is an error; [`load_all`](Self::load_all), in which
/// whole networks are loaded, returns all such errors together.
#[derive(Clone)]
pub struct Weights {
    inner: Arc<Inner>,
    prefix: String,
    /// Problems found so far: inside [`load_all`](Self::load_all) only.
    problems: Option<Arc<Mutex<Vec<Problem>>>>,
}

/// Settings with which tensors are read.
#[derive(Clone)]
struct Settings {
    quantization: Quantization,
    affine_precision: AffinePrecision,
    activation_precision: ActivationPrecision,
    device: Device,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            quantization: Quantization::default(),
            affine_precision: AffinePrecision::default(),
            activation_precision: ActivationPrecision::default(),
            device: Device::Cpu,
        }
    }
}

struct Inner {
    store: Store,
    settings: Settings,
    read: Mutex<HashSet<String>>,
}

/// The bytes of one tensor in its file.
pub(crate) struct View {
    pub(crate) bytes: Bytes,
    pub(crate) dtype: Dtype,
}

impl Weights {
    /// Maps safetensors files; a name may occur in one of them only.
    ///
    /// # Errors
    /// Files that cannot be opened, are cut short, hold no safetensors header or repeat a name.
    pub fn open<P: AsRef<Path>>(files: &[P]) -> Result<Self> {
        Store::open(files).map(Self::new)
    }

    /// Maps `dir/stem.safetensors`, or the shards that `dir/stem.safetensors.index.json` lists.
    ///
    /// # Errors
    /// As [`open`](Self::open); neither file exists; a shard that lacks a tensor of the index.
    pub fn open_in(dir: &Path, stem: &str) -> Result<Self> {
        Store::open_in(dir, stem).map(Self::new)
    }

    /// Reads a safetensors file from static bytes; `name` names it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Store::from_bytes(name, Bytes::from_static(bytes)).map(Self::new)
    }

    /// Reads a safetensors file from a vector; see [`from_static`](Self::from_static).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_vec(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Store::from_bytes(name, Bytes::from_vec(bytes)).map(Self::new)
    }

    /// These tensors overlaid with those of `over`, which win where both have a name: a changed layer is tried without
    /// writing a checkpoint. A module that is dense here and quantized in `over` is quantized.
    pub fn overlaid(&self, over: &Self) -> Self {
        let store = self.inner.store.overlaid(&over.inner.store);
        Self::read_as(store, self.inner.settings.clone(), self.prefix.clone())
    }

    fn new(store: Store) -> Self {
        Self::read_as(store, Settings::default(), String::new())
    }

    fn read_as(store: Store, settings: Settings, prefix: String) -> Self {
        let inner = Inner { store, settings, read: Mutex::default() };
        Self { inner: Arc::new(inner), prefix, problems: None }
    }

    /// The same files read with these quantization settings (`quantization` of `config.json`).
    pub fn with_quantization(self, quantization: Quantization) -> Self {
        self.read_with(|settings| settings.quantization = quantization)
    }

    /// The same files, affine matrices dequantized as `mx.dequantize` does: product and sum are each rounded to the dtype
    /// of the scales, activations are f32. For comparison with numbers that were made from dequantized weights. The
    /// default is `scale · code + bias` without rounding, as in `mx.quantized_matmul` (on AMX rounded to bf16 for many
    /// tokens).
    pub fn with_mlx_rounding(self) -> Self {
        self.with_affine_precision(AffinePrecision::MlxRounded)
    }

    /// The same files with f32 activations in all matmuls, to measure the cost of rounding them: see
    /// [`AffineWeight::with_f32_activations`](crate::AffineWeight::with_f32_activations) and
    /// [`ActivationPrecision::F32`].
    pub fn with_f32_activations(self) -> Self {
        self.with_affine_precision(AffinePrecision::F32).with_activation_precision(ActivationPrecision::F32)
    }

    /// Precision of activations in bf16 matmuls and in attention.
    pub fn activation_precision(&self) -> ActivationPrecision {
        self.inner.settings.activation_precision
    }

    /// The same files with this precision of activations in bf16 matmuls and in attention.
    pub fn with_activation_precision(self, precision: ActivationPrecision) -> Self {
        self.read_with(|settings| settings.activation_precision = precision)
    }

    /// The same files, loaded onto `device`: matrices are copied there as they are stored. The CPU reads mapped files in
    /// place.
    pub fn with_device(self, device: Device) -> Self {
        self.read_with(|settings| settings.device = device)
    }

    fn with_affine_precision(self, precision: AffinePrecision) -> Self {
        self.read_with(|settings| settings.affine_precision = precision)
    }

    fn read_with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.inner.settings.clone();
        change(&mut settings);
        Self::read_as(self.inner.store.clone(), settings, self.prefix)
    }

    /// The weights with `part` appended to the prefix of names: `weights.pp("layers").pp(3)`.
    pub fn pp(&self, part: impl Display) -> Self {
        Self { prefix: format!("{}{part}.", self.prefix), ..self.clone() }
    }

    /// The prefix of tensor names, without the final dot; empty at the top.
    pub fn path(&self) -> &str {
        self.prefix.strip_suffix('.').unwrap_or(&self.prefix)
    }

    /// Names of the files for messages.
    pub fn files(&self) -> String {
        self.inner.store.describe()
    }

    /// Paths of the files; empty for weights in memory.
    pub fn file_paths(&self) -> Vec<PathBuf> {
        self.inner.store.paths()
    }

    /// Drops the mapped pages of the files from this process, whatever the prefix: for weights that are not needed for a
    /// while. Reading maps them again, as a rule from the system's file cache. Does nothing to weights in memory, and
    /// nothing on systems other than Unix.
    ///
    /// # Errors
    /// An error of the operating system, such as for locked pages.
    pub fn release(&self) -> Result<()> {
        self.inner.store.release()
    }

    /// The device to load onto.
    pub fn device(&self) -> &Device {
        &self.inner.settings.device
    }

    pub(crate) fn quantization(&self) -> &Quantization {
        &self.inner.settings.quantization
    }

    pub(crate) fn affine_precision(&self) -> AffinePrecision {
        self.inner.settings.affine_precision
    }

    /// Whether a tensor of this name exists.
    pub fn has(&self, name: &str) -> bool {
        self.inner.store.get(&self.full(name)).is_some()
    }

    /// Shape and dtype of a tensor, if it exists.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.inner.store.info(&self.full(name))
    }

    /// Name, dtype and shape of every tensor, in the order of the files, whatever the prefix.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        self.inner.store.all()
    }

    /// Calls `read` with the bytes of a tensor as stored; `None` if it does not exist. The tensor stays
    /// [unread](Self::unread).
    pub fn with_bytes<T>(&self, name: &str, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let store = &self.inner.store;
        store.get(&self.full(name)).map(|entry| read(&store.bytes(entry)))
    }

    /// Looks up a tensor's bytes and checks its shape.
    pub(crate) fn view(&self, name: &str, shape: &[usize]) -> Result<View> {
        let full = self.full(name);
        let Some(entry) = self.inner.store.get(&full) else {
            let what = format!("missing, expected {shape:?}");
            let problem = Problem { tensor: full, what, missing: Some(shape.to_vec()) };
            return Err(self.problems(vec![problem]));
        };
        lock(&self.inner.read).insert(full);
        if entry.shape != shape {
            return Err(self.problem(name, format!("expected {shape:?}, found {:?}", entry.shape)));
        }
        Ok(View { bytes: self.inner.store.bytes(entry), dtype: entry.dtype })
    }

    /// Reads a dense matrix `(rows, cols)`, which stays in the file.
    pub(crate) fn dense(&self, name: &str, shape: &[usize], rows: usize, cols: usize) -> Result<DenseWeight> {
        let view = self.view(name, shape)?;
        let Some(dtype) = FloatType::of(view.dtype) else {
            return Err(self.problem(name, format!("expected F32, F16 or BF16, found {:?}", view.dtype)));
        };
        let weight = DenseWeight::new(view.bytes, dtype, rows, cols);
        Ok(weight.with_activation_precision(self.inner.settings.activation_precision))
    }

    /// Reads a dense tensor of any rank as a matrix of `shape[0]` rows, which stays in the file.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not of floats. Inside [`load_all`](Self::load_all) none of these: a
    /// matrix without rows.
    ///
    /// # Panics
    /// When `shape` is empty.
    pub fn matrix(&self, name: &str, shape: &[usize]) -> Result<DenseWeight> {
        let (rows, cols) = (shape[0], shape[1..].iter().product());
        self.or_placeholder(self.dense(name, shape, rows, cols), || Ok(DenseWeight::from_f32(&[], 1)))
    }

    /// Reads a small tensor (norm weight, bias), widened to f32, onto the device.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not of floats. Inside [`load_all`](Self::load_all) none of these:
    /// zeros, which take no memory.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let n = shape.iter().product();
        let read = |dense: DenseWeight| {
            let mut values = vec![0.0; n];
            dense.read_row(0, &mut values);
            Ok(Tensor::from_vec(values, shape, self.device())?)
        };
        self.or_placeholder(self.dense(name, shape, 1, n).and_then(read), || {
            Ok(Tensor::zeros((1,), candle_core::DType::F32, self.device())?.broadcast_as(shape)?)
        })
    }

    /// Loads a whole network, or another part of a checkpoint, and returns every problem of its tensors in one error.
    ///
    /// `load` gets a handle for which a missing or misshapen tensor is not an error: a placeholder stands in for it. The
    /// result of `load` is returned only if there was no problem, and if no tensor whose name begins with one of the
    /// `prefixes` is [unread](Self::unread): a forgotten tensor is a wrong model.
    ///
    /// ```
    /// use lance_mm_tensor::{Linear, Result, RmsNorm, Weights};
    ///
    /// fn load(weights: &Weights) -> Result<(RmsNorm, Linear)> {
    ///     Ok((RmsNorm::load(&weights.pp("norm"), 8, 1e-6)?, Linear::load(&weights.pp("proj"), 8, 4)?))
    /// }
    ///
    /// let weights = Weights::open::<&str>(&[])?;
    /// assert!(load(&weights).err().unwrap().to_string().ends_with("norm.weight: missing, expected [8]"));
    /// let both = weights.load_all(&["norm.", "proj."], load).err().unwrap().to_string();
    /// assert!(both.contains("2 problems: norm.weight: missing") && both.contains("proj.weight: missing"));
    /// # Ok::<(), lance_mm_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Weights`] with all problems, or else the error of `load`.
    pub fn load_all<T>(&self, prefixes: &[&str], load: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let problems = Arc::<Mutex<Vec<Problem>>>::default();
        let loaded = load(&Self { problems: Some(problems.clone()), ..self.clone() });
        let mut list = std::mem::take(&mut *lock(&problems));
        match &loaded {
            Err(Error::Weights(problems)) => list.extend_from_slice(&problems.list),
            Ok(_) if list.is_empty() => list.extend(self.unread_below(prefixes)),
            _ => {}
        }
        // Problems first: another error may be the consequence of a placeholder.
        if list.is_empty() { loaded } else { Err(self.problems(list)) }
    }

    fn unread_below(&self, prefixes: &[&str]) -> Vec<Problem> {
        let below = |name: &String| prefixes.iter().any(|prefix| name.starts_with(&self.full(prefix)));
        let what = "no part of the model that config.json describes";
        let problem = |tensor| Problem { tensor, what: what.into(), missing: None };
        self.unread().into_iter().filter(below).map(problem).collect()
    }

    /// Reports a problem of the tensor `name`.
    ///
    /// # Errors
    /// The problem. Inside [`load_all`](Self::load_all) it is collected, and this returns `Ok`.
    pub fn report(&self, name: &str, what: impl Into<String>) -> Result<()> {
        self.or_placeholder(Err(self.problem(name, what)), || Ok(()))
    }

    /// Returns `found`; inside [`load_all`](Self::load_all) it collects problems and returns a placeholder instead.
    pub(crate) fn or_placeholder<T>(
        &self,
        found: Result<T>,
        placeholder: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match (found, &self.problems) {
            (Err(Error::Weights(problems)), Some(list)) => {
                lock(list).extend(problems.list);
                placeholder()
            }
            (found, _) => found,
        }
    }

    /// Makes an error of one problem.
    pub(crate) fn problem(&self, name: &str, what: impl Into<String>) -> Error {
        self.problems(vec![Problem { tensor: self.full(name), what: what.into(), missing: None }])
    }

    fn problems(&self, list: Vec<Problem>) -> Error {
        Error::Weights(Problems { files: self.files(), list })
    }

    /// Counts tensors as read that the caller knows and does not need: `ignore(|name| ...)`.
    pub fn ignore(&self, known: impl Fn(&str) -> bool) {
        let mut read = lock(&self.inner.read);
        read.extend(self.inner.store.all().into_iter().map(|t| t.name).filter(|name| known(name)));
    }

    /// Names of tensors that were neither read nor [ignored](Self::ignore).
    pub fn unread(&self) -> Vec<String> {
        let read = lock(&self.inner.read);
        self.inner.store.all().into_iter().map(|t| t.name).filter(|name| !read.contains(name)).collect()
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Locks a list; a panic of another thread while it pushed leaves the list usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
