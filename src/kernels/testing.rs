//! What the tests of differentiable kernels share: reproducible numbers, comparison, finite differences.

use candle_core::{DType, Device, Shape, Tensor, Var};

/// Numbers in -1..1 that differ from seed to seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A tensor of [`noise`].
pub(crate) fn tensor(seed: u64, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(noise(seed, shape.elem_count()), shape, &Device::Cpu).unwrap()
}

/// A trainable tensor of [`noise`].
pub(crate) fn var(seed: u64, shape: impl Into<Shape>) -> Var {
    Var::from_tensor(&tensor(seed, shape)).unwrap()
}

/// All elements as f32.
pub(crate) fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// All elements, bit by bit.
pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// Fails unless every element is within `tolerance`, absolutely or relatively.
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    for (i, (got, want)) in values(got).into_iter().zip(values(want)).enumerate() {
        let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(close, "{what}: element {i}: got {got}, expected {want}");
    }
}

/// The gradients of `sum(y * weight)` in `vars`, where `weight` is noise.
pub(crate) fn gradients(vars: &[&Var], y: &Tensor) -> Vec<Tensor> {
    let weight = tensor(77, y.shape().clone());
    let grads = (y * weight).unwrap().sum_all().unwrap().backward().unwrap();
    vars.iter().map(|var| grads.get(var).expect("no gradient").clone()).collect()
}

/// Fails unless the gradients of `f` in each of `vars` agree with central differences along a random direction.
pub(crate) fn assert_differences(vars: &[&Var], f: impl Fn(&[Tensor]) -> Tensor, what: &str) {
    const STEP: f64 = 4e-3;
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let grads = gradients(vars, &f(&inputs));
    let value = |inputs: &[Tensor]| -> f64 {
        let y = f(inputs).detach();
        let weight = values(&tensor(77, y.shape().clone()));
        values(&y).into_iter().zip(weight).map(|(y, w)| f64::from(y) * f64::from(w)).sum()
    };
    for (i, grad) in grads.iter().enumerate() {
        let direction = tensor(1000 + i as u64, inputs[i].shape().clone());
        let moved = |step: f64| {
            let mut inputs: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
            inputs[i] = (&inputs[i] + (&direction * step).unwrap()).unwrap();
            value(&inputs)
        };
        let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let slope: f64 =
            values(grad).into_iter().zip(values(&direction)).map(|(g, d)| f64::from(g) * f64::from(d)).sum();
        let scale = values(grad).into_iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        assert!(scale > 0.0, "{what}: the gradient of input {i} is zero");
        let error = (difference - slope).abs();
        assert!(
            error <= 2e-3 * scale,
            "{what}: input {i}: slope {slope}, difference {difference}, |grad| {scale}"
        );
    }
}
