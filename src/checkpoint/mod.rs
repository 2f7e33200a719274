//! Files on disk or on the hub, read as named tensors; knows no architecture.
//!
//! Every reader here treats its file as hostile: lengths and counts are checked against the file's size before
//! anything is allocated or sliced. Python pickles (`pytorch_model.bin`) are never read, because reading one means
//! running the program inside it.

mod atomic;
pub mod gguf;
pub mod hub;
mod json;
mod safetensors;

pub use atomic::AtomicFile;
pub use gguf::{GgufSource, write_gguf};
pub use hub::{Hub, HubEnv, HubOptions, Progress, Wanted, resolve};
pub use json::{MAX_JSON_BYTES, read_json, write_json};
pub use safetensors::{SafetensorsSource, write_safetensors};

/// Prefix and number of parts of a split GGUF's name, `prefix-00001-of-00003.gguf`.
pub(crate) fn split_parts(name: &str) -> Option<(&str, usize)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (prefix, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| (digits.len() == 5).then(|| digits.parse::<usize>().ok())?;
    let (part, total) = (number(part)?, number(total)?);
    (1..=total).contains(&part).then_some((prefix, total))
}
