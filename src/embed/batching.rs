//! From many inputs to passes through the model: longest first, ragged batches by token budget, tokenising ahead.
//!
//! It knows neither pooling nor heads: whoever calls gets the hidden states of one batch after the other.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use candle_core::{DType, Device, Tensor};

use crate::batch::Batch;
use crate::models::TextEncoder;
use crate::nn::{AdapterPlan, AdapterSet, Pass};
use crate::tokenizer::EncodedText;
use crate::{Error, Result};

/// Tokens of one pass, unless a single input has more. More gain nothing, and activations grow with them.
const BATCH_TOKENS: usize = 2048;

/// Bytes and inputs that are tokenised at a time, so that memory is bounded whatever comes in.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNK_INPUTS: usize = 1024;

/// What to do with inputs that are longer than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// Cut them and log how many.
    #[default]
    Warn,
    /// Refuse them.
    Error,
    /// Cut them.
    Silent,
}

impl Truncation {
    /// The choice called `name`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            "silent" => Ok(Self::Silent),
            _ => {
                let allowed = "\"warn\", \"error\" or \"silent\"";
                Err(Error::argument("truncation", format!("{name:?}"), allowed))
            }
        }
    }
}

/// Somebody who looks on: may give the work up, and hears how many inputs are done.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Asked before each matrix product.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Called after each batch with the number of its inputs.
    pub progress: &'a (dyn Fn(usize) + Sync),
}

impl Watch<'_> {
    /// Nobody.
    pub const NONE: Watch<'static> = Watch { cancelled: &|| false, progress: &|_| () };
}

/// How inputs are packed and run.
pub(super) struct Runner<'a> {
    pub(super) encoder: &'a TextEncoder,
    pub(super) max_length: usize,
    pub(super) max_inputs: Option<usize>,
    pub(super) truncation: Truncation,
    pub(super) adapter: Option<&'a Arc<AdapterSet>>,
    pub(super) watch: Watch<'a>,
}

/// One pass that has been made: which inputs, and their final hidden states `[tokens, hidden]`.
pub(super) struct Passed<'a, 'b> {
    pub(super) inputs: &'a [usize],
    pub(super) hidden: Tensor,
    pub(super) pass: &'a Pass<'b>,
}

impl Runner<'_> {
    /// Runs inputs of the given sizes in bytes; `tokenize` is asked for some of them at a time, `take` gets the results.
    pub(super) fn run(
        &self,
        bytes: &[usize],
        tokenize: impl Fn(&[usize]) -> Result<Vec<EncodedText>> + Sync,
        mut take: impl FnMut(Passed) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..bytes.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(bytes[*index]));
        let chunks = chunks(&order, bytes);
        let mut cut = Cut::default();
        if let [chunk] = chunks.as_slice() {
            self.chunk(chunk, tokenize(chunk)?, &mut cut, &mut take)?;
        } else {
            std::thread::scope(|scope| -> Result<()> {
                let (sender, receiver) = sync_channel(1);
                let (chunks, tokenize) = (&chunks, &tokenize);
                scope.spawn(move || {
                    for chunk in chunks {
                        // The model has given up where nobody receives.
                        if sender.send(tokenize(chunk)).is_err() {
                            return;
                        }
                    }
                });
                for chunk in chunks {
                    let Ok(encoded) = receiver.recv() else {
                        return Err(Error::internal("tokenizing", "its thread ended early"));
                    };
                    self.chunk(chunk, encoded?, &mut cut, &mut take)?;
                }
                Ok(())
            })?;
        }
        if cut.inputs > 0 && self.truncation == Truncation::Warn {
            log::warn!(
                "{} of {} inputs were longer than {} tokens and lost {} tokens",
                cut.inputs,
                bytes.len(),
                self.max_length,
                cut.tokens
            );
        }
        Ok(())
    }

    fn chunk(
        &self,
        inputs: &[usize],
        encoded: Vec<EncodedText>,
        cut: &mut Cut,
        take: &mut impl FnMut(Passed) -> Result<()>,
    ) -> Result<()> {
        for text in encoded.iter().filter(|text| text.truncated > 0) {
            if self.truncation == Truncation::Error {
                let tokens = text.ids.len() + text.truncated;
                return Err(Error::ContextOverflow { tokens, limit: self.max_length });
            }
            cut.inputs += 1;
            cut.tokens += text.truncated;
        }
        let mut work: Vec<(usize, EncodedText)> = inputs.iter().copied().zip(encoded).collect();
        work.sort_by_key(|(_, text)| std::cmp::Reverse(text.ids.len()));
        let mut rest = work.as_slice();
        while !rest.is_empty() {
            let count = fitting(rest, self.max_inputs.unwrap_or(usize::MAX));
            self.encoder.interruptible(self.watch.cancelled, || self.pass(&rest[..count], take))?;
            rest = &rest[count..];
        }
        Ok(())
    }

    fn pass(&self, work: &[(usize, EncodedText)], take: &mut impl FnMut(Passed) -> Result<()>) -> Result<()> {
        let mut batch = Batch::new();
        for (_, text) in work {
            self.encoder.check_ids(&text.ids)?;
            if self.encoder.has_token_types() && text.type_ids.iter().any(|id| *id != 0) {
                batch.push_typed(&text.ids, &text.type_ids);
            } else {
                batch.push(&text.ids, 0);
            }
        }
        let inputs: Vec<usize> = work.iter().map(|(input, _)| *input).collect();
        let plan =
            self.adapter.map(|set| AdapterPlan::all(Arc::clone(set), batch.tokens())).unwrap_or_default();
        let execution = self.encoder.exclusive()?;
        let mut pass = Pass::new(&batch).with_adapters(plan).with_cancellation(self.watch.cancelled);
        let hidden = if batch.is_empty() {
            Tensor::zeros((0, self.encoder.hidden_size()), DType::F32, &Device::Cpu)?
        } else {
            self.encoder.forward(&mut pass)?
        };
        take(Passed { inputs: &inputs, hidden, pass: &pass })?;
        drop(execution);
        (self.watch.progress)(inputs.len());
        Ok(())
    }
}

/// What truncation took.
#[derive(Default)]
struct Cut {
    inputs: usize,
    tokens: usize,
}

/// How many of the first inputs make one pass.
fn fitting(work: &[(usize, EncodedText)], max_inputs: usize) -> usize {
    let mut tokens = 0;
    let fits = |(_, text): &&(usize, EncodedText)| {
        tokens += text.ids.len();
        tokens <= BATCH_TOKENS
    };
    work.iter().take(max_inputs).take_while(fits).count().max(1)
}

/// Inputs in order, cut where a chunk is full.
fn chunks(order: &[usize], bytes: &[usize]) -> Vec<Vec<usize>> {
    let mut chunks: Vec<Vec<usize>> = Vec::new();
    let mut filled = usize::MAX;
    for &input in order {
        let size = bytes[input];
        match chunks.last_mut() {
            Some(last) if last.len() < CHUNK_INPUTS && filled.saturating_add(size) <= CHUNK_BYTES => {
                last.push(input);
                filled += size;
            }
            _ => {
                chunks.push(vec![input]);
                filled = size;
            }
        }
    }
    chunks
}
