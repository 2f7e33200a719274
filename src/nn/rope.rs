//! Rotary position embedding: the frequencies of every scaling kind, and their tables for one batch.
//!
//! Applying the tables is a kernel. Sources: Su et al. 2021 (RoFormer); "dynamic" and "llama3" as the model
//! configurations of Hugging Face define them; Peng et al. 2023 (YaRN).

use std::f64::consts::PI;

use candle_core::{Device, Tensor};

use crate::Result;
use crate::batch::Batch;
use crate::kernels::rope::RopeStyle;

/// How frequencies are changed to reach beyond the trained length.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Ratio of the longer to the trained length.
        factor: f64,
    },
    /// A base that grows with the sequence once it exceeds the trained length.
    Dynamic {
        /// Ratio of the longer to the trained length.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled fully.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The trained length in tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN: interpolation of low frequencies, and a scale on the tables.
    Yarn {
        /// Ratio of the longer to the trained length.
        factor: f64,
        /// The trained length in tokens.
        original_max_position_embeddings: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated.
        beta_slow: f64,
        /// Scale on cosines and sines.
        attention_factor: f64,
        /// Whether the range of dimensions is rounded outwards to whole ones.
        truncate: bool,
    },
    /// A divisor for each frequency, as GGUF files store them.
    Factors(Vec<f32>),
}

/// Everything that decides the rotation of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base wavelength.
    pub theta: f64,
    /// Number of leading dimensions of a head that are rotated; even.
    pub rotary_dim: usize,
    /// The configured context length in tokens.
    pub max_position_embeddings: usize,
    /// How far it was stretched.
    pub scaling: RopeScaling,
    /// Which dimensions form a pair.
    pub style: RopeStyle,
}

impl RopeConfig {
    /// The longest sequence in tokens that the rotation was stretched to serve.
    pub fn context_length(&self) -> usize {
        let max = self.max_position_embeddings;
        match self.scaling {
            RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => {
                max.max((max as f64 * factor) as usize)
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                max.max((original_max_position_embeddings * factor) as usize)
            }
            RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) => max,
        }
    }
}

/// Cosines and sines for the rows of one batch.
#[derive(Debug, Clone)]
pub struct RopeTables {
    /// `[tokens, rotary_dim / 2]`, f32.
    pub cos: Tensor,
    /// `[tokens, rotary_dim / 2]`, f32.
    pub sin: Tensor,
}

/// The rotation of one kind of layer.
#[derive(Debug, Clone)]
pub struct Rope {
    config: RopeConfig,
    inv_freq: Vec<f32>,
}

impl Rope {
    /// Computes the frequencies.
    pub fn new(config: RopeConfig) -> Self {
        let inv_freq = frequencies(&config);
        Self { config, inv_freq }
    }

    /// The angle per position of each pair of dimensions, for sequences of the trained length.
    pub fn frequencies(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Which dimensions form a pair.
    pub fn style(&self) -> RopeStyle {
        self.config.style
    }

    /// Whether a token's rotation depends on the length of its sequence, so that cached keys of one sequence
    /// cannot serve another.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.config.scaling, RopeScaling::Dynamic { .. })
    }

    /// The tables for the batch's positions.
    pub fn tables(&self, batch: &Batch, device: &Device) -> Result<RopeTables> {
        let (tokens, half) = (batch.tokens(), self.inv_freq.len());
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        let scale = match self.config.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        };
        for sequence in 0..batch.sequences() {
            let stretched = self.stretched(batch.horizon(sequence));
            let inv_freq = stretched.as_deref().unwrap_or(&self.inv_freq);
            for &position in &batch.positions()[batch.rows(sequence)] {
                for &frequency in inv_freq {
                    let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                    cos.push(c as f32 * scale);
                    sin.push(s as f32 * scale);
                }
            }
        }
        let shape = (tokens, half);
        Ok(RopeTables {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }

    /// The frequencies of a sequence that outgrew the trained length under dynamic scaling.
    fn stretched(&self, length: usize) -> Option<Vec<f32>> {
        let RopeScaling::Dynamic { factor } = self.config.scaling else { return None };
        let (max, dim) = (self.config.max_position_embeddings as f64, self.config.rotary_dim as f64);
        if length as f64 <= max {
            return None;
        }
        let stretch = factor * length as f64 / max - (factor - 1.0);
        Some(plain(self.config.theta * stretch.powf(dim / (dim - 2.0)), self.config.rotary_dim))
    }
}

fn plain(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| (1.0 / theta.powf((2 * i) as f64 / dim as f64)) as f32).collect()
}

fn frequencies(config: &RopeConfig) -> Vec<f32> {
    let mut inv_freq = plain(config.theta, config.rotary_dim);
    match &config.scaling {
        RopeScaling::Default | RopeScaling::Dynamic { .. } => {}
        RopeScaling::Linear { factor } => inv_freq.iter_mut().for_each(|f| *f /= *factor as f32),
        RopeScaling::Factors(factors) => {
            inv_freq.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings;
            for f in &mut inv_freq {
                let wavelength = 2.0 * PI / f64::from(*f);
                if wavelength > original / low_freq_factor {
                    *f = (f64::from(*f) / factor) as f32;
                } else if wavelength >= original / high_freq_factor {
                    let smooth =
                        (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    *f = ((1.0 - smooth) * f64::from(*f) / factor + smooth * f64::from(*f)) as f32;
                }
            }
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            let dim = config.rotary_dim as f64;
            let turning = |rotations: f64| {
                dim * (original_max_position_embeddings / (rotations * 2.0 * PI)).ln()
                    / (2.0 * config.theta.ln())
            };
            let (mut low, mut high) = (turning(*beta_fast), turning(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001;
            }
            for (i, f) in inv_freq.iter_mut().enumerate() {
                let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let kept = f64::from(*f);
                *f = (kept / factor * interpolated + kept * (1.0 - interpolated)) as f32;
            }
        }
    }
    inv_freq
}
