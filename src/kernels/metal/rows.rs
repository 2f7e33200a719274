//! Norms, rotations and activations on the GPU: launches of rms_norm.metal, layer_norm.metal, rope.metal and
//! gated_act.metal.

use candle_core::backend::BackendStorage;
use candle_core::{Device, MetalStorage, Result as CandleResult, Shape, Tensor};

use super::{Launch, View, allocate, on_gpu, suffix, tensor};

const RMS_NORM: &str = concat!(include_str!("reduce.metal"), include_str!("rms_norm.metal"));
const LAYER_NORM: &str = concat!(include_str!("reduce.metal"), include_str!("layer_norm.metal"));
const ROPE: &str = include_str!("rope.metal");
const GATED_ACT: &str = include_str!("gated_act.metal");

/// Threads of a threadgroup where each works on an element.
const ELEMENTS: usize = 256;

/// Whether the kernels take these tensors: on the GPU, all of one of the float dtypes, and not empty.
pub(in crate::kernels) fn fits(tensors: &[&Tensor]) -> bool {
    let first = tensors[0];
    suffix(first.dtype()).is_some()
        && tensors.iter().all(|x| {
            matches!(x.device(), Device::Metal(_)) && x.dtype() == first.dtype() && x.elem_count() > 0
        })
}

/// Hands the storages of tensors on the GPU to `f`.
pub(in crate::kernels) fn with_views<R, const N: usize>(
    tensors: [&Tensor; N],
    f: impl FnOnce([View; N]) -> CandleResult<R>,
) -> CandleResult<R> {
    let stored = tensors.map(Tensor::storage_and_layout);
    let mut views = Vec::with_capacity(N);
    for (storage, layout) in &stored {
        views.push((on_gpu(storage)?, *layout));
    }
    match <[View; N]>::try_from(views) {
        Ok(views) => f(views),
        Err(_) => candle_core::bail!("a tensor without a view"),
    }
}

/// Threads for a row of `width` elements: enough simdgroups to hide latency, none without work.
fn threads(width: usize) -> usize {
    width.div_ceil(4).next_multiple_of(32).min(512)
}

/// Which norm, by its kernels.
#[derive(Clone, Copy)]
pub(in crate::kernels) enum Norm {
    /// Root mean square.
    Rms,
    /// Mean and variance, with a bias or without.
    Layer {
        /// Whether the bias is added.
        has_bias: bool,
    },
}

impl Norm {
    fn kernel(self) -> (&'static str, &'static str, bool) {
        match self {
            Self::Rms => (RMS_NORM, "rms_norm", false),
            Self::Layer { has_bias } => (LAYER_NORM, "layer_norm", has_bias),
        }
    }

    /// One threadgroup a row: `inputs` to `copies` tensors like the first of them.
    fn launch(self, ending: &str, inputs: &[View], eps: f32, copies: usize) -> CandleResult<MetalStorage> {
        let (storage, layout) = inputs[0];
        let (source, name, has_bias) = self.kernel();
        let width = layout.dims().last().copied().unwrap_or(1);
        let (count, dtype) = (layout.shape().elem_count(), storage.dtype());
        let rows = count / width.max(1);
        let y = allocate(storage.device(), copies * count, dtype)?;
        let prefix = if copies == 2 { "add_" } else { "" };
        Launch {
            source,
            kernel: &format!("{prefix}{name}{ending}_{}", suffix(dtype).unwrap_or_default()),
            inputs,
            constants: &[&[width as u32, rows as u32, u32::from(has_bias), eps.to_bits()]],
            outputs: &[&y],
            groups: [rows, 1, 1],
            threads: threads(width),
        }
        .run(storage.device())?;
        Ok(y)
    }

    /// Normalises the rows of `x`.
    pub(in crate::kernels) fn forward(
        self,
        x: View,
        weight: &Tensor,
        bias: Option<&Tensor>,
        eps: f32,
    ) -> CandleResult<(MetalStorage, Shape)> {
        let y = match self {
            Self::Rms => with_views([weight], |[weight]| self.launch("", &[x, weight], eps, 1))?,
            Self::Layer { .. } => with_views([weight, bias.unwrap_or(weight)], |[weight, bias]| {
                self.launch("", &[x, weight, bias], eps, 1)
            })?,
        };
        Ok((y, x.1.shape().clone()))
    }

    /// The gradient of `x`.
    pub(in crate::kernels) fn backward(
        self,
        x: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
        eps: f32,
    ) -> CandleResult<Tensor> {
        let dx = with_views([x, weight, &dy.contiguous()?], |[x, weight, dy]| {
            self.launch("_back", &[x, weight, dy], eps, 1)
        })?;
        Ok(tensor(dx, x.shape()))
    }
}

/// `[2, .., hidden]`: `x + residual`, then what it is normalised to.
pub(in crate::kernels) fn add_rms_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> CandleResult<Tensor> {
    let both = with_views(
        [&x.contiguous()?, &residual.contiguous()?, &weight.contiguous()?],
        |[x, residual, weight]| Norm::Rms.launch("", &[x, residual, weight], eps, 2),
    )?;
    let shape: Vec<usize> = [2].into_iter().chain(x.dims().iter().copied()).collect();
    Ok(tensor(both, shape))
}

/// Rotates `x: [tokens, heads, head_dim]`.
pub(in crate::kernels) fn rope(
    x: View,
    cos: &Tensor,
    sin: &Tensor,
    interleaved: bool,
    inverse: bool,
) -> CandleResult<(MetalStorage, Shape)> {
    let shape = x.1.shape();
    let (tokens, heads, head_dim) = shape.dims3()?;
    let half = cos.dim(1)?;
    let y = allocate(x.0.device(), shape.elem_count(), x.0.dtype())?;
    let sign = if inverse { -1.0f32 } else { 1.0 };
    let sizes = [tokens, heads, head_dim, half].map(|size| size as u32);
    let [tokens32, heads32, head_dim32, half32] = sizes;
    let words = [tokens32, heads32, head_dim32, half32, u32::from(interleaved), sign.to_bits()];
    with_views([cos, sin], |[cos, sin]| {
        Launch {
            source: ROPE,
            kernel: &format!("rope_{}", suffix(x.0.dtype()).unwrap_or_default()),
            inputs: &[x, cos, sin],
            constants: &[&words],
            outputs: &[&y],
            groups: [(tokens * heads * (head_dim - half)).div_ceil(ELEMENTS), 1, 1],
            threads: ELEMENTS,
        }
        .run(x.0.device())
    })?;
    Ok((y, shape.clone()))
}

/// `act(gate)`, times `up` where there is one.
pub(in crate::kernels) fn gated_act(
    gate: View,
    up: Option<View>,
    kind: u32,
) -> CandleResult<(MetalStorage, Shape)> {
    let (storage, layout) = gate;
    let count = layout.shape().elem_count();
    let y = allocate(storage.device(), count, storage.dtype())?;
    Launch {
        source: GATED_ACT,
        kernel: &format!("gated_act_{}", suffix(storage.dtype()).unwrap_or_default()),
        inputs: &[gate, up.unwrap_or(gate)],
        constants: &[&[count as u32, kind, u32::from(up.is_some())]],
        outputs: &[&y],
        groups: [count.div_ceil(ELEMENTS), 1, 1],
        threads: ELEMENTS,
    }
    .run(storage.device())?;
    Ok((y, layout.shape().clone()))
}

/// The gradients of `gate`, and of `up` where there is one.
pub(in crate::kernels) fn gated_act_backward(
    gate: &Tensor,
    up: Option<&Tensor>,
    dy: &Tensor,
    kind: u32,
) -> CandleResult<(Tensor, Option<Tensor>)> {
    let count = gate.elem_count();
    let (d_gate, d_up) = with_views([gate, up.unwrap_or(gate), &dy.contiguous()?], |inputs| {
        let storage = inputs[0].0;
        let d_gate = allocate(storage.device(), count, storage.dtype())?;
        let d_up = up.map(|_| allocate(storage.device(), count, storage.dtype())).transpose()?;
        Launch {
            source: GATED_ACT,
            kernel: &format!("gated_act_back_{}", suffix(storage.dtype()).unwrap_or_default()),
            inputs: &inputs,
            constants: &[&[count as u32, kind, u32::from(up.is_some())]],
            outputs: &[&d_gate, d_up.as_ref().unwrap_or(&d_gate)],
            groups: [count.div_ceil(ELEMENTS), 1, 1],
            threads: ELEMENTS,
        }
        .run(storage.device())?;
        Ok((d_gate, d_up))
    })?;
    Ok((tensor(d_gate, gate.shape()), d_up.map(|d_up| tensor(d_up, gate.shape()))))
}
