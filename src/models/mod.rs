//! One file per family, the list of architectures, and the loaded [`Model`] handle.

mod backbone;
mod bert;
mod classifier;
mod decoder;
mod distilbert;
mod encoder;
mod fields;
mod llama;
mod load;
mod merge;
mod mistral;
mod model;
mod modernbert;
mod modules;
mod mpnet;
mod nomic_bert;
mod projection;
mod prompts;
mod quantize;
mod qwen2;
mod qwen3;
mod roberta;
mod save;
mod save_gguf;
mod text_encoder;
mod token_types;
mod torch_activation;
mod word_list;

pub use backbone::Backbone;
pub use classifier::ClassifierConfig;
pub use fields::Fields;
pub use load::{BUNDLED, Checkpoint, LoadOptions};
pub use model::Model;
pub use modules::{ListedModule, listed_modules};
pub use projection::{Dense, Projection};
pub use prompts::{KnownPrompts, known_prompts};
pub use text_encoder::TextEncoder;
pub use torch_activation::TorchActivation;

use crate::nn::{DecoderConfig, EncoderConfig};
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

/// How one encoder architecture is read.
#[derive(Debug)]
pub struct EncoderArchitecture {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The path of the backbone in checkpoints that also hold a head.
    pub prefix: &'static str,
    /// Reads the configuration, refusing what would change results.
    pub config: fn(&Fields) -> Result<EncoderConfig>,
    /// Reads the configuration of the sequence-classification head, where the family has one.
    pub classifier: Option<fn(&Fields) -> Result<ClassifierConfig>>,
}

/// Every encoder architecture, the one list.
pub const ENCODERS: &[EncoderArchitecture] = &[
    EncoderArchitecture {
        model_type: "bert",
        prefix: "bert",
        config: bert::config,
        classifier: Some(bert::classifier),
    },
    EncoderArchitecture {
        model_type: "distilbert",
        prefix: "distilbert",
        config: distilbert::config,
        classifier: Some(distilbert::classifier),
    },
    EncoderArchitecture {
        model_type: "modernbert",
        prefix: "model",
        config: modernbert::config,
        classifier: Some(modernbert::classifier),
    },
    EncoderArchitecture {
        model_type: "mpnet",
        prefix: "mpnet",
        config: mpnet::config,
        classifier: Some(mpnet::classifier),
    },
    EncoderArchitecture {
        model_type: "nomic_bert",
        prefix: "bert",
        config: nomic_bert::config,
        classifier: None,
    },
    EncoderArchitecture {
        model_type: "roberta",
        prefix: "roberta",
        config: roberta::config,
        classifier: Some(roberta::classifier),
    },
    EncoderArchitecture {
        model_type: "xlm-roberta",
        prefix: "roberta",
        config: roberta::config,
        classifier: Some(roberta::classifier),
    },
];

/// The architecture of `model_type`.
pub fn architecture(model_type: &str) -> Result<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.model_type == model_type).ok_or_else(|| {
        let mut names: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.model_type).collect();
        if ENCODERS.iter().any(|encoder| encoder.model_type == model_type) {
            names.push("and as an Embedder or Reranker this one");
        }
        Error::UnsupportedModel { model_type: model_type.to_owned(), supported: names.join(", ") }
    })
}

/// Everything that can embed texts, for error messages.
fn supported() -> String {
    let encoders = ENCODERS.iter().map(|architecture| architecture.model_type);
    let decoders = ARCHITECTURES.iter().map(|architecture| architecture.model_type);
    encoders.chain(decoders).collect::<Vec<_>>().join(", ")
}
