//! Few rows times a matrix on the GPU: launches of linear.metal.

use candle_core::backend::BackendStorage;
use candle_core::{Layout, MetalStorage, Result as CandleResult};

use super::{Launch, View, allocate, suffix};

const SOURCE: &str = include_str!("linear.metal");

/// Up to this many rows each is read alone, and the weight with it; more are candle's matrix product.
const MAX_ROWS: usize = 4;
/// Outputs that a threadgroup computes, one a simdgroup.
const OUTPUTS: usize = 8;

/// Whether the kernel takes `rows` rows and a weight that lies as it is stored.
pub(in crate::kernels) fn fits(rows: usize, weight: View) -> bool {
    (1..=MAX_ROWS).contains(&rows) && weight.1.is_contiguous() && suffix(weight.0.dtype()).is_some()
}

/// `x Wᵀ` for `rows` contiguous rows at `x` and `weight: [out, in]` of the same dtype.
pub(in crate::kernels) fn linear(x: View, weight: View, rows: usize) -> CandleResult<MetalStorage> {
    let (out, inn) = weight.1.shape().dims2()?;
    let y = allocate(x.0.device(), rows * out, x.0.dtype())?;
    let rows_layout = Layout::contiguous_with_offset((rows, inn), x.1.start_offset());
    Launch {
        source: SOURCE,
        kernel: &format!("linear_row_{}", suffix(x.0.dtype()).unwrap_or_default()),
        inputs: &[(x.0, &rows_layout), weight],
        constants: &[&[inn as u32, out as u32]],
        outputs: &[&y],
        groups: [out.div_ceil(OUTPUTS), rows, 1],
        threads: 32 * OUTPUTS,
    }
    .run(x.0.device())?;
    Ok(y)
}
