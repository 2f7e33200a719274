//! Writing safetensors files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::header::{DTYPES, MAX_HEADER_BYTES};
use crate::checkpoint::AtomicFile;
use crate::weight::{Format, TensorInfo};
use crate::{Error, Result};

/// Writes `tensors` to `path` atomically; `bytes` is asked for one tensor after the other, so that a large model need
/// not be in memory twice.
///
/// The order in the file is that of the reference implementation: widest elements first, then by name. `metadata`
/// becomes `__metadata__`; transformers expects `format = "pt"` there. Block formats have no name in safetensors and are
/// [`Error::InvalidArgument`], as is a tensor whose bytes do not fit its shape.
pub fn write_safetensors<'a>(
    path: impl AsRef<Path>,
    metadata: &BTreeMap<String, String>,
    tensors: &[(String, TensorInfo)],
    mut bytes: impl FnMut(&str) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let path = path.as_ref();
    let mut order: Vec<&(String, TensorInfo)> = tensors.iter().collect();
    order
        .sort_by(|(a, x), (b, y)| y.format.block_bytes().cmp(&x.format.block_bytes()).then_with(|| a.cmp(b)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_string(), json!(metadata));
    }
    let mut offset = 0usize;
    let mut lengths = Vec::with_capacity(order.len());
    for (name, info) in &order {
        let length = byte_length(name, info)?;
        let Some(end) = offset.checked_add(length) else { return Err(too_large(name, info)) };
        let entry = json!({"dtype": dtype_of(name, info.format)?, "shape": info.shape, "data_offsets": [offset, end]});
        if name == "__metadata__" || header.insert(name.clone(), entry).is_some() {
            return Err(Error::argument("tensors", name, "names that differ, none of them __metadata__"));
        }
        lengths.push(length);
        offset = end;
    }
    let mut header =
        serde_json::to_vec(&Value::Object(header)).map_err(|e| Error::internal("writing a header", e))?;
    // Data starts at a multiple of 8 so that readers may use it in place.
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() > MAX_HEADER_BYTES {
        return Err(Error::argument("tensors", tensors.len(), "fewer tensors, or shorter names"));
    }
    let mut file = AtomicFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for ((name, info), length) in order.into_iter().zip(lengths) {
        let data = bytes(name)?;
        if data.len() != length {
            let allowed = format!("{length} bytes for shape {:?}", info.shape);
            return Err(Error::argument(name, format!("{} bytes", data.len()), allowed));
        }
        file.write(&data)?;
    }
    file.commit()
}

fn dtype_of(name: &str, format: Format) -> Result<&'static str> {
    let known = DTYPES.iter().find(|(_, f)| *f == format).map(|(dtype, _)| *dtype);
    known.ok_or_else(|| {
        Error::argument(name, format!("{format:?}"), "a plain number format; save as GGUF instead")
    })
}

fn byte_length(name: &str, info: &TensorInfo) -> Result<usize> {
    let length = info.shape.iter().try_fold(info.format.block_bytes(), |n, &d| n.checked_mul(d));
    length.ok_or_else(|| too_large(name, info))
}

fn too_large(name: &str, info: &TensorInfo) -> Error {
    Error::argument(name, format!("{:?}", info.shape), "a shape whose bytes can be counted")
}
