//! Shaders of our own for Apple GPUs, where candle has none or wrong ones, and how they are launched.
//!
//! Each op has a `.metal` file with the name of its Rust file. A file is compiled once per process and GPU. Kernels
//! are called `<what>_<dtype>`, and their buffers are inputs, then constants, then outputs. It decides nothing: an op's
//! own file says when its shader is taken.

pub(super) mod attention;
pub(super) mod cross_entropy;
pub(super) mod linear;
pub(super) mod rows;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{DType, Layout, MetalDevice, MetalStorage, Result as CandleResult, Shape, Storage, Tensor};
use candle_metal_kernels::metal::ComputePipeline;
use objc2_metal::MTLSize;

/// The most bytes of constants that one argument may have.
pub(super) const MAX_CONSTANT_BYTES: usize = 4096;

/// A contiguous tensor on the GPU.
pub(super) type View<'a> = (&'a MetalStorage, &'a Layout);

/// One dispatch of one kernel.
pub(super) struct Launch<'a> {
    /// The text of the `.metal` file.
    pub(super) source: &'static str,
    pub(super) kernel: &'a str,
    pub(super) inputs: &'a [View<'a>],
    /// Structs of 32-bit numbers, each as its words.
    pub(super) constants: &'a [&'a [u32]],
    pub(super) outputs: &'a [&'a MetalStorage],
    /// Threadgroups in each direction; where one is 0 nothing is done.
    pub(super) groups: [usize; 3],
    /// Threads of a threadgroup, a multiple of 32.
    pub(super) threads: usize,
}

impl Launch<'_> {
    /// Queues the work. Barriers between dispatches follow from what is bound as input and as output.
    pub(super) fn run(&self, device: &MetalDevice) -> CandleResult<()> {
        if self.groups.contains(&0) {
            return Ok(());
        }
        let pipeline = pipeline(device, self.source, self.kernel)?;
        let guard = device.command_encoder()?;
        let encoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        let mut index = 0;
        for (storage, layout) in self.inputs {
            if !layout.is_contiguous() {
                candle_core::bail!(
                    "{}: expected a contiguous tensor, got strides {:?}",
                    self.kernel,
                    layout.stride()
                );
            }
            let offset = layout.start_offset() * storage.dtype().size_in_bytes();
            encoder.set_input_buffer(index, Some(storage.buffer()), offset);
            index += 1;
        }
        for words in self.constants {
            encoder.set_bytes_directly(index, size_of_val(*words), words.as_ptr().cast());
            index += 1;
        }
        for storage in self.outputs {
            encoder.set_output_buffer(index, Some(storage.buffer()), 0);
            index += 1;
        }
        let [width, height, depth] = self.groups;
        encoder.dispatch_thread_groups(
            MTLSize { width, height, depth },
            MTLSize { width: self.threads, height: 1, depth: 1 },
        );
        Ok(())
    }
}

/// Room for a result; its contents are undefined until a kernel has written them.
pub(super) fn allocate(device: &MetalDevice, count: usize, dtype: DType) -> CandleResult<MetalStorage> {
    let buffer = device.new_buffer(count, dtype, "candlewick")?;
    Ok(MetalStorage::new(buffer, device.clone(), count, dtype))
}

/// A tensor without history.
pub(super) fn tensor(storage: MetalStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Metal(storage), shape, BackpropOp::none(), false)
}

/// The GPU's side of a storage.
pub(super) fn on_gpu(storage: &Storage) -> CandleResult<&MetalStorage> {
    match storage {
        Storage::Metal(storage) => Ok(storage),
        _ => candle_core::bail!("expected a tensor on the Metal device"),
    }
}

/// What kernels call a dtype; `None` where there are none for it.
pub(super) fn suffix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
        _ => None,
    }
}

/// The compiled kernel, from this process's cache.
fn pipeline(device: &MetalDevice, source: &'static str, kernel: &str) -> CandleResult<ComputePipeline> {
    type Key = (u64, usize);
    type Library = candle_metal_kernels::metal::Library;
    struct Compiled {
        libraries: HashMap<Key, Library>,
        pipelines: HashMap<(Key, String), ComputePipeline>,
    }
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);

    let gpu = device.metal_device();
    let key = (gpu.registry_id(), source.as_ptr().addr());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled =
        compiled.get_or_insert_with(|| Compiled { libraries: HashMap::new(), pipelines: HashMap::new() });
    let name = (key, kernel.to_owned());
    if let Some(pipeline) = compiled.pipelines.get(&name) {
        return Ok(pipeline.clone());
    }
    let failed = |error: candle_metal_kernels::MetalKernelError| {
        candle_core::Error::Msg(format!("Metal kernel {kernel}: {error}"))
    };
    let library = match compiled.libraries.entry(key) {
        Entry::Occupied(found) => found.into_mut(),
        Entry::Vacant(free) => free.insert(gpu.new_library_with_source(source, None).map_err(failed)?),
    };
    let function = library.get_function(kernel, None).map_err(failed)?;
    let pipeline = gpu.new_compute_pipeline_state_with_function(&function).map_err(failed)?;
    compiled.pipelines.insert(name, pipeline.clone());
    Ok(pipeline)
}
