//! Builds weights and plain tensors from a [`TensorSource`], and keeps the books on what was read.
//!
//! A missing or misshapen tensor does not stop the reading: all problems are reported together by [`Loader::finish`].

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::{DenseWeight, Format, PackedWeight, TensorSource, Weight};
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
        }
    }

    /// The same loader, which stops with an error once `cancel` is set.
    pub fn with_cancel(mut self, cancel: Option<Arc<AtomicBool>>) -> Self {
        self.cancel = cancel;
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

    /// A matrix in the CPU's layout, packed straight from the file where its type is already the one asked for.
    fn packed(&self, name: &str, shape: &[usize], format: Format) -> Result<Arc<dyn Weight>> {
        let wanted = match self.dtype {
            DType::BF16 => Format::BF16,
            DType::F16 => Format::F16,
            _ => Format::F32,
        };
        if format == wanted {
            self.check_cancelled()?;
            return Ok(Arc::new(PackedWeight::new(format, &self.source.bytes(name)?, shape[1])?));
        }
        let converted = self.plain(name, shape, format, self.dtype)?.flatten_all()?;
        let bytes: Vec<u8> = match self.dtype {
            DType::BF16 => {
                converted.to_vec1::<half::bf16>()?.into_iter().flat_map(half::bf16::to_le_bytes).collect()
            }
            DType::F16 => {
                converted.to_vec1::<half::f16>()?.into_iter().flat_map(half::f16::to_le_bytes).collect()
            }
            _ => converted.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
        };
        Ok(Arc::new(PackedWeight::new(wanted, &bytes, shape[1])?))
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            return Err(Error::io(self.source.path(), std::io::ErrorKind::Interrupted.into()));
        }
        Ok(())
    }

    fn plain(&self, name: &str, shape: &[usize], format: Format, dtype: DType) -> Result<Tensor> {
        self.check_cancelled()?;
        let stored = match format {
            Format::F32 => DType::F32,
            Format::F16 => DType::F16,
            Format::BF16 => DType::BF16,
            Format::F64 => DType::F64,
            other => {
                self.problem(format!("tensor {name} is stored as {other:?}, which cannot be used here"));
                return placeholder(shape, dtype, &self.device);
            }
        };
        let bytes = self.source.bytes(name)?;
        let tensor = Tensor::from_raw_buffer(&bytes, stored, shape, &Device::Cpu)?;
        Ok(tensor.to_dtype(dtype)?.to_device(&self.device)?)
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

    /// A matrix `[out, in]` in the loader's dtype.
    pub fn matrix(&self, name: &str, out: usize, inn: usize) -> Result<Arc<dyn Weight>> {
        let (name, dtype) = (self.join(name), self.loader.dtype);
        match self.loader.check(&name, &[out, inn]) {
            Some(format) if self.device().is_cpu() => self.loader.packed(&name, &[out, inn], format),
            Some(format) => {
                Ok(Arc::new(DenseWeight::new(self.loader.plain(&name, &[out, inn], format, dtype)?)?))
            }
            None => Ok(Arc::new(DenseWeight::new(Tensor::zeros((0, 0), dtype, self.device())?)?)),
        }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
