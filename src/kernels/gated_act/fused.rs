//! Activations on the CPU, with their derivatives.

#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result as CandleResult, Shape, Tensor};

use super::Activation;
#[cfg(feature = "metal")]
use crate::kernels::metal::rows as metal;
use crate::kernels::rows;
use crate::kernels::simd::{Kernel, Level, Simd};

/// One of the fused activations, alone or gating a second tensor.
pub(super) struct Fused {
    pub(super) level: Level,
    pub(super) act: Activation,
}

impl Fused {
    /// The number of the activation in gated_act.metal.
    #[cfg(feature = "metal")]
    fn kind(&self) -> CandleResult<u32> {
        Ok(match self.act {
            Activation::Silu => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
            Activation::QuickGelu => 3,
            other => candle_core::bail!("no kernel for {other:?}"),
        })
    }

    fn forward(&self, gate: &[f32], up: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![0f32; gate.len()];
        rows::blocks((gate.len(), 1), [&mut y], |range, [y]| {
            let (gate, up) = (&gate[range.clone()], up.map(|up| &up[range]));
            self.level.run(Forward { act: self.act, gate, up, y });
        });
        y
    }

    /// The gradients of `gate` and `up`, which are contiguous, for that of the result.
    pub(super) fn gradient(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> CandleResult<(Tensor, Tensor)> {
        let (mut d_gate, mut d_up) = (vec![0f32; gate.elem_count()], vec![0f32; gate.elem_count()]);
        let dy = dy.contiguous()?;
        rows::with_slice(gate, |gate| {
            rows::with_slice(up, |up| {
                rows::with_slice(&dy, |dy| {
                    rows::blocks((gate.len(), 1), [&mut d_gate, &mut d_up], |range, [d_gate, d_up]| {
                        let (gate, dy) = (&gate[range.clone()], &dy[range.clone()]);
                        let up = Some((&up[range], d_up));
                        self.level.run(Backward { act: self.act, gate, dy, d_gate, up });
                    });
                    Ok(())
                })
            })
        })?;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), &Device::Cpu);
        Ok((tensor(d_gate)?, tensor(d_up)?))
    }
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let y = self.forward(rows::slice(storage, layout)?, None);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        metal::gated_act((x, layout), None, self.kind()?)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        #[cfg(feature = "metal")]
        if x.device().is_metal() {
            return Ok(Some(metal::gated_act_backward(x, None, dy, self.kind()?)?.0));
        }
        let mut dx = vec![0f32; x.elem_count()];
        rows::with_slice(x, |x| {
            rows::with_slice(&dy.contiguous()?, |dy| {
                rows::blocks((x.len(), 1), [&mut dx], |range, [dx]| {
                    let (x, dy) = (&x[range.clone()], &dy[range]);
                    self.level.run(Backward { act: self.act, gate: x, dy, d_gate: dx, up: None });
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let y = self.forward(rows::slice(gate, gate_layout)?, Some(rows::slice(up, up_layout)?));
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        gate: &MetalStorage,
        gate_layout: &Layout,
        up: &MetalStorage,
        up_layout: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        metal::gated_act((gate, gate_layout), Some((up, up_layout)), self.kind()?)
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "metal")]
        if gate.device().is_metal() {
            let (d_gate, d_up) = metal::gated_act_backward(gate, Some(up), dy, self.kind()?)?;
            return Ok((gate.track_op().then_some(d_gate), d_up.filter(|_| up.track_op())));
        }
        let (d_gate, d_up) = self.gradient(gate, up, dy)?;
        Ok((gate.track_op().then_some(d_gate), up.track_op().then_some(d_up)))
    }
}

/// A function and its derivative, lane by lane.
trait Function {
    fn at<S: Simd>(s: S, x: S::V) -> (S::V, S::V);
}

/// `x σ` and its derivative `σ + x σ (1 - σ) slope`, for `σ = sigmoid(inner)` and `slope` the derivative of `inner`.
#[inline(always)]
fn gated_by_sigmoid<S: Simd>(s: S, x: S::V, inner: S::V, slope: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let sigmoid = s.div(one, s.add(one, s.exp(s.sub(s.splat(0.0), inner))));
    let value = s.mul(x, sigmoid);
    (value, s.fma(s.mul(value, s.sub(one, sigmoid)), slope, sigmoid))
}

struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        gated_by_sigmoid(s, x, x, s.splat(1.0))
    }
}

struct QuickGelu;
impl Function for QuickGelu {
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        gated_by_sigmoid(s, x, s.mul(x, s.splat(1.702)), s.splat(1.702))
    }
}

struct GeluTanh;
impl Function for GeluTanh {
    /// `(1 + tanh u) / 2 = sigmoid(2 u)` with `u = √(2/π) (x + 0.044715 x³)`.
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        const TWICE: f32 = 2.0 * 0.797_884_6;
        let square = s.mul(x, x);
        let inner = s.mul(x, s.fma(square, s.splat(TWICE * 0.044_715), s.splat(TWICE)));
        let slope = s.fma(square, s.splat(3.0 * TWICE * 0.044_715), s.splat(TWICE));
        gated_by_sigmoid(s, x, inner, slope)
    }
}

struct Gelu;
impl Function for Gelu {
    /// `x Φ(x)` and `Φ(x) + x φ(x)`. For `a = |x|`, `Φ(-a) = exp(-a²/2) t p(t)` with `t = 1 / (1 + 0.48 a)` and a
    /// polynomial `p` fitted to `Φ(-a) exp(a²/2) / t` on `0..14`; `Φ(-a)` is right to 3e-7 of itself.
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
        const P: [f32; 9] = [
            0.053_875_986,
            -0.282_321_54,
            0.584_695_94,
            -0.545_035_96,
            0.137_284_83,
            0.015_247_666,
            0.153_758_5,
            0.190_985_59,
            0.191_509_04,
        ];
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let a = s.max(s.sub(zero, x), x);
        let t = s.div(one, s.fma(a, s.splat(0.48), one));
        let mut p = s.splat(P[0]);
        for c in &P[1..] {
            p = s.fma(p, t, s.splat(*c));
        }
        let bell = s.exp(s.mul(s.mul(a, a), s.splat(-0.5)));
        let tail = s.mul(s.mul(bell, t), p);
        let below = s.if_less(x, zero, tail, s.sub(one, tail));
        let density = s.mul(bell, s.splat(0.398_942_3));
        (s.mul(x, below), s.fma(x, density, below))
    }
}

struct Forward<'a> {
    act: Activation,
    gate: &'a [f32],
    up: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl Forward<'_> {
    #[inline(always)]
    fn with<S: Simd, F: Function>(self, s: S) {
        for at in (0..self.y.len()).step_by(S::LANES) {
            let n = S::LANES.min(self.y.len() - at);
            let (value, _) = F::at(s, rows::load(s, self.gate, at, n));
            let value = self.up.map_or(value, |up| s.mul(value, rows::load(s, up, at, n)));
            rows::store(s, self.y, at, n, value);
        }
    }
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.act {
            Activation::Gelu => self.with::<S, Gelu>(s),
            Activation::GeluTanh => self.with::<S, GeluTanh>(s),
            Activation::QuickGelu => self.with::<S, QuickGelu>(s),
            _ => self.with::<S, Silu>(s),
        }
    }
}

struct Backward<'a> {
    act: Activation,
    gate: &'a [f32],
    dy: &'a [f32],
    d_gate: &'a mut [f32],
    /// The gated tensor and its gradient.
    up: Option<(&'a [f32], &'a mut [f32])>,
}

impl Backward<'_> {
    #[inline(always)]
    fn with<S: Simd, F: Function>(mut self, s: S) {
        for at in (0..self.dy.len()).step_by(S::LANES) {
            let n = S::LANES.min(self.dy.len() - at);
            let (value, slope) = F::at(s, rows::load(s, self.gate, at, n));
            let mut dy = rows::load(s, self.dy, at, n);
            if let Some((up, d_up)) = &mut self.up {
                rows::store(s, d_up, at, n, s.mul(dy, value));
                dy = s.mul(dy, rows::load(s, up, at, n));
            }
            rows::store(s, self.d_gate, at, n, s.mul(dy, slope));
        }
    }
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.act {
            Activation::Gelu => self.with::<S, Gelu>(s),
            Activation::GeluTanh => self.with::<S, GeluTanh>(s),
            Activation::QuickGelu => self.with::<S, QuickGelu>(s),
            _ => self.with::<S, Silu>(s),
        }
    }
}
