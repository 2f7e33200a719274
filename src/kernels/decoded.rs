//! The product of activations with a frozen weight whose rows are decoded on the way.
//!
//! It serves every storage that can write a row as f32 and has no faster kernel of its own. Only a few rows exist in
//! f32 at any time. Each output is the same sum in the same order whatever else is computed beside it. The backward pass
//! gives the gradient of the input only; second derivatives are not supported.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};

use super::cpu::pool;
use super::simd::{Kernel, Level, Simd};
use crate::Result;

/// Rows of a weight that one task decodes.
const ROWS: usize = 8;

/// A matrix `[out, in]` that can give single rows as f32.
pub trait Rows: Send + Sync {
    /// `(out, in)`.
    fn shape(&self) -> (usize, usize);
    /// Writes row `row < out` to `values: [in]`.
    fn decode(&self, row: usize, values: &mut [f32]);
}

/// `x Wᵀ` for `x: [.., in]`, f32 on the CPU; gives `[.., out]`. Differentiable in `x`.
pub fn decoded_linear(x: &Tensor, weight: &Arc<dyn Rows>) -> Result<Tensor> {
    let op = Decoded { weight: Arc::clone(weight), transposed: false };
    let x = x.contiguous()?;
    Ok(if x.track_op() { x.apply_op1(op)? } else { x.apply_op1_no_bwd(&op)? })
}

/// The gradient `dy W` of `x` in [`decoded_linear`], for `dy: [.., out]`; gives `[.., in]`.
pub fn decoded_gradient(dy: &Tensor, weight: &Arc<dyn Rows>) -> Result<Tensor> {
    let op = Decoded { weight: Arc::clone(weight), transposed: true };
    Ok(dy.contiguous()?.apply_op1_no_bwd(&op)?)
}

struct Decoded {
    weight: Arc<dyn Rows>,
    /// Multiplies with `W` instead of `Wᵀ`: the backward pass of the other.
    transposed: bool,
}

impl CustomOp1 for Decoded {
    fn name(&self) -> &'static str {
        "decoded-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (out, inn) = self.weight.shape();
        let (from, to) = if self.transposed { (out, inn) } else { (inn, out) };
        let mut dims = layout.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == from => *last = to,
            _ => candle_core::bail!(
                "linear: input of shape {:?}, expected a last dimension of {from}",
                layout.shape()
            ),
        }
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("linear: the input is not contiguous");
        };
        let x = &storage.as_slice::<f32>()?[start..end];
        let tokens: usize = dims[..dims.len() - 1].iter().product();
        let y = match self.transposed {
            true => backward(self.weight.as_ref(), x, tokens),
            false => forward(self.weight.as_ref(), x, tokens),
        };
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> CandleResult<Option<Tensor>> {
        if self.transposed {
            return Err(candle_core::Error::BackwardNotSupported { op: self.name() });
        }
        let op = Decoded { weight: Arc::clone(&self.weight), transposed: true };
        Ok(Some(dy.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

/// `[tokens, in]` to `[tokens, out]`.
fn forward(weight: &dyn Rows, x: &[f32], tokens: usize) -> Vec<f32> {
    let (out, inn) = weight.shape();
    // [out, tokens], so that a task writes one piece.
    let mut turned = vec![0f32; out * tokens];
    if tokens == 0 || inn == 0 {
        return turned;
    }
    pool::parallel_chunks(&mut turned, ROWS * tokens, |task, chunk| {
        let mut row = vec![0f32; inn];
        for (lane, y) in chunk.chunks_exact_mut(tokens).enumerate() {
            weight.decode(task * ROWS + lane, &mut row);
            Level::current().run(Dots { x, row: &row, y });
        }
    });
    if tokens == 1 {
        return turned;
    }
    let mut y = vec![0f32; out * tokens];
    pool::parallel_chunks(&mut y, out.max(1), |token, y| {
        for (value, row) in y.iter_mut().zip(turned.chunks_exact(tokens)) {
            *value = row[token];
        }
    });
    y
}

/// `[tokens, out]` to `[tokens, in]`.
fn backward(weight: &dyn Rows, dy: &[f32], tokens: usize) -> Vec<f32> {
    let (out, inn) = weight.shape();
    let mut dx = vec![0f32; tokens * inn];
    if tokens == 0 || inn == 0 {
        return dx;
    }
    // Every task decodes the whole weight, so there are only as many as there are threads.
    let share = tokens.div_ceil(pool::threads());
    pool::parallel_chunks(&mut dx, share * inn, |task, dx| {
        let mut values = vec![0f32; inn];
        for row in 0..out {
            weight.decode(row, &mut values);
            for (lane, dx) in dx.chunks_exact_mut(inn).enumerate() {
                let factor = dy[(task * share + lane) * out + row];
                for (sum, value) in dx.iter_mut().zip(&values) {
                    *sum += factor * value;
                }
            }
        }
    });
    dx
}

/// One output `y[t] = x[t] · row` for each token.
struct Dots<'a> {
    x: &'a [f32],
    row: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inn = self.row.len();
        for (x, y) in self.x.chunks_exact(inn).zip(self.y) {
            let mut sums = [s.splat(0.0); 4];
            let mut at = 0;
            while at < inn {
                for sum in &mut sums {
                    let left = inn.saturating_sub(at).min(S::LANES);
                    if left > 0 {
                        // SAFETY: both slices hold `left` more elements.
                        let (a, b) = unsafe {
                            (
                                s.load_first(x.as_ptr().add(at), left),
                                s.load_first(self.row.as_ptr().add(at), left),
                            )
                        };
                        *sum = s.fma(a, b, *sum);
                    }
                    at += S::LANES;
                }
            }
            *y = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    struct Plain(Vec<f32>, usize);

    impl Rows for Plain {
        fn shape(&self) -> (usize, usize) {
            (self.0.len() / self.1, self.1)
        }

        fn decode(&self, row: usize, values: &mut [f32]) {
            values.copy_from_slice(&self.0[row * self.1..][..self.1]);
        }
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed) % 97) as f32 / 97.0 - 0.5).collect()
    }

    #[test]
    fn outputs_and_gradients_are_those_of_a_plain_product() {
        for (tokens, inn, out) in [(1, 1, 1), (1, 96, 17), (3, 67, 9), (5, 129, 33), (2, 256, 8)] {
            let (w, x) = (numbers(out * inn, 3), numbers(tokens * inn, 1));
            let weight: Arc<dyn Rows> = Arc::new(Plain(w.clone(), inn));
            let plain = Tensor::from_vec(w, (out, inn), &Device::Cpu).unwrap();
            let x = Var::from_vec(x, (tokens, inn), &Device::Cpu).unwrap();
            let slopes = Tensor::from_vec(numbers(tokens * out, 5), (tokens, out), &Device::Cpu).unwrap();
            let both = [decoded_linear(&x, &weight).unwrap(), x.matmul(&plain.t().unwrap()).unwrap()];
            let values = both.each_ref().map(|y| y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let gradients = both.each_ref().map(|y| {
                let grads = (y * &slopes).unwrap().sum_all().unwrap().backward().unwrap();
                grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            });
            for [ours, theirs] in [values, gradients] {
                assert_eq!(ours.len(), theirs.len());
                for (a, b) in ours.iter().zip(&theirs) {
                    assert!((a - b).abs() < 1e-5, "{tokens} x {inn} x {out}: {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn tokens_beside_each_other_change_nothing() {
        let weight: Arc<dyn Rows> = Arc::new(Plain(numbers(19 * 77, 3), 77));
        let x = Tensor::from_vec(numbers(6 * 77, 1), (6, 77), &Device::Cpu).unwrap();
        let together: Vec<Vec<f32>> = decoded_linear(&x, &weight).unwrap().to_vec2().unwrap();
        for (token, row) in together.iter().enumerate() {
            let alone = decoded_linear(&x.narrow(0, token, 1).unwrap(), &weight).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap()[0], *row);
        }
    }

    #[test]
    fn an_input_of_another_width_is_refused() {
        let weight: Arc<dyn Rows> = Arc::new(Plain(numbers(12, 3), 4));
        let x = Tensor::zeros((2, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let message = decoded_linear(&x, &weight).unwrap_err().to_string();
        assert!(message.contains("expected a last dimension of 4"), "{message}");
    }
}
