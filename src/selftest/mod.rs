//! Does a device compute what the CPU computes? Every kernel against plain tensor ops, and the bundled model as a whole.
//!
//! It is for machines that no developer has: `candlewick selftest` prints what these checks find. It measures no speed.

mod kernels;
mod models;

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use crate::{Error, LoadOptions, Model, Result, device};

/// What one check found.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was computed.
    pub name: String,
    /// In which dtype.
    pub dtype: &'static str,
    /// The largest difference, relative to the largest value where that is above 1.
    pub difference: f32,
    /// The largest difference that counts as rounding.
    pub tolerance: f32,
    /// How long the device's part took, in seconds; the first use of a kernel compiles it.
    pub seconds: f64,
    /// Why nothing could be compared.
    pub error: Option<String>,
}

impl Check {
    /// Whether the device computed what it should.
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.difference <= self.tolerance
    }
}

/// Which checks to run, and on what.
#[derive(Debug, Clone)]
pub struct SelftestOptions {
    /// The name of a device, as in [`LoadOptions`].
    pub device: String,
    /// The directory of `candlewick/tiny`, where it is not in the source tree.
    pub bundled: Option<PathBuf>,
}

/// Runs every check on a device and hands each result to `report` as it comes; returns how many failed.
///
/// # Errors
/// [`Error::DeviceUnavailable`] and [`Error::InvalidArgument`] as when a model is loaded; whatever `report` returns.
/// A check that cannot be carried out is a result, not an error.
pub fn selftest(options: &SelftestOptions, report: &mut dyn FnMut(&Check) -> Result<()>) -> Result<usize> {
    let device = device::open(&options.device)?;
    let mut failed = 0;
    let mut take = |check: Check| -> Result<()> {
        failed += usize::from(!check.passed());
        report(&check)
    };
    for dtype in dtypes(&device) {
        for case in kernels::cases()? {
            device::in_pool(&device, || case.run(&device, dtype)).into_iter().try_for_each(&mut take)?;
        }
    }
    let load = |device: &str| LoadOptions {
        device: device.into(),
        dtype: "float32".into(),
        bundled: options.bundled.clone(),
        ..LoadOptions::default()
    };
    let name = device::name(&device);
    for (what, tolerance, compute) in models::CHECKS {
        take(measured(*what, DType::F32, *tolerance, || {
            Ok((compute(&load(&name))?, compute(&load("cpu"))?))
        }))?;
    }
    Ok(failed)
}

/// The dtypes of activations that a device works in.
fn dtypes(device: &Device) -> Vec<DType> {
    if device.is_cpu() { vec![DType::F32] } else { vec![DType::F32, DType::F16, DType::BF16] }
}

/// Compares two lists of tensors that `compute` makes.
fn measured(
    name: impl Into<String>,
    dtype: DType,
    tolerance: f32,
    compute: impl FnOnce() -> Result<(Vec<Tensor>, Vec<Tensor>)>,
) -> Check {
    let begun = Instant::now();
    let found = compute().and_then(|(got, want)| {
        let seconds = begun.elapsed().as_secs_f64();
        if got.len() != want.len() {
            return Err(Error::internal(
                "selftest",
                format!("{} results, expected {}", got.len(), want.len()),
            ));
        }
        let mut worst = 0f32;
        for (got, want) in got.iter().zip(&want) {
            let next = difference(got, want)?;
            worst = if next.is_nan() { f32::INFINITY } else { worst.max(next) };
        }
        Ok((worst, seconds))
    });
    let (difference, seconds, error) = match found {
        Ok((difference, seconds)) => (difference, seconds, None),
        Err(error) => (f32::INFINITY, begun.elapsed().as_secs_f64(), Some(error.to_string())),
    };
    Check { name: name.into(), dtype: dtype.as_str(), difference, tolerance, seconds, error }
}

/// The largest difference, in units of the largest expected value where that is above 1.
fn difference(got: &Tensor, want: &Tensor) -> Result<f32> {
    if got.dims() != want.dims() {
        let found = format!("a result of shape {:?}, expected {:?}", got.dims(), want.dims());
        return Err(Error::internal("selftest", found));
    }
    let values = |x: &Tensor| -> Result<Vec<f32>> {
        Ok(x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let (got, want) = (values(got)?, values(want)?);
    let scale = want.iter().fold(1f32, |scale, x| scale.max(x.abs()));
    let worst = |worst: f32, (a, b): (&f32, &f32)| {
        let next = (a - b).abs() / scale;
        if next.is_nan() || worst.is_nan() { f32::NAN } else { worst.max(next) }
    };
    Ok(got.iter().zip(&want).fold(0f32, worst))
}

/// The bundled model.
fn tiny(options: &LoadOptions) -> Result<Model> {
    Model::load(crate::models::BUNDLED, options)
}
