//! One vector for a sequence from the vectors of its tokens.
//!
//! Modes and their names are those of sentence-transformers' `Pooling` module.

use crate::{Error, Result};

/// How token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingMode {
    /// The first token's.
    Cls,
    /// The largest value of each dimension.
    Max,
    /// The mean.
    Mean,
    /// The sum divided by the square root of the number of tokens.
    MeanSqrtLen,
    /// The mean weighted by position, counted from 1.
    WeightedMean,
    /// The last token's.
    LastToken,
}

impl PoolingMode {
    /// Every mode under its name, in the order in which several are concatenated.
    pub const ALL: &[(&str, Self)] = &[
        ("cls", Self::Cls),
        ("max", Self::Max),
        ("mean", Self::Mean),
        ("mean_sqrt_len_tokens", Self::MeanSqrtLen),
        ("weightedmean", Self::WeightedMean),
        ("lasttoken", Self::LastToken),
    ];

    /// The mode called `name`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, mode)| *mode).ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(|(known, _)| format!("{known:?}")).collect();
            Error::argument("pooling", format!("{name:?}"), names.join(", "))
        })
    }
}

/// One or several modes, concatenated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooling {
    /// The modes in order.
    pub modes: Vec<PoolingMode>,
    /// Whether tokens of the prompt count.
    pub include_prompt: bool,
}

impl Pooling {
    /// Pools the token vectors of one sequence, `[tokens, hidden]` row by row, to `[modes * hidden]`.
    ///
    /// `prompt` is the number of tokens of the prompt at the beginning, which count only if the prompt is included.
    /// Where nothing counts, the result is 0, but for the first token's.
    pub fn pool(&self, states: &[f32], hidden: usize, prompt: usize) -> Vec<f32> {
        let tokens = states.len() / hidden.max(1);
        let skipped = if self.include_prompt { 0 } else { prompt.min(tokens) };
        let counted = &states[skipped * hidden..];
        if tokens == 0 {
            return vec![0.0; self.modes.len() * hidden];
        }
        let mut out = Vec::with_capacity(self.modes.len() * hidden);
        for mode in &self.modes {
            match mode {
                PoolingMode::Cls => {
                    let row = if skipped < tokens { skipped } else { 0 };
                    out.extend_from_slice(&states[row * hidden..(row + 1) * hidden]);
                }
                PoolingMode::LastToken if skipped == tokens => out.resize(out.len() + hidden, 0.0),
                PoolingMode::LastToken => out.extend_from_slice(&states[(tokens - 1) * hidden..]),
                PoolingMode::Max => out.extend(largest(counted, hidden)),
                PoolingMode::Mean | PoolingMode::MeanSqrtLen => {
                    let count = (tokens - skipped).max(1) as f64;
                    let divisor = if *mode == PoolingMode::Mean { count } else { count.sqrt() };
                    out.extend(sum(counted, hidden, |_| 1.0).map(|x| (x / divisor) as f32));
                }
                PoolingMode::WeightedMean => {
                    let weight = |row: usize| (skipped + row + 1) as f64;
                    let total: f64 = (0..tokens - skipped).map(weight).sum();
                    let divisor = if total > 0.0 { total } else { 1.0 };
                    out.extend(sum(counted, hidden, weight).map(|x| (x / divisor) as f32));
                }
            }
        }
        out
    }
}

/// The weighted sum of rows; in f64, so that long texts lose nothing.
fn sum(rows: &[f32], hidden: usize, weight: impl Fn(usize) -> f64) -> impl Iterator<Item = f64> {
    let mut total = vec![0.0_f64; hidden];
    for (index, row) in rows.chunks_exact(hidden).enumerate() {
        let weight = weight(index);
        for (sum, x) in total.iter_mut().zip(row) {
            *sum += f64::from(*x) * weight;
        }
    }
    total.into_iter()
}

fn largest(rows: &[f32], hidden: usize) -> Vec<f32> {
    let mut rows = rows.chunks_exact(hidden);
    let Some(first) = rows.next() else { return vec![0.0; hidden] };
    let mut best = first.to_vec();
    for row in rows {
        for (best, x) in best.iter_mut().zip(row) {
            *best = best.max(*x);
        }
    }
    best
}
