//! Texts to vectors and pairs to scores, over any backbone of `models`; results equal sentence-transformers'.
//!
//! Nothing is padded: texts are sorted by length and packed into ragged batches, so what shares a batch cannot change a
//! vector. Reference: the sentence-transformers library and the layout of its repositories.

mod batching;
mod embedder;
mod gather;
mod modules;
mod pooling;
mod precision;
mod prompts;
mod rerank;
mod similarity;

pub use batching::{Truncation, Watch};
pub use embedder::{Embedder, EmbedderOptions, EncodeOptions, TokenVectors, Vectors};
pub use gather::Pending;
pub use pooling::{Pooling, PoolingMode};
pub use precision::{Precision, Quantized, quantize, quantize_with};
pub use prompts::Role;
pub use rerank::{PredictOptions, Ranked, Reranker, RerankerOptions, Scores};
pub use similarity::{Similarity, similarity};
