//! One file per family, the list of architectures, and the loaded [`Model`] handle.

mod decoder;
mod fields;
mod llama;
mod load;
mod merge;
mod mistral;
mod model;
mod quantize;
mod qwen2;
mod qwen3;
mod save;
mod save_gguf;

pub use fields::Fields;
pub use load::{BUNDLED, Checkpoint, LoadOptions};
pub use model::Model;

use crate::nn::DecoderConfig;
use crate::{Error, Result};

/// How one architecture's configuration is read.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Reads the configuration, refusing what would change results.
    pub config: fn(&Fields) -> Result<DecoderConfig>,
}

/// Every decoder architecture, the one list.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { model_type: "llama", config: llama::config },
    Architecture { model_type: "mistral", config: mistral::config },
    Architecture { model_type: "qwen2", config: qwen2::config },
    Architecture { model_type: "qwen3", config: qwen3::config },
];

/// The architecture of `model_type`.
pub fn architecture(model_type: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.model_type == model_type).ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.model_type).collect();
        Error::UnsupportedModel { model_type: model_type.to_owned(), supported: names.join(", ") }
    })
}
