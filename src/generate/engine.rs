//! The worker thread that owns a model's scheduler.
//!
//! Callers of any thread hand in requests and read a [`TokenStream`]. The thread starts with the first request,
//! sleeps while there is nothing to do, and ends when the model is dropped. It holds the model only while it works.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::request::Request;
use super::scheduler::{Scheduler, SchedulerOptions};
use super::stream::{Sink, TokenStream, Wake, channel};
use crate::models::Model;
use crate::{Error, Result};

struct Incoming {
    model: Model,
    request: Request,
    sink: Sink,
    arrived: Instant,
}

#[derive(Default)]
struct Inbox {
    requests: VecDeque<Incoming>,
    /// Something changed that a sleeping worker should look at.
    poked: bool,
    closed: bool,
    running: bool,
}

#[derive(Default)]
struct Door {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Door")
    }
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Door {
    fn wake(&self) {
        self.lock().poked = true;
        self.changed.notify_one();
    }
}

/// The engine of one model.
#[derive(Debug, Default)]
pub struct Engine {
    door: Arc<Door>,
}

impl Engine {
    /// The engine of `model`; every clone of the model has the same.
    pub fn of(model: &Model) -> Arc<Self> {
        model.extension(Self::default)
    }

    /// Hands in a request. Its tokens come through the stream; dropping the stream cancels it.
    ///
    /// # Errors
    /// [`Error::Internal`] where no thread can be started, or in a forked child.
    pub fn submit(&self, model: &Model, request: Request) -> Result<TokenStream> {
        model.check_process()?;
        let (sink, stream) = channel(request.stream_capacity, Arc::clone(&self.door) as Arc<dyn Wake>);
        let incoming = Incoming { model: model.clone(), request, sink, arrived: Instant::now() };
        let mut inbox = self.door.lock();
        if !inbox.running {
            let door = Arc::clone(&self.door);
            std::thread::Builder::new()
                .name("candlewick".into())
                .spawn(move || work(&door))
                .map_err(|error| Error::internal("the engine's thread could not be started", error))?;
            inbox.running = true;
        }
        inbox.requests.push_back(incoming);
        inbox.poked = true;
        drop(inbox);
        self.door.changed.notify_one();
        Ok(stream)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.door.lock().closed = true;
        self.door.changed.notify_one();
    }
}

fn work(door: &Door) {
    let mut scheduler = Scheduler::new(SchedulerOptions::default());
    let mut model: Option<Model> = None;
    loop {
        let mut inbox = door.lock();
        let arrived = std::mem::take(&mut inbox.requests);
        inbox.poked = false;
        if inbox.closed && arrived.is_empty() && scheduler.is_idle() {
            return;
        }
        drop(inbox);
        for Incoming { model: its_model, request, sink, arrived } in arrived {
            model.get_or_insert(its_model);
            scheduler.add(request, sink, arrived);
        }
        let worked = match &model {
            Some(model) => match catch_unwind(AssertUnwindSafe(|| model.in_pool(|| scheduler.step(model)))) {
                Ok(worked) => worked,
                Err(panic) => {
                    let reason = panic.downcast_ref::<String>().map(String::as_str);
                    let reason = reason.or(panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
                    scheduler.fail_all(&format!("a fault in a step: {reason}"));
                    true
                }
            },
            None => false,
        };
        if !worked {
            if scheduler.is_idle() {
                // Outside of the lock: this may be the last handle, whose end closes the engine.
                model = None;
            }
            let mut inbox = door.lock();
            while !inbox.poked && !inbox.closed {
                inbox = door.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
