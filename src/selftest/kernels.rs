//! One kernel at a time: results and gradients on the device against plain tensor ops in f32 on the CPU.

use candle_core::{DType, Device, Tensor, Var};

use super::{Check, measured};
use crate::kernels::attention::{AttentionArgs, KeyValues, attention, cached_attention};
use crate::kernels::cross_entropy::cross_entropy;
use crate::kernels::gated_act::{Activation, activation, gated_act};
use crate::kernels::layer_norm::layer_norm;
use crate::kernels::linear::linear;
use crate::kernels::lora::lora;
use crate::kernels::rms_norm::{add_rms_norm, rms_norm};
use crate::kernels::rope::{RopeStyle, rope};
use crate::kernels::{
    attention as attention_op, cross_entropy as cross_entropy_op, gated_act as gated_act_op,
    layer_norm as layer_norm_op, lora as lora_op, rms_norm as rms_norm_op, rope as rope_op,
};
use crate::{Error, Result};

/// From inputs to results.
type Compute = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>>;

/// One kernel on inputs of given shapes.
pub(super) struct Case {
    name: String,
    shapes: Vec<Vec<usize>>,
    /// The inputs that a gradient is taken of, from the first on; 0 where the kernel has none.
    trained: usize,
    /// Inputs from this one on stay f32, whatever the others are.
    exact_from: usize,
    kernel: Compute,
    reference: Compute,
}

impl Case {
    /// The results, and then the gradients.
    pub(super) fn run(&self, device: &Device, dtype: DType) -> Vec<Check> {
        let tolerance = match dtype {
            DType::F32 => 2e-5,
            DType::F16 => 4e-3,
            _ => 3e-2,
        };
        let forward = measured(self.name.as_str(), dtype, tolerance, || {
            let (got, want) = (self.inputs(device, dtype)?, self.inputs(&Device::Cpu, dtype)?);
            let want =
                want.iter().map(|x| x.to_dtype(DType::F32)).collect::<candle_core::Result<Vec<_>>>()?;
            Ok(((self.kernel)(&got)?, (self.reference)(&want)?))
        });
        if self.trained == 0 {
            return vec![forward];
        }
        let backward = measured(format!("{}: gradient", self.name), dtype, 4.0 * tolerance, || {
            let got = self.gradients(&self.kernel, device, dtype, dtype)?;
            Ok((got, self.gradients(&self.reference, &Device::Cpu, dtype, DType::F32)?))
        });
        vec![forward, backward]
    }

    /// Noise that `dtype` can hold.
    fn inputs(&self, device: &Device, dtype: DType) -> Result<Vec<Tensor>> {
        let input = |(index, shape): (usize, &Vec<usize>)| {
            let dtype = if index < self.exact_from { dtype } else { DType::F32 };
            let values = noise(index as u64 + 1, shape.iter().product());
            Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(device)?)
        };
        self.shapes.iter().enumerate().map(input).collect()
    }

    /// Gradients of a weighted sum of all results.
    fn gradients(
        &self,
        compute: &Compute,
        device: &Device,
        rounded: DType,
        dtype: DType,
    ) -> Result<Vec<Tensor>> {
        let mut inputs = self.inputs(device, rounded)?;
        let mut vars = Vec::with_capacity(self.trained);
        for (index, input) in inputs.iter_mut().enumerate() {
            let exact = index >= self.exact_from;
            *input = input.to_dtype(if exact { DType::F32 } else { dtype })?;
            if index < self.trained {
                let var = Var::from_tensor(input)?;
                *input = var.as_tensor().clone();
                vars.push(var);
            }
        }
        let mut sum = Tensor::zeros((), DType::F32, device)?;
        for (index, y) in compute(&inputs)?.into_iter().enumerate() {
            let weight = noise(77 + index as u64, y.elem_count());
            let weight = Tensor::from_vec(weight, y.dims(), &Device::Cpu)?.to_dtype(rounded)?;
            let weight = weight.to_dtype(y.dtype())?.to_device(device)?;
            sum = (sum + (y * weight)?.to_dtype(DType::F32)?.sum_all()?)?;
        }
        let gradients = sum.backward()?;
        let of = |var: &Var| {
            gradients.get(var).cloned().ok_or_else(|| Error::internal("selftest", "no gradient arrived"))
        };
        vars.iter().map(of).collect()
    }
}

/// Numbers in -1..1 that differ from seed to seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A case whose inputs all have the same dtype.
fn case(
    name: impl Into<String>,
    shapes: &[&[usize]],
    trained: usize,
    kernel: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'static,
    reference: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'static,
) -> Case {
    Case {
        name: name.into(),
        shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        trained,
        exact_from: usize::MAX,
        kernel: Box::new(kernel),
        reference: Box::new(reference),
    }
}

/// Every kernel, in shapes that are multiples of nothing and in those of real models.
pub(super) fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    norms(&mut all);
    rotations(&mut all);
    activations(&mut all);
    products(&mut all);
    attentions(&mut all);
    caches(&mut all);
    losses(&mut all);
    Ok(all)
}

const EPS: f64 = 1e-5;

fn norms(all: &mut Vec<Case>) {
    for hidden in [67, 896] {
        all.push(case(
            format!("rms_norm {hidden}"),
            &[&[5, hidden], &[hidden]],
            1,
            |x| Ok(vec![rms_norm(&x[0], &x[1].detach(), EPS)?]),
            |x| Ok(vec![rms_norm_op::reference(&x[0], &x[1], EPS)?]),
        ));
        all.push(case(
            format!("add_rms_norm {hidden}"),
            &[&[5, hidden], &[5, hidden], &[hidden]],
            2,
            |x| {
                let (sum, y) = add_rms_norm(&x[0], &x[1], &x[2], EPS)?;
                Ok(vec![sum, y])
            },
            |x| {
                let sum = (&x[0] + &x[1])?;
                Ok(vec![sum.clone(), rms_norm_op::reference(&sum, &x[2], EPS)?])
            },
        ));
        all.push(case(
            format!("layer_norm {hidden}"),
            &[&[5, hidden], &[hidden], &[hidden]],
            1,
            |x| Ok(vec![layer_norm(&x[0], &x[1], Some(&x[2]), EPS)?, layer_norm(&x[0], &x[1], None, EPS)?]),
            |x| {
                let with = layer_norm_op::reference(&x[0], &x[1], Some(&x[2]), EPS)?;
                Ok(vec![with, layer_norm_op::reference(&x[0], &x[1], None, EPS)?])
            },
        ));
    }
}

fn rotations(all: &mut Vec<Case>) {
    for (head_dim, rotary) in [(64, 64), (10, 6)] {
        for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
            let angles: &[usize] = &[13, rotary / 2];
            let name = format!("rope {rotary} of {head_dim}, {style:?}");
            let mut one = case(
                name,
                &[&[13, 3, head_dim], angles, angles],
                1,
                move |x| Ok(vec![rope(&x[0], &x[1], &x[2], style)?]),
                move |x| Ok(vec![rope_op::reference(&x[0], &x[1], &x[2], style)?]),
            );
            one.exact_from = 1;
            all.push(one);
        }
    }
}

fn activations(all: &mut Vec<Case>) {
    for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu] {
        // Noise that reaches into the tails.
        let wide = |x: &Tensor| (x * 6.0).map_err(Error::from);
        all.push(case(
            format!("activation {act:?}"),
            &[&[7, 37]],
            1,
            move |x| Ok(vec![activation(&wide(&x[0])?, act)?]),
            move |x| Ok(vec![gated_act_op::reference(&wide(&x[0])?, act)?]),
        ));
        all.push(case(
            format!("gated_act {act:?}"),
            &[&[7, 37], &[7, 37]],
            2,
            move |x| Ok(vec![gated_act(&wide(&x[0])?, &x[1], act)?]),
            move |x| Ok(vec![(gated_act_op::reference(&wide(&x[0])?, act)? * &x[1])?]),
        ));
    }
}

fn products(all: &mut Vec<Case>) {
    // A long sum of one row is where adding up in 16 bits would show.
    for (tokens, inn, out) in [(1, 4096, 33), (3, 99, 33), (7, 96, 33), (40, 256, 130)] {
        // Sums of many terms, brought back to the size of one.
        let scale = 1.0 / (inn as f64).sqrt();
        let plain = move |x: &[Tensor]| Ok(vec![(x[0].matmul(&x[1].t()?)? * scale)?]);
        all.push(case(
            format!("linear {tokens} x {inn} x {out}"),
            &[&[tokens, inn], &[out, inn]],
            1,
            move |x| Ok(vec![(linear(&x[0], &x[1])? * scale)?]),
            plain,
        ));
        let rank = 5;
        let factors: [&[usize]; 4] = [&[tokens, out], &[tokens, inn], &[rank, inn], &[rank, out]];
        all.push(case(
            format!("lora {tokens} x {inn} x {out}"),
            &factors,
            4,
            move |x| Ok(vec![lora(x[0].copy()?, &x[1], &x[2], &x[3], scale)?]),
            move |x| Ok(vec![lora_op::reference(&x[0], &x[1], &x[2], &x[3], scale)?]),
        ));
    }
}

/// What an attention case looks like.
#[derive(Clone, Copy)]
struct Seen {
    causal: bool,
    window: Option<usize>,
    biased: bool,
}

fn attentions(all: &mut Vec<Case>) {
    let plain = Seen { causal: true, window: None, biased: false };
    let both_ways = Seen { causal: false, ..plain };
    let kinds = [
        ("causal", plain),
        ("window", Seen { window: Some(5), ..plain }),
        ("both ways", both_ways),
        ("both ways, window", Seen { window: Some(8), ..both_ways }),
        ("bias", Seen { biased: true, ..both_ways }),
    ];
    for (what, seen) in kinds {
        for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 1, 20), (2, 2, 128)] {
            // Queries for whole tiles, parts of them, rows, and none at all.
            let offsets: &'static [usize] = &[0, 33, 34, 34, 41, 53];
            let span = 33;
            let bias_width = 2 * span - 1;
            let (q, kv) = ([53, heads, head_dim], [53, kv_heads, head_dim]);
            let bias = [heads, bias_width];
            let args = move |x: &[Tensor]| -> Result<(AttentionArgs<'static>, Option<Tensor>)> {
                let args = AttentionArgs {
                    offsets,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    causal: seen.causal,
                    window: seen.window,
                    bias: None,
                };
                Ok((args, seen.biased.then(|| x[3].detach())))
            };
            let mut one = case(
                format!("attention {what}, {heads}/{kv_heads} heads of {head_dim}"),
                &[&q, &kv, &kv, &bias],
                3,
                move |x| {
                    let (args, bias) = args(x)?;
                    Ok(vec![attention(&x[0], &x[1], &x[2], &AttentionArgs { bias: bias.as_ref(), ..args })?])
                },
                move |x| {
                    let (args, bias) = args(x)?;
                    let args = AttentionArgs { bias: bias.as_ref(), ..args };
                    Ok(vec![attention_op::reference(&x[0], &x[1], &x[2], &args)?])
                },
            );
            one.exact_from = 3;
            all.push(one);
        }
    }
}

fn caches(all: &mut Vec<Case>) {
    for (head_dim, window) in [(64, None), (24, Some(7)), (256, None)] {
        // A prompt's part, and single tokens with few and with many keys behind them.
        let (offsets, keys): (&'static [usize], [usize; 3]) = (&[0, 12, 13, 14], [50, 1, 70]);
        let kv = [100, 2, head_dim];
        let args = move || AttentionArgs {
            offsets,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: true,
            window,
            bias: None,
        };
        fn held<'a>(x: &'a [Tensor], keys: &[usize; 3]) -> Vec<KeyValues<'a>> {
            (0..3).map(|i| KeyValues { k: &x[1 + 2 * i], v: &x[2 + 2 * i], len: keys[i] }).collect()
        }
        all.push(case(
            format!("cached_attention, heads of {head_dim}, window {window:?}"),
            &[&[14, 4, head_dim], &kv, &kv, &kv, &kv, &kv, &kv],
            0,
            move |x| Ok(vec![cached_attention(&x[0], &held(x, &keys), &args())?]),
            move |x| Ok(vec![attention_op::cached_reference(&x[0], &held(x, &keys), &args())?]),
        ));
    }
}

fn losses(all: &mut Vec<Case>) {
    for smoothing in [0.0, 0.1] {
        let labels = [3i64, -100, 499, 0, 7];
        let mut one = case(
            format!("cross_entropy, smoothing {smoothing}"),
            &[&[5, 500]],
            1,
            move |x| Ok(vec![cross_entropy(&(&x[0] * 9.0)?, &labels, smoothing)?.0]),
            move |x| Ok(vec![cross_entropy_op::reference(&(&x[0] * 9.0)?, &labels, smoothing)?]),
        );
        one.exact_from = 0;
        all.push(one);
    }
}
