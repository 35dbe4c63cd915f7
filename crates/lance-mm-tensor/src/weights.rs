//! Weights of a checkpoint: mapped safetensors files and a path into their names.

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
use crate::precision::ActivationPrecision;
use crate::precision::Products;
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

/// How the values of files are taken, and where to.
#[derive(Clone)]
struct Reading {
    quantization: Quantization,
    products: Products,
    activations: ActivationPrecision,
    device: Device,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            quantization: Quantization::default(),
            products: Products::default(),
            activations: ActivationPrecision::default(),
            device: Device::Cpu,
        }
    }
}

struct Inner {
    store: Store,
    reading: Reading,
    used: Mutex<HashSet<String>>,
}

/// The bytes of one tensor where they lie in the file.
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
    /// As [`open`](Self::open); neither file present; a shard that lacks a promised tensor.
    pub fn open_in(dir: &Path, stem: &str) -> Result<Self> {
        Store::open_in(dir, stem).map(Self::new)
    }

    /// Reads a safetensors file that lies in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Store::from_bytes(name, Bytes::from_static(bytes)).map(Self::new)
    }

    /// As [`from_static`](Self::from_static), the bytes given away.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_vec(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Store::from_bytes(name, Bytes::from_vec(bytes)).map(Self::new)
    }

    /// The same tensors, but for those that `over` has under the same name, and its others: what a changed
    /// layer does is seen without writing a checkpoint. A dense module that `over` has packed is packed.
    pub fn overlaid(&self, over: &Self) -> Self {
        let store = self.inner.store.overlaid(&over.inner.store);
        Self::read_as(store, self.inner.reading.clone(), self.prefix.clone())
    }

    fn new(store: Store) -> Self {
        Self::read_as(store, Reading::default(), String::new())
    }

    fn read_as(store: Store, reading: Reading, prefix: String) -> Self {
        let inner = Inner { store, reading, used: Mutex::default() };
        Self { inner: Arc::new(inner), prefix, problems: None }
    }

    /// The same files read under these quantization settings (`quantization` of `config.json`).
    pub fn with_quantization(self, quantization: Quantization) -> Self {
        self.read_with(|reading| reading.quantization = quantization)
    }

    /// The same files, affine matrices read as `mx.dequantize` reads them: product and sum each rounded to
    /// the type of the scales. The default is `scale · code + bias` without rounding, as `mx.quantized_matmul`
    /// computes (on AMX rounded to bf16 for many rows); this is for comparing with numbers that were made from
    /// dequantized weights. Activations are in f32.
    pub fn with_mlx_rounding(self) -> Self {
        self.with_products(Products::MlxRounded)
    }

    /// The same files, all matrices multiplied with activations in f32, to measure what rounding them costs: see
    /// [`AffineWeight::with_f32_activations`](crate::AffineWeight::with_f32_activations) and
    /// [`ActivationPrecision::F32`].
    pub fn with_f32_activations(self) -> Self {
        self.with_products(Products::F32).with_activation_precision(ActivationPrecision::F32)
    }

    /// What the inputs of products with bf16 matrices, and those of attention, are taken as.
    pub fn activation_precision(&self) -> ActivationPrecision {
        self.inner.reading.activations
    }

    /// The same files, inputs of products with bf16 matrices and those of attention taken as `activations`.
    pub fn with_activation_precision(self, activations: ActivationPrecision) -> Self {
        self.read_with(|reading| reading.activations = activations)
    }

    /// The same files, loaded onto `device`: matrices are copied there as they are stored. The CPU reads them where
    /// they are mapped.
    pub fn with_device(self, device: Device) -> Self {
        self.read_with(|reading| reading.device = device)
    }

    fn with_products(self, products: Products) -> Self {
        self.read_with(|reading| reading.products = products)
    }

    fn read_with(self, change: impl FnOnce(&mut Reading)) -> Self {
        let mut reading = self.inner.reading.clone();
        change(&mut reading);
        Self::read_as(self.inner.store.clone(), reading, self.prefix)
    }

    /// The weights below `part`: `weights.pp("layers").pp(3)`.
    pub fn pp(&self, part: impl Display) -> Self {
        Self { prefix: format!("{}{part}.", self.prefix), ..self.clone() }
    }

    /// The path of this part, without the final dot; empty at the top.
    pub fn path(&self) -> &str {
        self.prefix.strip_suffix('.').unwrap_or(&self.prefix)
    }

    /// The files, for messages.
    pub fn files(&self) -> String {
        self.inner.store.describe()
    }

    /// The files' paths; empty for weights in memory.
    pub fn file_paths(&self) -> Vec<PathBuf> {
        self.inner.store.paths()
    }

    /// Gives the memory that pages of the files take in this process back, of all parts: for weights that are
    /// not needed for a while. Reading them again maps them again, as a rule from the system's file cache.
    /// Weights in memory stay, and so do mapped ones where the system is not a Unix.
    ///
    /// # Errors
    /// What the system refuses: pages that were locked.
    pub fn release(&self) -> Result<()> {
        self.inner.store.release()
    }

    /// The device that networks are loaded onto.
    pub fn device(&self) -> &Device {
        &self.inner.reading.device
    }

    pub(crate) fn quantization(&self) -> &Quantization {
        &self.inner.reading.quantization
    }

    pub(crate) fn products(&self) -> Products {
        self.inner.reading.products
    }

    /// Whether a tensor of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.inner.store.get(&self.full(name)).is_some()
    }

    /// Shape and dtype of a tensor, if it is there.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.inner.store.info(&self.full(name))
    }

    /// Every tensor of the files: name, dtype, shape, in the order of the files. Ignores the prefix.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        self.inner.store.all()
    }

    /// Shows a tensor's bytes, as they lie in the file, to `read`; `None` if it is not there. The tensor does
    /// not count as used.
    pub fn with_bytes<T>(&self, name: &str, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let store = &self.inner.store;
        store.get(&self.full(name)).map(|entry| read(&store.bytes(entry)))
    }

    /// A tensor's bytes, checked for shape.
    pub(crate) fn view(&self, name: &str, shape: &[usize]) -> Result<View> {
        let full = self.full(name);
        let Some(entry) = self.inner.store.get(&full) else {
            let what = format!("missing, expected {shape:?}");
            let problem = Problem { tensor: full, what, missing: Some(shape.to_vec()) };
            return Err(self.problems(vec![problem]));
        };
        lock(&self.inner.used).insert(full);
        if entry.shape != shape {
            return Err(self.problem(name, format!("expected {shape:?}, found {:?}", entry.shape)));
        }
        Ok(View { bytes: self.inner.store.bytes(entry), dtype: entry.dtype })
    }

    /// A dense matrix `(rows, cols)`, left in the file.
    pub(crate) fn dense(&self, name: &str, shape: &[usize], rows: usize, cols: usize) -> Result<DenseWeight> {
        let view = self.view(name, shape)?;
        let Some(dtype) = FloatType::of(view.dtype) else {
            return Err(self.problem(name, format!("expected F32, F16 or BF16, found {:?}", view.dtype)));
        };
        let weight = DenseWeight::new(view.bytes, dtype, rows, cols);
        Ok(weight.with_activation_precision(self.inner.reading.activations))
    }

    /// A dense tensor of any rank left in the file, read as a matrix of `shape[0]` rows.
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

    /// A small tensor (norm weight, bias) widened to f32 on the device.
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

    /// Loads a whole network, or another part of a checkpoint, with every problem of its tensors in one error.
    ///
    /// `load` gets a handle with which a missing or misshapen tensor does not end loading: a placeholder stands in for it.
    /// What `load` returns is given out only if there was none, and every tensor below the `prefixes` was
    /// [read](Self::unread) or [known](Self::ignore): a forgotten tensor is a wrong model.
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
    /// [`Error::Weights`] with all problems, or else what `load` returns.
    pub fn load_all<T>(&self, prefixes: &[&str], load: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let problems = Arc::<Mutex<Vec<Problem>>>::default();
        let loaded = load(&Self { problems: Some(problems.clone()), ..self.clone() });
        let mut list = std::mem::take(&mut *lock(&problems));
        match &loaded {
            Err(Error::Weights(problems)) => list.extend_from_slice(&problems.list),
            Ok(_) if list.is_empty() => list.extend(self.unread_below(prefixes)),
            _ => {}
        }
        // Another error comes last: a placeholder may be the cause of it.
        if list.is_empty() { loaded } else { Err(self.problems(list)) }
    }

    fn unread_below(&self, prefixes: &[&str]) -> Vec<Problem> {
        let below = |name: &String| prefixes.iter().any(|prefix| name.starts_with(&self.full(prefix)));
        let what = "no part of the model that config.json describes";
        let problem = |tensor| Problem { tensor, what: what.into(), missing: None };
        self.unread().into_iter().filter(below).map(problem).collect()
    }

    /// Reports something wrong with the tensor `name`.
    ///
    /// # Errors
    /// The problem; inside [`load_all`](Self::load_all) none, which keeps it.
    pub fn report(&self, name: &str, what: impl Into<String>) -> Result<()> {
        self.or_placeholder(Err(self.problem(name, what)), || Ok(()))
    }

    /// `found`; inside [`load_all`](Self::load_all) a placeholder instead of an error about tensors, which is kept.
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

    /// The error of a tensor with which something is wrong.
    pub(crate) fn problem(&self, name: &str, what: impl Into<String>) -> Error {
        self.problems(vec![Problem { tensor: self.full(name), what: what.into(), missing: None }])
    }

    fn problems(&self, list: Vec<Problem>) -> Error {
        Error::Weights(Problems { files: self.files(), list })
    }

    /// Counts tensors as used that a caller knows and does not read: `leave(|name| ...)`.
    pub fn ignore(&self, known: impl Fn(&str) -> bool) {
        let mut used = lock(&self.inner.used);
        used.extend(self.inner.store.all().into_iter().map(|t| t.name).filter(|name| known(name)));
    }

    /// Tensors of the files that nobody has read or left.
    pub fn unread(&self) -> Vec<String> {
        let used = lock(&self.inner.used);
        self.inner.store.all().into_iter().map(|t| t.name).filter(|name| !used.contains(name)).collect()
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// A panic while a list was pushed to leaves the list usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
