//! JSON files beside a model, read within bounds and written atomically.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::AtomicFile;
use crate::{Error, Result};

/// The largest JSON file that is read: big tokenizers reach some tens of megabytes.
pub const MAX_JSON_BYTES: u64 = 256 << 20;

/// Reads a JSON file of at most [`MAX_JSON_BYTES`]; malformed content is [`Error::InvalidConfig`] with line and column.
pub fn read_json(path: impl AsRef<Path>) -> Result<Value> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let shown = path.display().to_string();
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::config(shown, "", format!("the file is larger than {MAX_JSON_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|e| Error::config(shown, "", format!("not valid JSON: {e}")))
}

/// Writes indented JSON with a final newline, atomically.
pub fn write_json(path: impl AsRef<Path>, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::internal("writing JSON", e))?;
    text.push(b'\n');
    let mut file = AtomicFile::create(path)?;
    file.write(&text)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_round_trips_and_keeps_its_order() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("config.json");
        let value = json!({"z": 1, "a": [1.5, null, "é"]});
        write_json(&path, &value).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.find("\"z\"") < text.find("\"a\"") && text.ends_with("}\n"));
        assert_eq!(read_json(&path).unwrap(), value);
    }

    #[test]
    fn malformed_json_names_file_and_place() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("config.json");
        for text in ["", "{", "{\"a\": 1,}", &"[".repeat(100_000)] {
            fs::write(&path, text).unwrap();
            let message = read_json(&path).unwrap_err().to_string();
            assert!(message.contains("config.json") && message.contains("line"), "{message}");
        }
        assert!(matches!(read_json(room.path().join("absent.json")), Err(Error::Io { .. })));
    }
}
