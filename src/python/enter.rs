//! The boundary: the one place that releases the GIL and looks for Ctrl-C.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::prelude::*;

use crate::{Error, Result};

/// How long Ctrl-C may go unnoticed while waiting.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// Runs short work without the GIL.
pub(super) fn enter<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    Ok(py.detach(work)?)
}

/// Runs long work on a thread of its own while this one looks for signals and calls `tick` every [`POLL`].
///
/// When a signal's handler or `tick` raises, the flag given to `work` is set, and the exception is raised as soon as
/// `work` has returned: nothing goes on behind the caller's back.
pub(super) fn enter_long<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&Arc<AtomicBool>) -> Result<T> + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    let cancel = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let flag = Arc::clone(&cancel);
        let spawned =
            std::thread::Builder::new().name("candlewick-call".into()).spawn_scoped(scope, move || {
                let result = catch_unwind(AssertUnwindSafe(|| work(&flag)));
                // The receiver outlives the thread.
                let _ = sender.send(result);
            });
        if let Err(error) = spawned {
            return Err(Error::internal("a thread could not be started", error).into());
        }
        let receiver = std::sync::Mutex::new(receiver);
        let mut raised: Option<PyErr> = None;
        loop {
            let received = py.detach(|| {
                let receiver = receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                receiver.recv_timeout(POLL)
            });
            match received {
                Ok(Ok(result)) => return raised.map_or_else(|| Ok(result?), Err),
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("a fault in candlewick", "the work panicked").into());
                }
                Err(RecvTimeoutError::Timeout) if raised.is_none() => {
                    if let Err(error) = py.check_signals().and_then(|()| tick(py)) {
                        cancel.store(true, Ordering::Relaxed);
                        raised = Some(error);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    })
}
