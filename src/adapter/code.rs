//! The stable codes of [`Error::InvalidAdapter`](crate::Error::InvalidAdapter), for programs that react to them.
//!
//! They never change their spelling or meaning; further ones may be added.

/// The weights file holds no tensors, or no bytes at all.
pub const EMPTY: &str = "empty";
/// There is no `adapter_config.json`.
pub const MISSING_CONFIG: &str = "missing_config";
/// `adapter_config.json` is malformed or contradicts itself.
pub const INVALID_CONFIG: &str = "invalid_config";
/// There is no `adapter_model.safetensors` (or `adapters.safetensors`).
pub const MISSING_WEIGHTS: &str = "missing_weights";
/// The weights file is damaged or holds something else than floating-point numbers.
pub const INVALID_WEIGHTS: &str = "invalid_weights";
/// No module of the model is one that the adapter names as its target.
pub const UNKNOWN_TARGET: &str = "unknown_target";
/// A tensor belongs to no module of the model that the configuration adapts.
pub const UNKNOWN_KEY: &str = "unknown_key";
/// One of the two factors of a module is there without the other.
pub const MISSING_PAIR: &str = "missing_pair";
/// A module that the configuration adapts has no tensors in the file.
pub const MISSING_TENSOR: &str = "missing_tensor";
/// A tensor's shape fits neither the model nor the configured rank.
pub const SHAPE_MISMATCH: &str = "shape_mismatch";
/// A tensor holds NaN or infinity.
pub const NOT_FINITE: &str = "not_finite";
/// The adapter was made for a base model whose weights were changed.
pub const BASE_CHANGED: &str = "base_changed";
/// It is another kind of adapter than candlewick has, or one that cannot be used in this way.
pub const UNSUPPORTED_KIND: &str = "unsupported_kind";
/// The configuration asks for a variant of LoRA that candlewick does not compute.
pub const UNSUPPORTED_OPTION: &str = "unsupported_option";
/// The registry holds as many adapters as it may.
pub const TOO_MANY: &str = "too_many";

/// All codes, for tests and documentation.
pub const ALL: &[&str] = &[
    EMPTY,
    MISSING_CONFIG,
    INVALID_CONFIG,
    MISSING_WEIGHTS,
    INVALID_WEIGHTS,
    UNKNOWN_TARGET,
    UNKNOWN_KEY,
    MISSING_PAIR,
    MISSING_TENSOR,
    SHAPE_MISMATCH,
    NOT_FINITE,
    BASE_CHANGED,
    UNSUPPORTED_KIND,
    UNSUPPORTED_OPTION,
    TOO_MANY,
];
