//! The channel between the engine and one caller: tokens as they come, and the whole result at the end.
//!
//! It is bounded: the engine leaves a sequence out of its steps while the reader lags behind, so a slow reader holds
//! up nobody else. Dropping the reading end cancels the request; closing it also forgets what was not read.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::request::Request;
use crate::Result;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence token, a stop token, or a stop string.
    Stop,
    /// The limit on new tokens, or the model's context.
    Length,
    /// The caller no longer wanted it.
    Cancelled,
}

impl FinishReason {
    /// `"stop"`, `"length"` or `"cancelled"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What exactly stopped a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// This token.
    Token(u32),
    /// This stop string.
    Text(String),
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamToken {
    /// The token's id.
    pub token_id: u32,
    /// Text that became final with it; may be empty, and may hold text of earlier tokens.
    pub text: String,
    /// Counts from 0.
    pub index: usize,
    /// The logit as the model gave it.
    pub logit: f32,
    /// Probability in the distribution sampled from.
    pub probability: f32,
    /// Natural logarithm of the probability.
    pub logprob: f32,
    /// The most probable tokens with their log-probabilities, best first.
    pub top_logprobs: Vec<(u32, f32)>,
    /// Whether it is one of the model's end-of-sequence tokens.
    pub is_eos: bool,
    /// Set on the last token.
    pub finish_reason: Option<FinishReason>,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The text, without a stop token or stop string.
    pub text: String,
    /// The generated ids, with the stop token.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were already there.
    pub cached_tokens: usize,
    /// Time from the request to its first token.
    pub time_to_first_token: Duration,
    /// Time from the first pass of this request to its first token.
    pub prompt_time: Duration,
    /// Time from the first to the last token.
    pub generation_time: Duration,
    /// For each token its log-probability and the best ones, where asked for.
    #[allow(clippy::type_complexity)] // A name would hide what a caller has to know.
    pub logprobs: Option<Vec<(f32, Vec<(u32, f32)>)>>,
    /// Name of the adapter it used.
    pub adapter: Option<String>,
}

impl Generation {
    /// Prompt tokens computed per second.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.prompt_time)
    }

    /// Tokens per second after the first.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.token_ids.len().saturating_sub(1), self.generation_time)
    }

    /// The result of a reader that left after `tokens` tokens, of which there are more, with the text `text`.
    fn up_to(&self, tokens: usize, text: &str) -> Self {
        let steps = self.token_ids.len().saturating_sub(1).max(1);
        Self {
            text: text.to_owned(),
            token_ids: self.token_ids[..tokens].to_vec(),
            finish_reason: FinishReason::Cancelled,
            stop_reason: None,
            generation_time: self.generation_time.mul_f64(tokens.saturating_sub(1) as f64 / steps as f64),
            logprobs: self.logprobs.as_ref().map(|all| all[..tokens.min(all.len())].to_vec()),
            ..self.clone()
        }
    }

    /// The result of a request that was given up before it began.
    pub(super) fn unstarted(request: &Request) -> Self {
        Self {
            text: String::new(),
            token_ids: Vec::new(),
            finish_reason: FinishReason::Cancelled,
            stop_reason: None,
            prompt_tokens: request.prompt.len(),
            cached_tokens: 0,
            time_to_first_token: Duration::ZERO,
            prompt_time: Duration::ZERO,
            generation_time: Duration::ZERO,
            logprobs: (request.sampling.logprobs > 0).then(Vec::new),
            adapter: request.adapter.as_ref().map(|set| set.name().to_owned()),
        }
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

#[derive(Debug, Default)]
struct State {
    tokens: VecDeque<StreamToken>,
    result: Option<Result<Arc<Generation>>>,
    ended: bool,
    cancelled: bool,
    /// The reader left: what it had not read by then does not count.
    closed: bool,
    /// How many tokens were read, and their text.
    read: usize,
    read_text: String,
    /// All that wait: several tasks may read one stream.
    wakers: Vec<Waker>,
}

#[derive(Debug)]
struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
    /// Whether single tokens can be read.
    streams: bool,
    /// Told when the reader made room or cancelled.
    engine: Arc<dyn Wake>,
}

/// Something that sleeps until there is work.
pub(super) trait Wake: Send + Sync + std::fmt::Debug {
    /// Looks for work soon.
    fn wake(&self);
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Sink {
    channel: Arc<Channel>,
}

impl Sink {
    /// Whether the reader has room for another token, or does not read single tokens.
    pub(super) fn has_room(&self) -> bool {
        !self.channel.streams || self.channel.lock().tokens.len() < self.channel.capacity
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.channel.lock().cancelled
    }

    pub(super) fn send(&self, token: StreamToken) {
        if self.channel.streams {
            let mut state = self.channel.lock();
            if !state.closed {
                state.tokens.push_back(token);
                self.notify(state);
            }
        }
    }

    pub(super) fn finish(&self, result: Result<Generation>) {
        let mut state = self.channel.lock();
        if !state.ended {
            state.ended = true;
            state.result = Some(result.map(Arc::new));
            self.notify(state);
        }
    }

    fn notify(&self, mut state: MutexGuard<'_, State>) {
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.channel.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // An engine that went away must not leave a reader waiting.
        self.finish(Err(crate::Error::internal("generation", "the engine ended before the request did")));
    }
}

/// What a reader finds.
#[derive(Debug)]
pub enum Event {
    /// The next token.
    Token(StreamToken),
    /// Nothing yet.
    Pending,
    /// No more tokens: the request has ended.
    End,
}

/// The tokens of one request, in order; an iterator, and pollable.
#[derive(Debug)]
pub struct TokenStream {
    channel: Arc<Channel>,
}

/// Makes both ends.
pub(super) fn channel(capacity: Option<usize>, engine: Arc<dyn Wake>) -> (Sink, TokenStream) {
    let channel = Arc::new(Channel {
        state: Mutex::default(),
        changed: Condvar::new(),
        capacity: capacity.unwrap_or(1),
        streams: capacity.is_some(),
        engine,
    });
    (Sink { channel: Arc::clone(&channel) }, TokenStream { channel })
}

impl TokenStream {
    /// Waits for the next token or the end, at most `timeout`.
    ///
    /// # Errors
    /// What the engine reports for this request; once.
    pub fn next_timeout(&self, timeout: Duration) -> Result<Event> {
        let deadline = Instant::now() + timeout;
        let mut state = self.channel.lock();
        loop {
            match self.take(&mut state)? {
                Event::Pending => {}
                event => return Ok(event),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Event::Pending);
            }
            state = self.channel.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next token if it is there; otherwise `cx` is woken when something changes.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Option<StreamToken>>> {
        let mut state = self.channel.lock();
        match self.take(&mut state) {
            Ok(Event::Token(token)) => Poll::Ready(Ok(Some(token))),
            Ok(Event::End) => Poll::Ready(Ok(None)),
            Err(error) => Poll::Ready(Err(error)),
            Ok(Event::Pending) => {
                state.wakers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn take(&self, state: &mut State) -> Result<Event> {
        if let Some(token) = state.tokens.pop_front() {
            // Only a reader that held the engine up needs to tell it.
            if state.tokens.len() + 1 == self.channel.capacity {
                self.channel.engine.wake();
            }
            state.read += 1;
            state.read_text.push_str(&token.text);
            return Ok(Event::Token(token));
        }
        if !state.ended {
            return Ok(Event::Pending);
        }
        match state.result.take_if(|result| result.is_err()) {
            Some(Err(error)) => Err(error),
            _ => Ok(Event::End),
        }
    }

    /// Ends the request within one token. Tokens that were already generated can still be read.
    pub fn cancel(&self) {
        let mut state = self.channel.lock();
        if !state.ended && !state.cancelled {
            state.cancelled = true;
            drop(state);
            self.channel.engine.wake();
        }
    }

    /// Ends the request within one token. Nothing more can be read, and the result is what was read.
    pub fn close(&self) {
        let mut state = self.channel.lock();
        state.closed = true;
        state.tokens.clear();
        drop(state);
        self.cancel();
    }

    /// The whole result, once the request has ended well; of a closed stream, that of the tokens which were read.
    pub fn result(&self) -> Option<Arc<Generation>> {
        let state = self.channel.lock();
        match &state.result {
            Some(Ok(whole)) if state.closed && self.channel.streams && state.read < whole.token_ids.len() => {
                Some(Arc::new(whole.up_to(state.read, &state.read_text)))
            }
            Some(Ok(generation)) => Some(Arc::clone(generation)),
            _ => None,
        }
    }

    /// Waits for the end and returns the whole result.
    ///
    /// # Errors
    /// What the engine reports for this request.
    pub fn wait(self) -> Result<Arc<Generation>> {
        loop {
            if let Event::End = self.next_timeout(Duration::from_secs(3600))? {
                return self
                    .result()
                    .ok_or_else(|| crate::Error::internal("generation", "the result was taken before"));
            }
        }
    }
}

impl Iterator for TokenStream {
    type Item = Result<StreamToken>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_timeout(Duration::from_secs(3600)) {
                Ok(Event::Token(token)) => return Some(Ok(token)),
                Ok(Event::End) => return None,
                Ok(Event::Pending) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.cancel();
    }
}
