//! One error type for the whole crate, grouped by what the caller can do about it.
//!
//! It deliberately has no catch-all string variant: whoever creates an error decides which remedy
//! it belongs to. The Python classes and this enum are tied together by one exhaustive `match` in
//! `python/errors.rs`. Messages read: what failed, where, what was found, what to do.

use std::path::{Path, PathBuf};

/// Everything that can go wrong in candlewick.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A model or adapter was found neither on disk nor on the hub.
    #[error("model {name:?} was not found: {reason}")]
    ModelNotFound {
        /// The path or hub id as given.
        name: String,
        /// Where it was looked for, and what would help.
        reason: String,
    },
    /// The checkpoint is of an architecture that candlewick does not have.
    #[error("model type {model_type:?} is not supported; supported: {supported}")]
    UnsupportedModel {
        /// `model_type` of `config.json`, or a GGUF's `general.architecture`.
        model_type: String,
        /// The supported names, comma separated.
        supported: String,
    },
    /// A configuration file lacks a field or holds a value that cannot be honoured.
    #[error("{file}: field {field:?}: {reason}")]
    InvalidConfig {
        /// The file, as the user knows it.
        file: String,
        /// The field, dotted for nested ones.
        field: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// The tensors of a checkpoint are missing, malformed, or of the wrong shape.
    #[error("{}: {}", path.display(), list(problems))]
    InvalidCheckpoint {
        /// The file or directory.
        path: PathBuf,
        /// Every problem of this kind, not only the first.
        problems: Vec<String>,
    },
    /// An adapter cannot be applied as its files say.
    #[error("adapter {}: {} [{code}]", path.display(), list(problems))]
    InvalidAdapter {
        /// The file, directory or registry name.
        path: PathBuf,
        /// Every problem found.
        problems: Vec<String>,
        /// A stable identifier for programs, such as `"shape_mismatch"`.
        code: &'static str,
    },
    /// An argument has a value outside of what is allowed.
    #[error("{name}: got {value}, expected {allowed}")]
    InvalidArgument {
        /// The argument's name as the caller wrote it.
        name: String,
        /// The value given.
        value: String,
        /// What would be accepted.
        allowed: String,
    },
    /// A row of training or input data cannot be used.
    #[error("{}", data_message(origin, *line, reason))]
    InvalidData {
        /// The file or dataset.
        origin: String,
        /// The line or row, counted from 1.
        line: Option<usize>,
        /// What is wrong with it.
        reason: String,
    },
    /// A prompt is longer than the model or the request allows.
    #[error("{tokens} tokens do not fit into a context of {limit}; shorten the input")]
    ContextOverflow {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The device does not exist or cannot be opened here.
    #[error("device {device:?} is not available: {reason}")]
    DeviceUnavailable {
        /// The device as asked for.
        device: String,
        /// Why not, and what would help.
        reason: String,
    },
    /// The work would need more memory than there is or than was allowed.
    #[error("{what} needs {needed_bytes} bytes, but {limit_bytes} bytes are allowed")]
    OutOfMemory {
        /// What the memory is for.
        what: String,
        /// Bytes needed in all.
        needed_bytes: u64,
        /// Bytes allowed in all.
        limit_bytes: u64,
    },
    /// Training produced a loss or gradient that is not finite.
    #[error("training diverged at step {step}: loss {loss}; lower the learning rate or clip gradients")]
    Diverged {
        /// The optimizer step, counted from 1.
        step: usize,
        /// The loss seen.
        loss: f64,
    },
    /// A fault of candlewick or of a library below it.
    #[error("{context}: {source}")]
    Internal {
        /// What was being done.
        context: String,
        /// The fault itself.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The result type of candlewick's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn list(problems: &[String]) -> String {
    problems.join("; ")
}

fn data_message(origin: &str, line: Option<usize>, reason: &str) -> String {
    match line {
        Some(line) => format!("{origin}, line {line}: {reason}"),
        None => format!("{origin}: {reason}"),
    }
}

impl Error {
    /// An operating-system error at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A refused argument.
    pub fn argument(name: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::InvalidArgument { name: name.into(), value: value.to_string(), allowed: allowed.into() }
    }

    /// A configuration field that cannot be honoured.
    pub fn config(file: impl Into<String>, field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::InvalidConfig { file: file.into(), field: field.into(), reason: reason.into() }
    }

    /// A checkpoint with one problem.
    pub fn checkpoint(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::InvalidCheckpoint { path: path.as_ref().to_path_buf(), problems: vec![problem.into()] }
    }

    /// An adapter with one problem.
    pub fn adapter(path: impl AsRef<Path>, code: &'static str, problem: impl Into<String>) -> Self {
        Self::InvalidAdapter { path: path.as_ref().to_path_buf(), problems: vec![problem.into()], code }
    }

    /// A fault that the caller cannot mend.
    pub fn internal(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Internal { context: context.into(), source: source.into() }
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::internal("tensor operation failed", source)
    }
}
