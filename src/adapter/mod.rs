//! What plugs into the layers of a model: LoRA and its relatives, their files, and the registry of those loaded.
//!
//! Adapters never change a model. They are passed in with the work, so several can be used at once, in one batch even,
//! and changing from one to the other costs nothing. How they are trained is the business of the room `train`.

mod bind;
mod clock;
pub mod code;
mod combine;
mod config;
mod dora;
mod embedding;
mod file;
mod layout;
mod loaded;
mod lora;
mod mlx;
mod parts;
mod random;
mod registry;
mod site;
mod target;
mod trainable;
mod whole;

use std::sync::Arc;

pub use clock::Clock;
pub use config::{BiasMode, Initialisation, LoraConfig, Modules};
pub use file::AdapterFile;
pub use loaded::{KeptActive, Lease, Loaded};
pub use random::Random;
pub use registry::{ActiveGuard, AdapterChoice, AdapterInfo, AdapterRegistry, bound, resolve};
pub use site::{Site, SiteKind, Sites};
pub use trainable::{Parameter, TrainableAdapter};

use crate::Result;
use crate::nn::Adapter;

/// Builds one kind from the tensors of a site, if they are its own.
type Build = fn(&parts::Parts) -> Result<Option<Arc<dyn Adapter>>>;

/// One way in which the function of a site can be changed.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// Builds it, if the site has its tensors.
    build: Build,
}

/// Every kind, the one list; the first that recognises its tensors is taken.
pub const ADAPTERS: &[Kind] = &[
    Kind { name: "dora", build: dora::build },
    Kind { name: "lora", build: lora::build },
    Kind { name: "embedding", build: embedding::build },
    Kind { name: "whole", build: whole::build },
    Kind { name: "bias", build: whole::build_bias },
];
