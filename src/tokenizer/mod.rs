//! Text to token ids and back, incremental decoding, and chat templates; knows no model.
//!
//! The vocabulary work is the `tokenizers` crate's. This room adds what the other files of a model
//! say ([`TokenizerConfig`]), decoding one id at a time ([`DecodeStream`]) and chat templates
//! ([`ChatOptions`]). It never pads: batches are ragged.
//!
//! Reference: transformers' `TokenizersBackend` and `apply_chat_template`.

mod chat_options;
mod chat_template;
mod config;
mod decode_stream;
mod decoder;
mod encode;
mod spans;
mod template_engine;
mod template_methods;
mod template_value;
mod text_stage;
mod token_stage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{AddedToken, NormalizerWrapper};

pub use chat_options::{ChatOptions, RenderedChat};
pub use config::TokenizerConfig;
pub use decode_stream::DecodeStream;
pub use encode::{EncodedText, MaskedText};

use crate::error::{Error, Result};
use decoder::Pipeline;

/// A vocabulary with its rules, special tokens and chat templates; clones share everything.
///
/// ```no_run
/// # fn main() -> candlewick::Result<()> {
/// let tokenizer = candlewick::tokenizer::Tokenizer::from_dir("model".as_ref())?;
/// let ids = tokenizer.encode("Hello", true)?;
/// let text = tokenizer.decode(&ids, true)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    eos_token_ids: Arc<[u32]>,
}

#[derive(Debug)]
struct Shared {
    inner: tokenizers::Tokenizer,
    config: TokenizerConfig,
    pipeline: Pipeline,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the files beside it.
    ///
    /// # Errors
    /// `InvalidConfig` if a file is missing or malformed, `Io` if one cannot be read.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        let config = TokenizerConfig::from_dir(dir)?;
        Self::from_parts(parse(&bytes, &path.display().to_string())?, config)
    }

    /// Joins a vocabulary from elsewhere (a GGUF file, a test) with its configuration.
    ///
    /// Padding and truncation that the vocabulary asks for are turned off; special tokens that it
    /// lacks are added.
    pub fn from_parts(mut tokenizer: tokenizers::Tokenizer, config: TokenizerConfig) -> Result<Self> {
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| Error::internal("turning the tokenizer's truncation off failed", error))?;
        add_missing_tokens(&mut tokenizer, &config)?;
        try_out(&tokenizer)?;
        let is_bpe = matches!(tokenizer.get_model(), tokenizers::ModelWrapper::BPE(_));
        // As transformers: the clean-up would damage the text of a BPE vocabulary.
        let pipeline = Pipeline::new(tokenizer.get_decoder(), config.clean_up_spaces && !is_bpe)?;
        let eos = config.named_tokens.get("eos_token").and_then(|token| tokenizer.token_to_id(token));
        Ok(Self {
            eos_token_ids: eos.into_iter().collect(),
            shared: Arc::new(Shared { inner: tokenizer, config, pipeline }),
        })
    }

    /// Replaces the ids that end a generation, by default the `eos_token`; models list theirs in
    /// `generation_config.json`.
    #[must_use]
    pub fn with_eos_token_ids(mut self, ids: Vec<u32>) -> Self {
        self.eos_token_ids = ids.into();
        self
    }

    /// The text of `ids`. An id that the vocabulary lacks has none: models may give more ids than their tokenizers know.
    ///
    /// # Errors
    /// What the tokenizer's decoder reports.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let mut stream = self.decode_stream(skip_special_tokens);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.step(id)?);
        }
        text.push_str(&stream.flush()?);
        Ok(text)
    }

    /// A decoder that takes one id at a time.
    pub fn decode_stream(&self, skip_special_tokens: bool) -> DecodeStream {
        DecodeStream::new(self.clone(), skip_special_tokens)
    }

    /// The id of a token, which is spelled as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// The vocabulary's spelling of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included; a model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.shared.inner.get_vocab_size(true)
    }

    /// The ids that end a generation.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// The id of the token that begins a text.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.named_token_id("bos_token")
    }

    /// The id of the token that fills batches elsewhere; candlewick does not pad.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.named_token_id("pad_token")
    }

    /// The id of the token for what the vocabulary cannot spell.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.named_token_id("unk_token")
    }

    /// The id of a special token by its configured name, such as `"sep_token"`.
    pub fn named_token_id(&self, name: &str) -> Option<u32> {
        self.token_to_id(self.config().named_tokens.get(name)?)
    }

    /// The longest input in tokens that the configuration allows.
    pub fn model_max_length(&self) -> Option<usize> {
        self.config().model_max_length
    }

    /// What the configuration files say.
    pub fn config(&self) -> &TokenizerConfig {
        &self.shared.config
    }

    /// The vocabulary itself.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.shared.inner
    }

    /// Whether an id is one of the special tokens, such as those around a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.id_to_token(id).is_some_and(|token| self.is_special_token(&token))
    }

    /// The same tokenizer, which makes letters small before anything else.
    ///
    /// # Errors
    /// [`Error::Internal`] where the vocabulary does not take the change.
    pub fn lowercased(&self) -> Result<Self> {
        let mut inner = self.inner().clone();
        let mut steps = vec![NormalizerWrapper::from(Lowercase)];
        steps.extend(inner.get_normalizer().cloned());
        inner
            .with_normalizer(Some(Sequence::new(steps)))
            .map_err(|error| Error::internal("changing the tokenizer's normalizer failed", error))?;
        Ok(Self::from_parts(inner, self.config().clone())?.with_eos_token_ids(self.eos_token_ids.to_vec()))
    }

    fn is_special_token(&self, token: &str) -> bool {
        self.shared.inner.get_added_vocabulary().is_special_token(token)
    }

    fn pipeline(&self) -> &Pipeline {
        &self.shared.pipeline
    }
}

/// Parses `tokenizer.json`; the crate panics on some malformed files, so syntax is checked before.
fn parse(bytes: &[u8], file: &str) -> Result<tokenizers::Tokenizer> {
    let invalid = |reason: String| Error::config(file, "", format!("is not a valid tokenizer: {reason}"));
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|error| invalid(error.to_string()))?;
    check_prefix(bytes).map_err(invalid)?;
    match catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(bytes))) {
        Ok(tokenizer) => tokenizer.map_err(|error| invalid(error.to_string())),
        Err(_) => Err(invalid("it contradicts itself".into())),
    }
}

/// Refuses merges whose right part lacks the prefix that the crate takes off without looking, even from within a
/// character, which ends the process when its text is shown.
fn check_prefix(bytes: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct File<Model> {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Prefix {
        continuing_subword_prefix: Option<String>,
    }
    #[derive(Deserialize)]
    struct Merges {
        #[serde(default)]
        merges: Vec<Merge>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Pair((), String),
        Joined(String),
    }
    // What has another form is the crate's to refuse.
    let Ok(File { model: Prefix { continuing_subword_prefix: Some(prefix) } }) =
        serde_json::from_slice(bytes)
    else {
        return Ok(());
    };
    let Ok(File { model: Merges { merges } }) = serde_json::from_slice(bytes) else { return Ok(()) };
    let right = |merge: &Merge| match merge {
        Merge::Pair(_, right) => right.clone(),
        Merge::Joined(both) => both.split_once(' ').unwrap_or_default().1.to_owned(),
    };
    match merges.iter().map(right).find(|right| !right.starts_with(&prefix)) {
        Some(right) => Err(format!("a merge has {right:?} on its right, which lacks the prefix {prefix:?}")),
        None => Ok(()),
    }
}

/// Encodes nothing, alone and as a pair: a post-processor may name tokens that it does not define, which the
/// crate notices, with a panic, when it is used.
fn try_out(tokenizer: &tokenizers::Tokenizer) -> Result<()> {
    let probe = || -> tokenizers::Result<()> {
        tokenizer.encode_fast("", true)?;
        tokenizer.encode_fast(("", ""), true)?;
        Ok(())
    };
    let reason = match catch_unwind(AssertUnwindSafe(probe)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the rules for special tokens contradict themselves".to_string(),
    };
    Err(Error::config("tokenizer.json", "post_processor", format!("cannot be applied: {reason}")))
}

/// Adds the configured tokens that the vocabulary lacks or describes differently.
fn add_missing_tokens(tokenizer: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<()> {
    let mut tokens: Vec<AddedToken> = config.added_tokens.values().cloned().collect();
    let known = tokenizer.get_added_tokens_decoder();
    let special = config.named_tokens.iter().filter(|(name, _)| name.ends_with("_token"));
    for token in special.map(|(_, token)| token).chain(&config.extra_special_tokens) {
        let is_known = known.values().any(|known| known.content == *token)
            || tokens.iter().any(|known| known.content == *token);
        if !is_known {
            tokens.push(AddedToken::from(token.clone(), true));
        }
    }
    tokenizer
        .add_tokens(tokens)
        .map(|_| ())
        .map_err(|error| Error::config("tokenizer_config.json", "added_tokens_decoder", error.to_string()))
}
