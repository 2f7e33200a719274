//! From the engine's thread to an event loop, without the engine ever waiting for the GIL.
//!
//! A waker only puts a job into a queue; one thread of this process takes the GIL and calls `call_soon_threadsafe`.
//! It must not hold or want the GIL while the interpreter ends, which would end the thread in the middle of Rust code
//! and abort the process: [`close_at_exit`].

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyCFunction;

/// A call to make in the thread of an event loop.
pub(super) struct Callback {
    event_loop: Py<PyAny>,
    callable: Py<PyAny>,
    argument: Py<PyAny>,
}

/// A waker that has `callable(argument)` called by `event_loop`.
pub(super) fn waker(event_loop: Py<PyAny>, callable: Py<PyAny>, argument: Py<PyAny>) -> Waker {
    Waker::from(Arc::new(Once(Mutex::new(Some(Callback { event_loop, callable, argument })))))
}

/// Wakes at most once.
struct Once(Mutex<Option<Callback>>);

impl Wake for Once {
    fn wake(self: Arc<Self>) {
        let callback = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(callback) = callback {
            post(callback);
        }
    }
}

/// The queue of the thread that serves this process; a forked child needs its own.
static QUEUE: Mutex<Option<(u32, Sender<Callback>)>> = Mutex::new(None);

fn post(callback: Callback) {
    let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    let sender = match &*queue {
        Some((owner, sender)) if *owner == process => sender,
        _ => {
            let (sender, receiver) = channel();
            let spawned =
                std::thread::Builder::new().name("candlewick-notify".into()).spawn(move || serve(&receiver));
            if let Err(error) = spawned {
                log::error!("event loops cannot be notified: {error}");
            }
            &queue.insert((process, sender)).1
        }
    };
    // The receiver lives as long as the process has an interpreter.
    let _ = sender.send(callback);
}

/// Whether the interpreter may be entered. Held while the notifying thread is in it.
static OPEN: Mutex<bool> = Mutex::new(true);

fn serve(receiver: &Receiver<Callback>) {
    for first in receiver {
        let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return;
        }
        let served = Python::try_attach(|py| {
            for callback in std::iter::once(first).chain(receiver.try_iter()) {
                let Callback { event_loop, callable, argument } = callback;
                // A loop that is closed meanwhile has nobody waiting.
                let _ = event_loop.call_method1(py, "call_soon_threadsafe", (callable, argument));
            }
        });
        if served.is_none() {
            return;
        }
    }
}

/// Has Python's `atexit` wait for the notifying thread to leave the interpreter, and keep it out from then on.
pub(super) fn close_at_exit(py: Python<'_>) -> PyResult<()> {
    let close = PyCFunction::new_closure(py, None, None, |arguments, _| arguments.py().detach(close))?;
    py.import("atexit")?.call_method1("register", (close,))?;
    Ok(())
}

fn close() {
    // The lock stays taken for ever in a child that was forked while it was held; that child has no such thread.
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        let mut open = match OPEN.try_lock() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        *open = false;
        return;
    }
}
