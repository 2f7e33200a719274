//! Requests of concurrent callers, gathered into one batch.
//!
//! A thread takes whatever has arrived, computes requests with the same options together, and starts over; what arrives
//! meanwhile is the next batch. The thread ends when nothing is left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::batching::Watch;
use super::embedder::{Embedder, EncodeOptions, Vectors};
use crate::{Error, Result};

struct Job {
    texts: Vec<String>,
    options: EncodeOptions,
    slot: Arc<Slot>,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    cancelled: AtomicBool,
}

#[derive(Default)]
struct State {
    result: Option<Result<Vectors>>,
    waker: Option<Waker>,
}

/// A request under way. Dropping it gives the request up.
pub struct Pending {
    slot: Arc<Slot>,
}

impl Pending {
    /// The result, once; until it is there, `context`'s waker is told when to ask again.
    pub fn poll(&self, context: &mut Context) -> Poll<Result<Vectors>> {
        let mut state = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Gives the request up.
    pub fn cancel(&self) {
        self.slot.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The requests that wait, and whether a thread is at work on them.
#[derive(Default)]
pub(super) struct Gatherer {
    inbox: Mutex<(Vec<Job>, bool)>,
}

impl Embedder {
    /// Hands in texts to be encoded together with those of other callers.
    ///
    /// # Errors
    /// [`Error::Internal`] where no thread can be started, or in a forked child.
    pub fn submit(&self, texts: Vec<String>, options: EncodeOptions) -> Result<Pending> {
        self.encoder().check_process()?;
        let slot = Arc::new(Slot::default());
        let mut inbox = self.gatherer().inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if !inbox.1 {
            let embedder = self.clone();
            std::thread::Builder::new()
                .name("candlewick-embed".into())
                .spawn(move || work(&embedder))
                .map_err(|error| Error::internal("a thread could not be started", error))?;
            inbox.1 = true;
        }
        inbox.0.push(Job { texts, options, slot: Arc::clone(&slot) });
        Ok(Pending { slot })
    }
}

fn work(embedder: &Embedder) {
    loop {
        let mut inbox = embedder.gatherer().inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = std::mem::take(&mut inbox.0);
        if jobs.is_empty() {
            inbox.1 = false;
            return;
        }
        drop(inbox);
        jobs.retain(|job| !job.slot.cancelled.load(Ordering::Relaxed));
        while let Some(first) = jobs.first() {
            let options = first.options.clone();
            let (alike, others) = jobs.into_iter().partition(|job| job.options.is_like(&options));
            together(embedder, alike);
            jobs = others;
        }
    }
}

/// Computes jobs with the same options in one go; if that fails, each alone, so that only the culprit hears of it.
fn together(embedder: &Embedder, jobs: Vec<Job>) {
    let texts: Vec<&str> = jobs.iter().flat_map(|job| &job.texts).map(String::as_str).collect();
    let Some(first) = jobs.first() else { return };
    match encode(embedder, &texts, &first.options, &jobs) {
        Ok(vectors) => {
            let mut row = 0;
            for job in &jobs {
                let rows = job.texts.len();
                let values = vectors.values[row * vectors.dim..(row + rows) * vectors.dim].to_vec();
                row += rows;
                job.slot.deliver(Ok(Vectors { values, rows, dim: vectors.dim }));
            }
        }
        Err(error) if jobs.len() == 1 => first.slot.deliver(Err(error)),
        Err(_) => {
            for job in jobs {
                let texts: Vec<&str> = job.texts.iter().map(String::as_str).collect();
                job.slot.deliver(encode(embedder, &texts, &job.options, std::slice::from_ref(&job)));
            }
        }
    }
}

fn encode(embedder: &Embedder, texts: &[&str], options: &EncodeOptions, jobs: &[Job]) -> Result<Vectors> {
    let cancelled = || jobs.iter().all(|job| job.slot.cancelled.load(Ordering::Relaxed));
    let watch = Watch { cancelled: &cancelled, progress: &|_| () };
    catch_unwind(AssertUnwindSafe(|| embedder.encode(texts, options, watch)))
        .unwrap_or_else(|_| Err(Error::internal("a fault in candlewick", "the work panicked")))
}

impl Slot {
    fn deliver(&self, result: Result<Vectors>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
