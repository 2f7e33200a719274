//! Continuous batching as a plain value that can be stepped by hand.
//!
//! Requests join and leave between steps. Each step is one pass over a ragged batch: one token for every decoding
//! sequence and chunks of the prompts of those that are not there yet. It has no thread and no clock of its own.

use std::collections::VecDeque;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::prefix::{PrefixStore, common_prefix};
use super::request::Request;
use super::sequence::Sequence;
use super::stream::{FinishReason, Generation, Sink};
use crate::batch::Batch;
use crate::models::Model;
use crate::nn::{AdapterPlan, KvCache, Pass};
use crate::{Error, Result};

/// Limits of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Sequences computed together; more wait. Those whose readers lag behind do not count.
    pub max_sequences: usize,
    /// Prompt tokens computed in one step, all sequences together.
    pub prefill_tokens: usize,
    /// Bytes of caches of ended requests that are kept for prefixes in common.
    pub prefix_cache_bytes: usize,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { max_sequences: 64, prefill_tokens: 512, prefix_cache_bytes: 256 << 20 }
    }
}

struct Waiting {
    request: Request,
    sink: Sink,
    arrived: Instant,
}

/// The requests of one model and what is computed for them next.
pub struct Scheduler {
    options: SchedulerOptions,
    waiting: VecDeque<Waiting>,
    /// Sorted by adapter, so that rows of one adapter lie together.
    active: Vec<Sequence>,
    prefixes: PrefixStore,
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(options: SchedulerOptions) -> Self {
        let prefixes = PrefixStore::new(options.prefix_cache_bytes);
        Self { options, waiting: VecDeque::new(), active: Vec::new(), prefixes }
    }

    /// Whether no request is waiting or under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Takes a request that arrived at `arrived`; it joins at one of the next steps.
    pub(super) fn add(&mut self, request: Request, sink: Sink, arrived: Instant) {
        self.waiting.push_back(Waiting { request, sink, arrived });
    }

    /// Fails every request, for faults that no single request is to blame for.
    pub(super) fn fail_all(&mut self, reason: &str) {
        let error = || Err(Error::internal("generation", reason));
        self.waiting.drain(..).for_each(|waiting| waiting.sink.finish(error()));
        self.active.drain(..).for_each(|sequence| sequence.sink.finish(error()));
    }

    /// Computes one pass; `false` if there was nothing to compute, because nobody asks or all readers lag behind.
    pub fn step(&mut self, model: &Model) -> bool {
        self.reap();
        self.admit(model);
        let plan = self.plan();
        if plan.iter().all(|count| *count == 0) {
            return false;
        }
        if let Err(error) = self.run(model, &plan).and_then(|logits| self.advance(&plan, logits)) {
            self.fail(&plan, &error.to_string());
        }
        true
    }

    /// Fails the sequences of a pass that went wrong; the others go on.
    fn fail(&mut self, plan: &[usize], reason: &str) {
        log::error!("a generation step failed: {reason}");
        let mut counts = plan.iter();
        self.active.retain(|sequence| {
            let bystander = counts.next().is_none_or(|count| *count == 0);
            if !bystander {
                sequence.sink.finish(Err(Error::internal("generation", reason)));
            }
            bystander
        });
    }

    /// Ends what was cancelled.
    fn reap(&mut self) {
        self.waiting.retain(|Waiting { request, sink, .. }| {
            let is_wanted = !sink.is_cancelled();
            if !is_wanted {
                sink.finish(Ok(Generation::unstarted(request)));
            }
            is_wanted
        });
        let mut index = 0;
        while index < self.active.len() {
            if self.active[index].sink.is_cancelled() {
                let sequence = self.active.remove(index);
                sequence.sink.finish(Ok(sequence.generation(FinishReason::Cancelled, None)));
                self.keep_prefix(sequence);
            } else {
                index += 1;
            }
        }
    }

    /// Moves requests from waiting to active while there is room.
    fn admit(&mut self, model: &Model) {
        // Those whose readers lag behind take no part in passes, so they take no place either.
        let mut computed = self.active.iter().filter(|sequence| !sequence.is_stalled()).count();
        while computed < self.options.max_sequences {
            let Some(next) = self.waiting.pop_front() else { return };
            match self.memory_for(model, &next.request) {
                Ok(true) => {}
                Ok(false) => {
                    self.waiting.push_front(next);
                    return;
                }
                Err(error) => {
                    next.sink.finish(Err(error));
                    continue;
                }
            }
            let Waiting { request, sink, arrived } = next;
            let cache = self.cache_for(model, &request).unwrap_or_else(|error| {
                log::warn!("a cached prefix could not be used: {error}");
                model.decoder().new_cache()
            });
            match Sequence::new(model, request, sink, arrived, cache) {
                Ok(sequence) => {
                    let place =
                        self.active.partition_point(|other| other.adapter_key() <= sequence.adapter_key());
                    self.active.insert(place, sequence);
                    computed += 1;
                }
                // `Request::new` has checked the same values; the sink reports the end by being dropped.
                Err(error) => log::error!("a request could not be started: {error}"),
            }
        }
    }

    /// Whether the request fits beside what is active now; an error if it never will.
    fn memory_for(&mut self, model: &Model, request: &Request) -> Result<bool> {
        let Some(limit_bytes) = model.memory_limit_bytes() else { return Ok(true) };
        let layout = model.decoder().cache_layout();
        let bytes = |request: &Request| layout.bytes_for(request.max_tokens(model.context_length())) as u64;
        let base = model.size_in_bytes() as u64;
        let needed_bytes = base + bytes(request);
        if needed_bytes > limit_bytes {
            return Err(Error::OutOfMemory {
                what: "the model and this request's cache".into(),
                needed_bytes,
                limit_bytes,
            });
        }
        let active: u64 = self.active.iter().map(|sequence| bytes(&sequence.request)).sum();
        let fits = needed_bytes + active <= limit_bytes;
        if fits {
            self.prefixes.shrink_to((limit_bytes - needed_bytes - active) as usize);
        }
        Ok(fits)
    }

    /// A cache that holds as much of the prompt as some live or recent request has computed.
    fn cache_for(&mut self, model: &Model, request: &Request) -> Result<KvCache> {
        let decoder = model.decoder();
        // The last token must be computed for its logits.
        let wanted = &request.prompt[..request.prompt.len() - 1];
        let key = request.adapter.as_ref().map(|set| set.generation());
        if decoder.prefixes_can_be_shared() {
            let live = (self.active.iter().filter(|sequence| sequence.adapter_key() == key))
                .map(|sequence| (common_prefix(&sequence.tokens[..sequence.fed], wanted), &sequence.cache))
                .max_by_key(|(shared, _)| *shared);
            let kept = self.prefixes.best(wanted, key);
            let best = [live, kept].into_iter().flatten().max_by_key(|(shared, _)| *shared);
            if let Some((shared, cache)) = best
                && shared > 0
                && let Some(copy) = cache.fork(shared)?
            {
                return Ok(copy);
            }
        }
        Ok(decoder.new_cache())
    }

    /// How many tokens of each active sequence the next pass takes.
    fn plan(&self) -> Vec<usize> {
        let mut counts: Vec<usize> = (self.active.iter())
            .map(|sequence| usize::from(sequence.prompt_left() == 0 && !sequence.is_stalled()))
            .collect();
        // Prompts share the budget evenly; what short ones leave goes to the others, earliest first.
        let mut budget = self.options.prefill_tokens;
        let mut order: Vec<usize> =
            (0..self.active.len()).filter(|&index| self.active[index].prompt_left() > 0).collect();
        order.sort_by_key(|&index| self.active[index].prompt_left());
        let mut left = order.len();
        for index in order {
            let share = (budget / left).max(1).min(self.active[index].prompt_left()).min(budget);
            counts[index] = share;
            budget -= share;
            left -= 1;
        }
        counts
    }

    /// One pass. Logits `[rows, vocab]` of the sequences whose next token can be sampled, in order; `None` if there
    /// are none, or if all readers gave up meanwhile.
    fn run(&mut self, model: &Model, plan: &[usize]) -> Result<Option<Tensor>> {
        let mut batch = Batch::new();
        let mut adapters = AdapterPlan::default();
        let mut rows: Vec<u32> = Vec::new();
        let (mut caches, mut sinks, mut progress) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, &count) in self.active.iter_mut().zip(plan).filter(|(_, count)| **count > 0) {
            let Sequence { request, sink, tokens, fed, cache, .. } = sequence;
            let end = *fed + count;
            batch.push_part(&tokens[*fed..end], *fed, request.prompt.len());
            if let Some(set) = &request.adapter {
                adapters.push(batch.rows(batch.sequences() - 1), set);
            }
            if end == tokens.len() {
                rows.push(batch.tokens() as u32 - 1);
            }
            caches.push(cache);
            sinks.push(&*sink);
            progress.push((fed, end));
        }
        let cancelled = || sinks.iter().all(|sink| sink.is_cancelled());
        let _execution = model.exclusive()?;
        let mut pass =
            Pass::with_caches(&batch, caches).with_adapters(adapters).with_cancellation(&cancelled);
        let hidden = match model.forward(&mut pass) {
            Ok(hidden) => hidden,
            Err(_) if pass.is_cancelled() => return Ok(None),
            Err(error) => return Err(error),
        };
        progress.into_iter().for_each(|(fed, end)| *fed = end);
        if rows.is_empty() {
            return Ok(None);
        }
        let last = hidden.index_select(&Tensor::new(rows.as_slice(), hidden.device())?, 0)?;
        let logits = model.head(&last, &pass.select(&rows))?;
        Ok(Some(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?))
    }

    /// Samples a token for every sequence that has logits, and takes out those that end.
    fn advance(&mut self, plan: &[usize], logits: Option<Tensor>) -> Result<()> {
        let Some(logits) = logits else { return Ok(()) };
        let mut values = logits.to_vec2::<f32>()?.into_iter();
        let mut ended = Vec::new();
        for (index, (sequence, count)) in self.active.iter_mut().zip(plan).enumerate() {
            if *count == 0 || sequence.fed < sequence.tokens.len() {
                continue;
            }
            let Some(mut row) = values.next() else { break };
            match sequence.advance(&mut row) {
                Ok(None) => {}
                Ok(Some((finish, stop))) => ended.push((index, Ok(sequence.generation(finish, stop)))),
                Err(error) => ended.push((index, Err(error))),
            }
        }
        for (index, result) in ended.into_iter().rev() {
            let sequence = self.active.remove(index);
            sequence.sink.finish(result);
            self.keep_prefix(sequence);
        }
        Ok(())
    }

    fn keep_prefix(&mut self, mut sequence: Sequence) {
        sequence.tokens.truncate(sequence.cache.len());
        let key = sequence.adapter_key();
        self.prefixes.insert(sequence.tokens, key, sequence.cache);
    }
}
