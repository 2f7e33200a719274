//! Builds weights and plain tensors from a [`TensorSource`], and keeps the books on what was read.
//!
//! A missing or misshapen tensor does not stop the reading: all problems are reported together by [`Loader::finish`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::dense::plain_format;
use super::{BlockFormat, DenseWeight, Format, GgmlWeight, PackedWeight, TensorSource, Weight, hold};
use crate::{Error, Result, device};

/// How many names of one kind an error message lists.
const NAMES_SHOWN: usize = 12;

/// Reads named tensors of one checkpoint onto one device.
pub struct Loader<'a> {
    source: &'a dyn TensorSource,
    device: Device,
    dtype: DType,
    read: Mutex<BTreeSet<String>>,
    problems: Mutex<Vec<String>>,
    cancel: Option<Arc<AtomicBool>>,
    as_stored: bool,
    quantize: Option<Box<Quantize<'a>>>,
}

/// What to convert a matrix of this name and `in` columns to; `None` leaves it as it is.
pub type Quantize<'a> = dyn Fn(&str, usize) -> Option<Target> + 'a;

/// A format to convert a matrix to, and how much each of its columns matters where that is known.
#[derive(Debug, Clone)]
pub struct Target {
    /// The format.
    pub format: &'static BlockFormat,
    /// See [`GgmlWeight::quantize`].
    pub importance: Option<Arc<[f32]>>,
}

impl<'a> Loader<'a> {
    /// A loader that stores matrices as `dtype` (f32, f16 or bf16) on `device`.
    pub fn new(source: &'a dyn TensorSource, device: &Device, dtype: DType) -> Self {
        Self {
            source,
            device: device.clone(),
            dtype,
            read: Mutex::default(),
            problems: Mutex::default(),
            cancel: None,
            as_stored: false,
            quantize: None,
        }
    }

    /// The same loader, which stops with an error once `cancel` is set.
    pub fn with_cancel(mut self, cancel: Option<Arc<AtomicBool>>) -> Self {
        self.cancel = cancel;
        self
    }

    /// The same loader, which keeps matrices in the format of the file, where the device can, instead of its dtype.
    pub fn with_formats_of_the_file(mut self, keep: bool) -> Self {
        self.as_stored = keep;
        self
    }

    /// The same loader, which converts the matrices that `choose` names a format for.
    pub fn with_quantization(mut self, choose: Option<Box<Quantize<'a>>>) -> Self {
        self.quantize = choose;
        self
    }

    /// The scope of all tensors.
    pub fn root(&self) -> Scope<'_> {
        Scope { loader: self, path: String::new() }
    }

    /// The device on which tensors are built.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of activations that meet these tensors.
    pub fn compute_dtype(&self) -> DType {
        device::compute_dtype(&self.device, self.dtype)
    }

    /// Number of elements of all tensors read so far.
    pub fn parameters_read(&self) -> usize {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let infos = read.iter().filter_map(|name| self.source.info(name));
        infos.map(|info| info.shape.iter().product::<usize>()).sum()
    }

    /// Reports everything that was missing, misshapen, or never read.
    ///
    /// `ignorable` names tensors that real checkpoints carry without need, such as stored rotary frequencies.
    ///
    /// # Errors
    /// [`Error::InvalidCheckpoint`] with all problems.
    pub fn finish(self, ignorable: impl Fn(&str) -> bool) -> Result<()> {
        let mut problems = self.problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        let read = self.read.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut unread: Vec<String> =
            self.source.names().into_iter().filter(|name| !read.contains(name) && !ignorable(name)).collect();
        if !unread.is_empty() {
            unread.sort();
            let more = unread.len().saturating_sub(NAMES_SHOWN);
            unread.truncate(NAMES_SHOWN);
            let suffix = if more > 0 { format!(" and {more} more") } else { String::new() };
            problems
                .push(format!("tensors that this architecture does not use: {}{suffix}", unread.join(", ")));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::InvalidCheckpoint { path: self.source.path().to_path_buf(), problems })
    }

    fn problem(&self, text: String) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// The format of `name` if it is there with the expected shape; notes the problem otherwise.
    fn check(&self, name: &str, shape: &[usize]) -> Option<Format> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        match self.source.info(name) {
            None => self.problem(format!("tensor {name} is missing")),
            Some(info) if info.shape != shape => {
                self.problem(format!("tensor {name} has shape {:?}, expected {shape:?}", info.shape));
            }
            Some(info) => return Some(info.format),
        }
        None
    }

    /// A matrix in the form that this loader holds matrices in.
    fn matrix(&self, name: &str, shape: [usize; 2], format: Format) -> Result<Arc<dyn Weight>> {
        self.check_cancelled()?;
        let chosen = self.quantize.as_ref().and_then(|choose| choose(name, shape[1]));
        if let Some(target) = chosen.as_ref().filter(|target| target.format.format != format) {
            let values = self.values(name, &shape, format)?;
            let matrix = GgmlWeight::quantize(name, &values, target.format, target.importance.as_deref())?;
            return matrix.on(&self.device, self.dtype);
        }
        if format.is_quantized() && (self.as_stored || chosen.is_some()) {
            let matrix = GgmlWeight::new(format, &self.source.bytes(name)?, shape[1])?;
            return matrix.on(&self.device, self.dtype);
        }
        let own = if self.as_stored { plain_dtype(format) } else { None };
        let dtype = own.unwrap_or(self.dtype);
        if !self.device.is_cpu() {
            return hold(&self.plain(name, &shape, format, self.dtype)?);
        }
        if plain_dtype(format).is_some() {
            let (held, bytes) = (plain_format(dtype)?, self.source.bytes(name)?);
            return Ok(Arc::new(PackedWeight::converted(held, format, &bytes, shape[1])?));
        }
        hold(&self.plain(name, &shape, format, dtype)?)
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Error::io(self.source.path(), std::io::ErrorKind::Interrupted.into()));
        }
        Ok(())
    }

    fn plain(&self, name: &str, shape: &[usize], format: Format, dtype: DType) -> Result<Tensor> {
        self.check_cancelled()?;
        Ok(self.values(name, shape, format)?.to_dtype(dtype)?.to_device(&self.device)?)
    }

    /// The values on the CPU in the type they are stored in, blocks as f32.
    fn values(&self, name: &str, shape: &[usize], format: Format) -> Result<Tensor> {
        if let Some(blocks) = BlockFormat::of(format) {
            let mut values = vec![0f32; shape.iter().product()];
            blocks.decode(&self.source.bytes(name)?, &mut values);
            return Ok(Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        let stored = if format == Format::F64 { Some(DType::F64) } else { plain_dtype(format) };
        let Some(stored) = stored else {
            self.problem(format!("tensor {name} is stored as {format:?}, which cannot be used here"));
            return placeholder(shape, DType::F32, &Device::Cpu);
        };
        Ok(Tensor::from_raw_buffer(&self.source.bytes(name)?, stored, shape, &Device::Cpu)?)
    }
}

/// The dtype of a format that tensors can have and matrices can be held in.
fn plain_dtype(format: Format) -> Option<DType> {
    match format {
        Format::F32 => Some(DType::F32),
        Format::F16 => Some(DType::F16),
        Format::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// A tensor of zeros that takes no memory, standing in for one that was already reported as a problem.
fn placeholder(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::zeros((), dtype, device)?.broadcast_as(shape)?)
}

/// The tensors below one path of a checkpoint.
#[derive(Clone)]
pub struct Scope<'a> {
    loader: &'a Loader<'a>,
    path: String,
}

impl Scope<'_> {
    /// The scope of `name` below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { loader: self.loader, path: self.join(&name.to_string()) }
    }

    /// The dotted path of this scope, without a trailing dot.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The device on which tensors are built.
    pub fn device(&self) -> &Device {
        self.loader.device()
    }

    /// The dtype of activations that meet these tensors.
    pub fn compute_dtype(&self) -> DType {
        self.loader.compute_dtype()
    }

    /// Whether the checkpoint has a tensor of this name below this scope.
    pub fn contains(&self, name: &str) -> bool {
        self.loader.source.info(&self.join(name)).is_some()
    }

    /// A small tensor such as a norm's weight or a bias, in the dtype of activations.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (name, dtype) = (self.join(name), self.compute_dtype());
        match self.loader.check(&name, shape) {
            Some(format) => self.loader.plain(&name, shape, format, dtype),
            None => placeholder(shape, dtype, self.device()),
        }
    }

    /// A matrix `[out, in]` in the form that the loader holds matrices in.
    pub fn matrix(&self, name: &str, out: usize, inn: usize) -> Result<Arc<dyn Weight>> {
        let name = self.join(name);
        match self.loader.check(&name, &[out, inn]) {
            Some(format) => {
                let matrix = self.loader.matrix(&name, [out, inn], format);
                self.loader.source.release(&name);
                matrix
            }
            None => {
                let nothing = Tensor::zeros((0, 0), self.loader.dtype, self.device())?;
                Ok(Arc::new(DenseWeight::new(nothing)?))
            }
        }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
