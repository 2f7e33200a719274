//! Parts of a transformer, composed by the family files in `models`; knows no model name.
//!
//! Activations are `[tokens, hidden]` everywhere. Only attention looks at the borders between sequences.

mod adapter;
mod attention;
mod decoder;
mod embedding;
mod encoder;
mod kv_cache;
mod linear;
mod mlp;
mod norm;
mod pass;
mod relative_bias;
mod rope;

pub use adapter::{Adapter, AdapterPlan, AdapterSet};
pub use attention::{Attention, AttentionConfig};
pub use decoder::{Decoder, DecoderConfig, Part};
pub use embedding::Embedding;
pub use encoder::{Encoder, EncoderConfig, EncoderNames, FeedForwardNames, Positions, Projections};
pub use kv_cache::{KvCache, KvLayout};
pub use linear::Linear;
pub use mlp::GatedMlp;
pub use norm::{LayerNorm, RmsNorm};
pub use pass::{Pass, interruptible};
pub use rope::{Rope, RopeConfig, RopeScaling, RopeTables};
