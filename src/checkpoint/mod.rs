//! Files on disk or on the hub, read as named tensors; knows no architecture.
//!
//! Every reader here treats its file as hostile: lengths and counts are checked against the file's size before
//! anything is allocated or sliced. Python pickles (`pytorch_model.bin`) are never read, because reading one means
//! running the program inside it.

mod atomic;
mod json;
mod safetensors;

pub use atomic::AtomicFile;
pub use json::{MAX_JSON_BYTES, read_json, write_json};
pub use safetensors::{SafetensorsSource, write_safetensors};
