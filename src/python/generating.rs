//! Generations that are about to begin or under way, for callers that wait and for event loops.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::enter::enter;
use super::notify;
use super::results::Generation;
use super::stream::new_future;
use crate::Result;
use crate::generate::{self, GenerationOptions, Prompt};
use crate::nn::AdapterSet;

/// Bytes of text that are encoded in less time than an event loop notices.
const SHORT_BYTES: usize = 4096;

/// Prompts that are not encoded yet.
pub(super) struct Job {
    pub(super) generator: generate::Generator,
    pub(super) prompts: Vec<Prompt>,
    /// One for each prompt.
    pub(super) adapters: Vec<Option<Arc<AdapterSet>>>,
    pub(super) options: GenerationOptions,
}

impl Job {
    /// Encodes all prompts and hands them to the engine.
    pub(super) fn begin(self) -> Result<Vec<generate::TokenStream>> {
        let Self { generator, prompts, adapters, options } = self;
        let requests = prompts.iter().zip(adapters);
        requests.map(|(prompt, adapter)| generator.start(prompt, &options, adapter)).collect()
    }

    /// Whether encoding may take so long that an event loop should not wait for it.
    pub(super) fn is_slow_to_begin(&self) -> bool {
        let bytes = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(messages) => messages.to_string().len(),
            Prompt::Ids(_) => 0,
        };
        self.prompts.iter().map(bytes).sum::<usize>() > SHORT_BYTES
    }
}

/// One result, or all of them in a list.
pub(super) fn deliver(
    py: Python<'_>,
    mut results: Vec<Generation>,
    many: bool,
) -> PyResult<Bound<'_, PyAny>> {
    match (many, results.pop()) {
        (false, Some(result)) => Ok(Bound::new(py, result)?.into_any()),
        (_, last) => {
            results.extend(last);
            let results =
                results.into_iter().map(|result| Bound::new(py, result)).collect::<PyResult<Vec<_>>>()?;
            Ok(PyList::new(py, results)?.into_any())
        }
    }
}

/// Generations that an event loop waits for. Dropping it cancels them.
#[pyclass(frozen, name = "_Pending", module = "candlewick._native")]
pub(super) struct Pending {
    /// What has not begun.
    job: Mutex<Option<Job>>,
    streams: OnceLock<Vec<generate::TokenStream>>,
    cancelled: AtomicBool,
    many: bool,
}

impl Pending {
    /// Generations under way.
    pub(super) fn new(streams: Vec<generate::TokenStream>, many: bool) -> Self {
        Self {
            job: Mutex::default(),
            streams: OnceLock::from(streams),
            cancelled: AtomicBool::default(),
            many,
        }
    }

    /// Generations that another thread is to begin.
    pub(super) fn later(job: Job, many: bool) -> Self {
        Self { job: Mutex::new(Some(job)), streams: OnceLock::new(), cancelled: AtomicBool::default(), many }
    }

    fn streams(&self) -> &[generate::TokenStream] {
        self.streams.get().map_or(&[], Vec::as_slice)
    }

    fn resolve<'py>(slf: &Bound<'py, Self>, future: &Bound<'py, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if future.call_method0("done")?.is_truthy()? {
            return Ok(());
        }
        for stream in this.streams() {
            let event_loop = future.call_method0("get_loop")?;
            let waker = notify::waker(
                event_loop.unbind(),
                slf.getattr("_advance")?.unbind(),
                future.clone().unbind(),
            );
            loop {
                match stream.poll_next(&mut Context::from_waker(&waker)) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(Some(_))) => {}
                    Poll::Ready(Ok(None)) => break,
                    Poll::Ready(Err(error)) => {
                        future.call_method1("set_exception", (PyErr::from(error).into_value(py),))?;
                        return Ok(());
                    }
                }
            }
        }
        let results = this.streams().iter().filter_map(generate::TokenStream::result);
        let results = results.map(|result| Generation::from(&*result)).collect();
        future.call_method1("set_result", (deliver(py, results, this.many)?,))?;
        Ok(())
    }
}

#[pymethods]
impl Pending {
    /// A future of the running event loop that gets the result.
    fn future<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let future = new_future(slf.py())?;
        Self::resolve(slf, &future)?;
        Ok(future)
    }

    /// Called by the event loop when a generation may have ended.
    fn _advance<'py>(slf: &Bound<'py, Self>, future: &Bound<'py, PyAny>) -> PyResult<()> {
        Self::resolve(slf, future)
    }

    /// Begins what has not begun, from another thread than the event loop's.
    fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let job = self.job.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(job) = job {
            let streams = enter(py, || job.begin())?;
            self.streams.get_or_init(|| streams);
            // It may have been given up meanwhile.
            if self.cancelled.load(Ordering::SeqCst) {
                self.cancel();
            }
        }
        Ok(())
    }

    /// Ends all generations within one token.
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.streams().iter().for_each(generate::TokenStream::cancel);
    }
}
