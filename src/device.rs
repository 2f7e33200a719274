//! Where tensors live: the only place that probes hardware.
//!
//! It deliberately knows nothing of models or kernels; a kernel asks the tensor it is given for its device.

#[cfg(feature = "metal")]
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};

use crate::{Error, Result};

/// Opens a device by name: `"auto"`, `"cpu"`, `"metal"`, `"cuda"` or `"cuda:N"`.
///
/// `"auto"` takes the best accelerator this build was made for and falls back to the CPU, with a log line where an
/// accelerator was expected but could not be opened. A device asked for by name is an error where it cannot be had.
///
/// # Errors
/// [`Error::DeviceUnavailable`] where the device is not there; [`Error::InvalidArgument`] for an unknown name.
pub fn open(name: &str) -> Result<Device> {
    match name {
        "auto" => Ok(open_auto()),
        "cpu" => Ok(Device::Cpu),
        "metal" => open_metal(),
        "cuda" => open_cuda(0),
        _ => match name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()) {
            Some(ordinal) => open_cuda(ordinal),
            None => Err(Error::argument(
                "device",
                format!("{name:?}"),
                "\"auto\", \"cpu\", \"metal\", \"cuda\" or \"cuda:N\"",
            )),
        },
    }
}

fn open_auto() -> Device {
    let accelerator = if cfg!(feature = "metal") {
        open_metal()
    } else if cfg!(feature = "cuda") {
        open_cuda(0)
    } else {
        return Device::Cpu;
    };
    accelerator.unwrap_or_else(|error| {
        log::warn!("{error}; using the CPU");
        Device::Cpu
    })
}

fn unavailable(device: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::DeviceUnavailable { device: device.into(), reason: reason.into() }
}

/// The one Metal device of this process: tensors of two candle devices on the same GPU could not meet.
#[cfg(feature = "metal")]
fn open_metal() -> Result<Device> {
    static OPENED: Mutex<Option<Device>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = &*opened {
        return Ok(device.clone());
    }
    // candle would panic, with a message on standard error.
    if candle_metal_kernels::metal::Device::all().is_empty() {
        return Err(unavailable("metal", NO_GPU));
    }
    let device = open_guarded("metal", || Device::new_metal(0))?;
    *opened = Some(device.clone());
    Ok(device)
}

#[cfg(not(feature = "metal"))]
fn open_metal() -> Result<Device> {
    Err(unavailable("metal", "this build of candlewick has no Metal support; use \"cpu\" or \"auto\""))
}

fn open_cuda(ordinal: usize) -> Result<Device> {
    let name = format!("cuda:{ordinal}");
    if !cfg!(feature = "cuda") {
        return Err(unavailable(
            name,
            "this build of candlewick has no CUDA support; use \"cpu\" or \"auto\"",
        ));
    }
    open_guarded(&name, || Device::new_cuda(ordinal))
}

/// Why a device that the build supports is not there.
const NO_GPU: &str = "no usable GPU was found (a remote session or a sandbox may hide it)";

/// Opens a device whose driver bindings panic where there is no hardware.
fn open_guarded(
    name: &str,
    open: impl FnOnce() -> candle_core::Result<Device> + std::panic::UnwindSafe,
) -> Result<Device> {
    match std::panic::catch_unwind(open) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(unavailable(name, error.to_string())),
        Err(_) => Err(unavailable(name, NO_GPU)),
    }
}

/// The name that [`open`] would accept for this device.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Metal { .. } => "metal".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
    }
}

/// The dtype of activations for weights of `dtype` on `device`: f32 on the CPU, the weights' own elsewhere.
pub fn compute_dtype(device: &Device, dtype: DType) -> DType {
    if device.is_cpu() { DType::F32 } else { dtype }
}

/// Runs one step of a loop, and gives back at its end what the driver hands out until then.
///
/// On Metal command buffers and their like belong to a pool of the thread, which would otherwise grow until it ends.
pub fn in_pool<R>(device: &Device, step: impl FnOnce() -> R) -> R {
    #[cfg(feature = "metal")]
    if device.is_metal() {
        return objc2::rc::autoreleasepool(|_| step());
    }
    let _ = device;
    step()
}

/// Bytes that the device's driver has handed out to this process; `None` where it cannot tell.
pub fn allocated_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "metal")]
    if let Device::Metal(metal) = device {
        return Some(metal.metal_device().current_allocated_size() as u64);
    }
    let _ = device;
    None
}

/// Waits until the device has finished all work submitted to it.
pub fn synchronize(device: &Device) -> Result<()> {
    Ok(device.synchronize()?)
}

/// Bytes of memory that this machine has; where the system does not tell, more than any has.
pub fn total_memory_bytes() -> u64 {
    let kibibytes = |text: String| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let told = std::fs::read_to_string("/proc/meminfo").ok().and_then(kibibytes);
    told.map_or(1 << 44, |kibibytes| kibibytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_open_what_they_say() {
        assert_eq!(name(&open("cpu").unwrap()), "cpu");
        assert_eq!(
            name(&open("auto").unwrap()),
            if cfg!(any(feature = "metal", feature = "cuda")) {
                name(&open("auto").unwrap())
            } else {
                "cpu".into()
            }
        );
    }

    #[test]
    fn unknown_and_missing_devices_are_errors() {
        assert!(matches!(open("tpu"), Err(Error::InvalidArgument { .. })));
        assert!(matches!(open("cuda:x"), Err(Error::InvalidArgument { .. })));
        if !cfg!(feature = "metal") {
            assert!(matches!(open("metal"), Err(Error::DeviceUnavailable { .. })));
        }
        if !cfg!(feature = "cuda") {
            assert!(matches!(open("cuda:1"), Err(Error::DeviceUnavailable { .. })));
        }
    }
}
