//! The activations that configurations of sentence-transformers name by their class in torch, with its usual settings.
//!
//! They work on rows of sentence vectors or scores, a few numbers each; what a transformer computes is in `kernels/`.
//! Source: the formulas of torch.nn's documentation.

use candle_core::cpu::erf::erf_f64;

/// A function of rows.
#[derive(Debug, Clone, Copy)]
pub struct TorchActivation(Function);

#[derive(Debug, Clone, Copy)]
enum Function {
    /// Of each value.
    Single(fn(f64) -> f64),
    /// Of a whole row: shares that add up to 1, of the values or of their opposites.
    Softmax { sign: f64, logarithm: bool },
}

/// Every class that has no parameters of its own.
const CLASSES: &[(&str, Function)] = &[
    ("CELU", Function::Single(|x| elu(x, 1.0))),
    ("ELU", Function::Single(|x| elu(x, 1.0))),
    ("GELU", Function::Single(|x| 0.5 * x * (1.0 + erf_f64(x / std::f64::consts::SQRT_2)))),
    ("Hardshrink", Function::Single(|x| if x.abs() > 0.5 { x } else { 0.0 })),
    ("Hardsigmoid", Function::Single(hard_sigmoid)),
    ("Hardswish", Function::Single(|x| x * hard_sigmoid(x))),
    ("Hardtanh", Function::Single(|x| x.clamp(-1.0, 1.0))),
    ("Identity", Function::Single(|x| x)),
    ("LeakyReLU", Function::Single(|x| if x < 0.0 { 0.01 * x } else { x })),
    ("LogSigmoid", Function::Single(|x| -softplus(-x))),
    ("LogSoftmax", Function::Softmax { sign: 1.0, logarithm: true }),
    ("Mish", Function::Single(|x| x * softplus(x).tanh())),
    // The mean of the slopes that training draws from.
    ("RReLU", Function::Single(|x| if x < 0.0 { 11.0 / 48.0 * x } else { x })),
    ("ReLU", Function::Single(|x| x.max(0.0))),
    ("ReLU6", Function::Single(|x| x.clamp(0.0, 6.0))),
    ("SELU", Function::Single(|x| 1.050_700_987_355_480_5 * elu(x, 1.673_263_242_354_377_2))),
    ("SiLU", Function::Single(|x| x * sigmoid(x))),
    ("Sigmoid", Function::Single(sigmoid)),
    ("Softmax", Function::Softmax { sign: 1.0, logarithm: false }),
    ("Softmin", Function::Softmax { sign: -1.0, logarithm: false }),
    ("Softplus", Function::Single(softplus)),
    ("Softshrink", Function::Single(|x| x - x.clamp(-0.5, 0.5))),
    ("Softsign", Function::Single(|x| x / (1.0 + x.abs()))),
    ("Tanh", Function::Single(f64::tanh)),
    ("Tanhshrink", Function::Single(|x| x - x.tanh())),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn hard_sigmoid(x: f64) -> f64 {
    (x / 6.0 + 0.5).clamp(0.0, 1.0)
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn elu(x: f64, alpha: f64) -> f64 {
    if x < 0.0 { alpha * x.exp_m1() } else { x }
}

impl TorchActivation {
    /// What it was.
    pub const IDENTITY: Self = Self(Function::Single(|x| x));
    /// Between 0 and 1.
    pub const SIGMOID: Self = Self(Function::Single(sigmoid));
    /// Between -1 and 1.
    pub const TANH: Self = Self(Function::Single(f64::tanh));
    /// Shares of a row.
    pub const SOFTMAX: Self = Self(Function::Softmax { sign: 1.0, logarithm: false });

    /// The names that [`TorchActivation::from_name`] knows, for error messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CLASSES.iter().map(|(name, _)| *name)
    }

    /// The activation of a class, whatever its capitals.
    pub fn from_name(name: &str) -> Option<Self> {
        CLASSES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, function)| Self(*function))
    }

    /// The activation that a configuration names by a path; `None` for one of the repository's own code, which is not
    /// run.
    ///
    /// # Errors
    /// A reason, for a class of torch that is not known.
    pub fn from_path(path: &str) -> Result<Option<Self>, String> {
        if !path.starts_with("torch.") {
            log::warn!(
                "the activation {path:?} of the configuration is code, which is not run; using the usual one"
            );
            return Ok(None);
        }
        let class = path.rsplit('.').next().unwrap_or_default();
        match CLASSES.iter().find(|(known, _)| *known == class) {
            Some((_, function)) => Ok(Some(Self(*function))),
            None => {
                let known = Self::names().collect::<Vec<_>>().join(", ");
                Err(format!("{path:?} is not supported; of torch's classes {known} are"))
            }
        }
    }

    /// Changes rows of `width` values.
    pub fn apply(self, values: &mut [f32], width: usize) {
        match self.0 {
            Function::Single(function) => {
                values.iter_mut().for_each(|x| *x = function(f64::from(*x)) as f32);
            }
            Function::Softmax { sign, logarithm } => {
                values.chunks_mut(width.max(1)).for_each(|row| softmax(row, sign, logarithm));
            }
        }
    }
}

fn softmax(row: &mut [f32], sign: f64, logarithm: bool) {
    let signed = |x: f32| sign * f64::from(x);
    let largest = row.iter().map(|x| signed(*x)).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = row.iter().map(|x| (signed(*x) - largest).exp()).sum();
    for x in row {
        let share = signed(*x) - largest - total.ln();
        *x = if logarithm { share } else { share.exp() } as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch 2.13 gives in f64 for -3, -0.4, 0, 0.7 and 8.
    const EXPECTED: &[(&str, [f64; 5])] = &[
        ("CELU", [-0.950212931632, -0.329679953964, 0.0, 0.7, 8.0]),
        ("ELU", [-0.950212931632, -0.329679953964, 0.0, 0.7, 8.0]),
        ("GELU", [-0.00404969409489, -0.137831303356, 0.0, 0.530625443444, 8.0]),
        ("Hardshrink", [-3.0, 0.0, 0.0, 0.7, 8.0]),
        ("Hardsigmoid", [0.0, 0.433333333333, 0.5, 0.616666666667, 1.0]),
        ("Hardswish", [0.0, -0.173333333333, 0.0, 0.431666666667, 8.0]),
        ("Hardtanh", [-1.0, -0.4, 0.0, 0.7, 1.0]),
        ("Identity", [-3.0, -0.4, 0.0, 0.7, 8.0]),
        ("LeakyReLU", [-0.03, -0.004, 0.0, 0.7, 8.0]),
        (
            "LogSigmoid",
            [-3.04858735157, -0.9130152524, -std::f64::consts::LN_2, -0.403186048885, -0.000335406372896],
        ),
        ("LogSoftmax", [-11.0012517866, -8.40125178662, -8.00125178662, -7.30125178662, -0.00125178661618]),
        ("Mish", [-0.145647461276, -0.188916482394, 0.0, 0.561148377644, 7.99999820064]),
        ("RReLU", [-0.6875, -0.0916666666667, 0.0, 0.7, 8.0]),
        ("ReLU", [0.0, 0.0, 0.0, 0.7, 8.0]),
        ("ReLU6", [0.0, 0.0, 0.0, 0.7, 6.0]),
        ("SELU", [-1.67056872877, -0.579610109755, 0.0, 0.735490691149, 8.40560789884]),
        ("SiLU", [-0.142277619533, -0.160524935955, 0.0, 0.467731440518, 7.99731719896]),
        ("Sigmoid", [0.0474258731776, 0.401312339888, 0.5, 0.668187772168, 0.99966464987]),
        (
            "Softmax",
            [1.66808069048e-05, 0.000224586014379, 0.000335042962995, 0.00067469367385, 0.998748996542],
        ),
        ("Softmin", [0.870472874783, 0.0646531351487, 0.0433382925292, 0.0215211591614, 1.45383775007e-05]),
        ("Softplus", [0.0485873515737, 0.5130152524, std::f64::consts::LN_2, 1.10318604889, 8.00033540637]),
        ("Softshrink", [-2.5, 0.0, 0.0, 0.2, 7.5]),
        ("Softsign", [-0.75, -0.285714285714, 0.0, 0.411764705882, 0.888888888889]),
        ("Tanh", [-0.995054753687, -0.379948962255, 0.0, 0.604367777117, 0.99999977493]),
        ("Tanhshrink", [-2.00494524631, -0.0200510377448, 0.0, 0.0956322228828, 7.00000022507]),
    ];

    #[test]
    fn every_class_is_torch_s() {
        assert_eq!(EXPECTED.len(), CLASSES.len());
        for (name, expected) in EXPECTED {
            let mut values = [-3.0, -0.4, 0.0, 0.7, 8.0f32];
            TorchActivation::from_name(name).unwrap().apply(&mut values, 5);
            for (value, wanted) in values.iter().zip(expected) {
                let wanted = *wanted as f32;
                assert!(
                    (value - wanted).abs() <= 2e-6 * wanted.abs().max(1e-3),
                    "{name}: {value}, not {wanted}"
                );
            }
        }
    }

    #[test]
    fn rows_are_apart_and_extremes_stay_numbers() {
        for name in TorchActivation::names() {
            let mut values = [1e30, -1e30, 0.0, 200.0, -200.0, 1.0f32];
            TorchActivation::from_name(name).unwrap().apply(&mut values, 3);
            assert!(values.iter().all(|x| !x.is_nan()), "{name}: {values:?}");
        }
        let mut values = [5.0, 5.0, -7.0, -7.0f32];
        TorchActivation::SOFTMAX.apply(&mut values, 2);
        assert_eq!(values, [0.5; 4]);
    }

    #[test]
    fn paths() {
        assert!(TorchActivation::from_path("torch.nn.modules.activation.Mish").unwrap().is_some());
        assert!(TorchActivation::from_path("my_code.Tanh").unwrap().is_none());
        let reason = TorchActivation::from_path("torch.nn.modules.activation.PReLU").unwrap_err();
        assert!(reason.contains("PReLU") && reason.contains("LeakyReLU"), "{reason}");
    }
}
