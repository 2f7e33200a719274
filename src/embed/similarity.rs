//! How alike vectors are.

use rayon::prelude::*;

use crate::{Error, Result};

/// A measure in which larger is more alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Similarity {
    /// The cosine of the angle.
    #[default]
    Cosine,
    /// The dot product.
    Dot,
    /// The negative Euclidean distance.
    Euclidean,
    /// The negative sum of absolute differences.
    Manhattan,
}

impl Similarity {
    /// The measure called `name`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "cosine" => Self::Cosine,
            "dot" => Self::Dot,
            "euclidean" => Self::Euclidean,
            "manhattan" => Self::Manhattan,
            _ => {
                let allowed = "\"cosine\", \"dot\", \"euclidean\" or \"manhattan\"";
                return Err(Error::argument("similarity", format!("{name:?}"), allowed));
            }
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::Euclidean => "euclidean",
            Self::Manhattan => "manhattan",
        }
    }

    fn of(self, a: &[f32], b: &[f32]) -> f32 {
        let pairs = a.iter().zip(b);
        match self {
            Self::Cosine | Self::Dot => pairs.map(|(a, b)| a * b).sum(),
            Self::Euclidean => -pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt(),
            Self::Manhattan => -pairs.map(|(a, b)| (a - b).abs()).sum::<f32>(),
        }
    }
}

/// All vectors of `a` `[n, dim]` against all of `b` `[m, dim]`: `[n, m]` row by row.
///
/// # Errors
/// [`Error::InvalidArgument`] where the values are no rows of `dim`.
pub fn similarity(measure: Similarity, a: &[f32], b: &[f32], dim: usize) -> Result<Vec<f32>> {
    if dim == 0 || !a.len().is_multiple_of(dim) || !b.len().is_multiple_of(dim) {
        let found = format!("{} and {} values", a.len(), b.len());
        return Err(Error::argument("vectors", found, format!("rows of {dim}")));
    }
    if measure == Similarity::Cosine {
        return similarity(Similarity::Dot, &unit(a, dim), &unit(b, dim), dim);
    }
    let row = |a: &[f32]| b.chunks(dim).map(|b| measure.of(a, b)).collect::<Vec<f32>>();
    Ok(a.par_chunks(dim).flat_map_iter(row).collect())
}

/// Every row at length 1; rows of zeros stay.
fn unit(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut vectors = vectors.to_vec();
    normalize(&mut vectors, dim);
    vectors
}

/// Scales every row of `dim` to length 1, as torch does: tiny rows are divided by 1e-12.
pub(super) fn normalize(vectors: &mut [f32], dim: usize) {
    for row in vectors.chunks_mut(dim.max(1)) {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let length = (squares.sqrt() as f32).max(1e-12);
        row.iter_mut().for_each(|x| *x /= length);
    }
}
