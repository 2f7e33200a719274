//! GGUF files that are incomplete, inconsistent or damaged.

use std::fs;
use std::path::Path;

use candlewick::checkpoint::gguf::GgufSource;
use candlewick::weight::TensorSource;

use crate::allocations::peak;
use crate::gguf::{Copy, golden, open};

#[test]
fn split_files_must_be_whole() {
    let room = tempfile::tempdir().unwrap();
    let part = |n: usize| format!("split-{n:05}-of-00003.gguf");
    for n in [1, 2] {
        fs::copy(golden("gguf").join(part(n)), room.path().join(part(n))).unwrap();
    }
    let error = GgufSource::open(room.path().join(part(1))).unwrap_err().to_string();
    assert!(error.contains("1 of 3 parts are missing") && error.contains(&part(3)), "{error}");
    fs::copy(golden("gguf").join(part(2)), room.path().join(part(3))).unwrap();
    let error = GgufSource::open(room.path().join(part(1))).unwrap_err().to_string();
    assert!(error.contains("split.no is 1, expected 2"), "{error}");
    let alone = room.path().join("alone.gguf");
    fs::copy(golden("gguf").join(part(1)), &alone).unwrap();
    let error = GgufSource::open(&alone).unwrap_err().to_string();
    assert!(error.contains("split.count is 3, but 1 parts were found"), "{error}");
}

/// A file with one key and one tensor, written field by field.
#[derive(Clone)]
struct Raw {
    magic: &'static [u8],
    version: u32,
    tensors: u64,
    keys: u64,
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
    data: usize,
}

impl Raw {
    fn good() -> Self {
        Self {
            magic: b"GGUF",
            version: 3,
            tensors: 1,
            keys: 1,
            dimensions: vec![4, 2],
            kind: 0,
            offset: 0,
            data: 32,
        }
    }

    fn error(&self) -> String {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        let string = |text: &str| [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat();
        file.extend(string("general.architecture"));
        file.extend(8u32.to_le_bytes());
        file.extend(string("llama"));
        file.extend(string("token_embd.weight"));
        file.extend((self.dimensions.len() as u32).to_le_bytes());
        self.dimensions.iter().for_each(|d| file.extend(d.to_le_bytes()));
        file.extend(self.kind.to_le_bytes());
        file.extend(self.offset.to_le_bytes());
        file.resize(file.len().next_multiple_of(32) + self.data, 0);
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("x.gguf");
        fs::write(&path, file).unwrap();
        GgufSource::open(&path).err().map_or(String::new(), |e| e.to_string())
    }
}

#[test]
fn malformed_files_are_refused_with_their_reason() {
    let good = Raw::good();
    assert_eq!(good.error(), "");
    let cases = [
        (Raw { magic: b"GGML", ..good.clone() }, "does not begin with GGUF"),
        (Raw { version: 1, ..good.clone() }, "version 1"),
        (Raw { version: 4, ..good.clone() }, "version 4"),
        (Raw { version: 3u32.swap_bytes(), ..good.clone() }, "big-endian"),
        (Raw { tensors: u64::MAX, ..good.clone() }, "tensors are announced"),
        (Raw { tensors: 2, ..good.clone() }, "malformed tensor name"),
        (Raw { keys: u64::MAX / 2, ..good.clone() }, "metadata keys are announced"),
        (Raw { keys: 2, ..good.clone() }, "bytes are needed"),
        (Raw { dimensions: vec![1; 5], ..good.clone() }, "5 dimensions"),
        (Raw { dimensions: vec![4, 0], ..good.clone() }, "empty dimension"),
        (Raw { dimensions: vec![4, 3], ..good.clone() }, "lie outside"),
        (Raw { dimensions: vec![1 << 62, 8], ..good.clone() }, "too large"),
        (Raw { dimensions: vec![4, u64::MAX], ..good.clone() }, "too large"),
        (Raw { kind: 16, ..good.clone() }, "IQ2_XXS, which is not supported"),
        (Raw { kind: 4, ..good.clone() }, "unknown type 4"),
        (Raw { kind: 8, ..good.clone() }, "rows of 4 values are no multiple of Q8_0's block of 32"),
        (Raw { offset: 16, ..good.clone() }, "no multiple of the alignment"),
        (Raw { offset: 64, ..good.clone() }, "lie outside"),
        (Raw { offset: u64::MAX - 31, ..good.clone() }, "too large"),
        (Raw { data: 31, ..good.clone() }, "lie outside"),
    ];
    for (raw, expected) in cases {
        let message = raw.error();
        assert!(message.contains(expected) && message.contains("x.gguf"), "{expected}: {message}");
    }
}

#[test]
fn overlaps_and_alignments_are_checked() {
    let yarn = Copy::of(&open("yarn"));
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("x.gguf");
    yarn.write(&path).unwrap();
    let file = fs::read(&path).unwrap();
    let name = b"blk.0.attn_norm.weight";
    let at = file.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8 + 4;
    let mut bad = file.clone();
    bad[at..at + 8].copy_from_slice(&0u64.to_le_bytes());
    fs::write(&path, bad).unwrap();
    let message = GgufSource::open(&path).unwrap_err().to_string();
    assert!(message.contains("overlaps"), "{message}");
    for (alignment, fits) in [(8, true), (32, true), (7, false), (0, false), (1 << 21, false)] {
        let key = b"qwen2.embedding_length";
        let at = file.windows(key.len()).position(|w| w == key).unwrap();
        let mut renamed = file.clone();
        // Same length as the key it replaces would be needed, so the key is spliced and the length rewritten.
        renamed.splice(at..at + key.len(), *b"general.alignment");
        renamed[at - 8..at].copy_from_slice(&17u64.to_le_bytes());
        renamed[at + 17 + 4..at + 17 + 8].copy_from_slice(&(alignment as u32).to_le_bytes());
        fs::write(&path, renamed).unwrap();
        let message = GgufSource::open(&path).err().map_or(String::new(), |e| e.to_string());
        assert_eq!(!message.contains("general.alignment"), fits, "{alignment}: {message}");
    }
}

/// A small generator with a fixed seed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

/// Reads everything there is to read; the results do not matter.
fn exercise(path: &Path) -> bool {
    let Ok(source) = GgufSource::open(path) else { return false };
    let _ = (source.config(), source.generation_config(), source.tokenizer());
    for name in source.names() {
        let info = source.info(&name).unwrap();
        let blocks = info.shape.iter().product::<usize>() / info.format.block_elements();
        assert_eq!(source.bytes(&name).unwrap().len(), blocks * info.format.block_bytes());
    }
    true
}

#[test]
fn mutated_files_never_panic_and_hold_little() {
    let mut random = Random(11);
    let (mut accepted, mut refused) = (0, 0);
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("x.gguf");
    for name in ["yarn", "bias", "vocab-llama-bpe", "vocab-scores"] {
        let good = fs::read(golden(&format!("gguf/{name}.gguf"))).unwrap();
        for _ in 0..150 {
            let mut bad = good.clone();
            for _ in 0..=random.below(3) {
                // Most of a model file is weights, which cannot be wrong.
                let at = random.below(bad.len().min(12_000));
                match random.below(6) {
                    0 => bad.truncate(at),
                    1 if at < bad.len() => bad[at] ^= 1 << random.below(8),
                    2 if at < bad.len() => bad[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                    3 => drop(bad.splice(at..(at + 8).min(bad.len()), u64::MAX.to_le_bytes())),
                    4 => drop(
                        bad.splice(at..(at + 8).min(bad.len()), (1u64 << random.below(40)).to_le_bytes()),
                    ),
                    _ => bad.insert(at, random.below(256) as u8),
                }
            }
            fs::write(&path, &bad).unwrap();
            let (_, bytes) = peak(|| GgufSource::open(&path).is_ok());
            assert!(bytes < good.len() + (16 << 10), "{bytes} bytes held to open a file of {}", bad.len());
            let (whole, bytes) = peak(|| exercise(&path));
            if whole {
                accepted += 1
            } else {
                refused += 1
            }
            // A vocabulary takes several tables; nothing may grow with a number that the file merely claims.
            assert!(bytes < 40 * good.len() + (1 << 20), "{bytes} bytes held for a file of {}", bad.len());
        }
    }
    assert!(accepted > 50 && refused > 100, "{accepted} accepted, {refused} refused");
}
