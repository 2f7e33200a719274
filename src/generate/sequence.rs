//! One request under way: its tokens, its cache, its sampler, its text.

use std::time::{Duration, Instant};

use super::request::Request;
use super::sampler::{Sampled, Sampler};
use super::stream::{FinishReason, Generation, Sink, StopReason, StreamToken};
use super::text::Text;
use crate::Result;
use crate::models::Model;
use crate::nn::KvCache;

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Request,
    pub(super) sink: Sink,
    /// Prompt and output.
    pub(super) tokens: Vec<u32>,
    /// Tokens that lie in the cache.
    pub(super) fed: usize,
    pub(super) cache: KvCache,
    sampler: Sampler,
    text: Text,
    logprobs: Vec<(f32, Vec<(u32, f32)>)>,
    cached_tokens: usize,
    context_length: usize,
    arrived: Instant,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// A sequence whose first `cached` tokens already lie in `cache`.
    pub(super) fn new(
        model: &Model,
        request: Request,
        sink: Sink,
        arrived: Instant,
        cache: KvCache,
    ) -> Result<Self> {
        let cached_tokens = cache.len();
        Ok(Self {
            sampler: Sampler::new(request.sampling.clone(), &request.prompt, model.vocab_size())?,
            text: Text::new(model.tokenizer().ok(), &request.stop)?,
            tokens: request.prompt.clone(),
            fed: cached_tokens,
            cached_tokens,
            cache,
            request,
            sink,
            logprobs: Vec::new(),
            context_length: model.context_length(),
            arrived,
            started: Instant::now(),
            first_token: None,
            last_token: None,
        })
    }

    /// The content hash of the adapter.
    pub(super) fn adapter_key(&self) -> Option<u64> {
        self.request.adapter.as_ref().map(|set| set.generation())
    }

    /// Tokens of the prompt that are still to be computed; 0 while decoding.
    pub(super) fn prompt_left(&self) -> usize {
        self.request.prompt.len().saturating_sub(self.fed)
    }

    /// Whether it waits for its reader.
    pub(super) fn is_stalled(&self) -> bool {
        self.prompt_left() == 0 && !self.sink.has_room()
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Samples the next token from `logits` `[vocab]` and hands it on; the reason if it was the last.
    pub(super) fn advance(
        &mut self,
        logits: &mut [f32],
    ) -> Result<Option<(FinishReason, Option<StopReason>)>> {
        let Sampled { token, logit, logprob, probability, top_logprobs } = self.sampler.sample(logits)?;
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.tokens.push(token);
        let (mut text, mut end) = (String::new(), None);
        if self.request.stop.ends_at(token) {
            end = Some((FinishReason::Stop, Some(StopReason::Token(token))));
        } else {
            let (piece, stopped) = self.text.push(token);
            text = piece;
            if stopped.is_some() {
                end = Some((FinishReason::Stop, stopped));
            } else if self.generated() >= self.request.stop.max_new_tokens
                || self.tokens.len() >= self.context_length
            {
                end = Some((FinishReason::Length, None));
            }
        }
        if !matches!(end, None | Some((_, Some(StopReason::Text(_))))) {
            let (rest, stopped) = self.text.flush();
            text.push_str(&rest);
            if stopped.is_some() {
                end = Some((FinishReason::Stop, stopped));
            }
        }
        if self.request.sampling.logprobs > 0 {
            self.logprobs.push((logprob, top_logprobs.clone()));
        }
        self.sink.send(StreamToken {
            token_id: token,
            text,
            index: self.generated() - 1,
            logit,
            probability,
            logprob,
            top_logprobs,
            is_eos: self.request.stop.is_eos(token),
            finish_reason: end.as_ref().map(|(reason, _)| *reason),
        });
        Ok(end)
    }

    /// The result as it stands.
    pub(super) fn generation(
        &self,
        finish_reason: FinishReason,
        stop_reason: Option<StopReason>,
    ) -> Generation {
        let since =
            |from: Instant, to: Option<Instant>| to.map_or(Duration::ZERO, |to| to.duration_since(from));
        let first = self.first_token;
        Generation {
            text: self.text.whole().to_owned(),
            token_ids: self.tokens[self.request.prompt.len()..].to_vec(),
            finish_reason,
            stop_reason,
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached_tokens,
            time_to_first_token: since(self.arrived, first),
            prompt_time: since(self.started, first),
            generation_time: first.map_or(Duration::ZERO, |first| since(first, self.last_token)),
            logprobs: (self.request.sampling.logprobs > 0).then(|| self.logprobs.clone()),
            adapter: self.request.adapter.as_ref().map(|set| set.name().to_owned()),
        }
    }
}
