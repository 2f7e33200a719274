//! `TokenStream`: one object for `for` and for `async for`.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use pyo3::exceptions::{PyRuntimeError, PyStopAsyncIteration};
use pyo3::prelude::*;

use super::enter::{POLL, enter};
use super::notify;
use super::results::{Generation, StreamToken};
use crate::generate::{self, Event};

/// The tokens of one generation, as they come: an iterator and an async iterator.
///
/// Leaving early (``close()``, ``aclose()``, the end of a ``with`` block, or dropping it) cancels the generation
/// within one token. ``"".join(token.text for token in stream)`` is the whole text.
///
/// Examples:
///     >>> import candlewick as cw
///     >>> generator = cw.Generator(cw.Model.from_pretrained("candlewick/tiny"), max_new_tokens=5)
///     >>> stream = generator.stream("Once upon a time")
///     >>> text = "".join(token.text for token in stream)
///     >>> text == stream.result.text
///     True
#[pyclass(frozen, module = "candlewick")]
pub(super) struct TokenStream {
    inner: Arc<generate::TokenStream>,
    closed: Mutex<bool>,
}

impl TokenStream {
    pub(super) fn new(inner: generate::TokenStream) -> Self {
        Self { inner: Arc::new(inner), closed: Mutex::new(false) }
    }

    fn is_closed(&self) -> bool {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves `future` with the next token, or arranges to be called again.
    fn resolve<'py>(slf: &Bound<'py, Self>, future: &Bound<'py, PyAny>) -> PyResult<()> {
        if future.call_method0("done")?.is_truthy()? {
            return Ok(());
        }
        let this = slf.get();
        if this.is_closed() {
            return fail(future, PyStopAsyncIteration::new_err(()));
        }
        let event_loop = future.call_method0("get_loop")?;
        let waker =
            notify::waker(event_loop.unbind(), slf.getattr("_advance")?.unbind(), future.clone().unbind());
        match this.inner.poll_next(&mut Context::from_waker(&waker)) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(Some(token))) => {
                future.call_method1("set_result", (StreamToken::from(token),))?;
                Ok(())
            }
            Poll::Ready(Ok(None)) => fail(future, PyStopAsyncIteration::new_err(())),
            Poll::Ready(Err(error)) => fail(future, error.into()),
        }
    }
}

fn fail(future: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    future.call_method1("set_exception", (error.into_value(future.py()),))?;
    Ok(())
}

/// A new future of the running event loop.
pub(super) fn new_future(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import("asyncio")?.call_method0("get_running_loop")?.call_method0("create_future")
}

#[pymethods]
impl TokenStream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<StreamToken>> {
        loop {
            if self.is_closed() {
                return Ok(None);
            }
            match enter(py, || self.inner.next_timeout(POLL))? {
                Event::Token(token) => return Ok(Some(token.into())),
                Event::End => return Ok(None),
                Event::Pending => {
                    if let Err(interrupt) = py.check_signals() {
                        self.close();
                        return Err(interrupt);
                    }
                }
            }
        }
    }

    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let future = new_future(slf.py())?;
        Self::resolve(slf, &future)?;
        Ok(future)
    }

    /// Called by the event loop when a token may have come.
    fn _advance<'py>(slf: &Bound<'py, Self>, future: &Bound<'py, PyAny>) -> PyResult<()> {
        Self::resolve(slf, future)
    }

    /// Ends the generation within one token. Closing twice does nothing.
    fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.inner.close();
    }

    /// As ``close()``, for ``async with`` and ``contextlib.aclosing``.
    fn aclose<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.close();
        let future = new_future(py)?;
        future.call_method1("set_result", (py.None(),))?;
        Ok(future)
    }

    /// The whole result, once the stream has ended or was closed. If it was closed early, it is what was read until
    /// then, and its ``finish_reason`` is ``"cancelled"``.
    ///
    /// Raises:
    ///     RuntimeError: The stream has not ended yet.
    #[getter]
    fn result(&self, py: Python<'_>) -> PyResult<Generation> {
        // A closed stream is about to end: the engine needs one token's time to notice.
        while self.is_closed() && self.inner.result().is_none() {
            if let Event::End = enter(py, || self.inner.next_timeout(POLL))? {
                break;
            }
            py.check_signals()?;
        }
        match self.inner.result() {
            Some(result) => Ok(Generation::from(&*result)),
            None => {
                Err(PyRuntimeError::new_err("the stream has not ended; read it to the end or close it first"))
            }
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, _exc: &Bound<'_, pyo3::types::PyTuple>) {
        self.close();
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let future = new_future(slf.py())?;
        future.call_method1("set_result", (slf,))?;
        Ok(future)
    }

    #[pyo3(signature = (*_exc))]
    fn __aexit__<'py>(
        &self,
        py: Python<'py>,
        _exc: &Bound<'py, pyo3::types::PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.aclose(py)
    }

    fn __repr__(&self) -> &'static str {
        match (self.is_closed(), self.inner.result().is_some()) {
            (true, _) => "TokenStream(closed)",
            (false, true) => "TokenStream(ended)",
            (false, false) => "TokenStream(running)",
        }
    }
}
