//! What `candlewick selftest` runs.

use pyo3::prelude::*;

use super::enter::enter_long;
use super::source::bundled_directory;
use crate::selftest::{SelftestOptions, selftest};

/// Name, dtype, difference, tolerance, seconds, and why nothing could be compared.
type Row = (String, &'static str, f32, f32, f64, Option<String>);

/// The results of every check on a device; `candlewick.selftest` gives them names.
#[pyfunction]
pub(super) fn _selftest(py: Python<'_>, device: String) -> PyResult<Vec<Row>> {
    let options = SelftestOptions { device, bundled: Some(bundled_directory(py)?) };
    let work = |cancelled: &std::sync::Arc<std::sync::atomic::AtomicBool>| {
        let mut rows: Vec<Row> = Vec::new();
        selftest(&options, &mut |check| {
            rows.push((
                check.name.clone(),
                check.dtype,
                check.difference,
                check.tolerance,
                check.seconds,
                check.error.clone(),
            ));
            match cancelled.load(std::sync::atomic::Ordering::Relaxed) {
                true => Err(crate::Error::internal("the self-test was stopped", "a signal arrived")),
                false => Ok(()),
            }
        })?;
        Ok(rows)
    };
    enter_long(py, work, |_| Ok(()))
}
