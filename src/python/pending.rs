//! Vectors under way that an event loop waits for.

use std::task::{Context, Poll};

use pyo3::prelude::*;

use super::encode::deliver;
use super::notify;
use super::stream::new_future;
use crate::embed::{Pending, Precision};

/// Texts that are being encoded. Dropping it gives them up.
#[pyclass(frozen, name = "_PendingVectors", module = "candlewick._native")]
pub(super) struct PendingVectors {
    pending: Pending,
    precision: Precision,
    many: bool,
}

impl PendingVectors {
    pub(super) fn new(pending: Pending, precision: Precision, many: bool) -> Self {
        Self { pending, precision, many }
    }
}

#[pymethods]
impl PendingVectors {
    /// A future of the running event loop that gets the array.
    fn future<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let future = new_future(slf.py())?;
        Self::_advance(slf, &future)?;
        Ok(future)
    }

    /// Called by the event loop when the vectors may be there.
    fn _advance<'py>(slf: &Bound<'py, Self>, future: &Bound<'py, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if future.call_method0("done")?.is_truthy()? {
            return Ok(());
        }
        let event_loop = future.call_method0("get_loop")?.unbind();
        let waker = notify::waker(event_loop, slf.getattr("_advance")?.unbind(), future.clone().unbind());
        let result = match this.pending.poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => return Ok(()),
            Poll::Ready(result) => result,
        };
        match result.map_err(PyErr::from).and_then(|found| deliver(py, found, this.precision, this.many)) {
            Ok(array) => future.call_method1("set_result", (array,))?,
            Err(error) => future.call_method1("set_exception", (error.into_value(py),))?,
        };
        Ok(())
    }

    /// Gives the texts up.
    fn cancel(&self) {
        self.pending.cancel();
    }
}
