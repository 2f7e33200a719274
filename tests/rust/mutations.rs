//! Valid files with a few bytes changed: an error or a result, in bounded time and memory, and never a panic.
//!
//! Always the same changes, so that a failure can be repeated: its message names the number of the change.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use candlewick::adapter::AdapterFile;
use candlewick::checkpoint::SafetensorsSource;
use candlewick::checkpoint::gguf::GgufSource;
use candlewick::tokenizer::Tokenizer;
use candlewick::weight::TensorSource;
use candlewick::{LoadOptions, Model};

use crate::allocations::peak;
use crate::fixtures::golden;

/// Changes of each file.
const ROUNDS: u64 = 300;
/// What one reading may hold beyond a multiple of the file's size, and how long it may take on a busy machine.
const BYTES: usize = 8 << 20;
const TIME: Duration = Duration::from_secs(10);

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, choices: &[&'a [u8]]) -> &'a [u8] {
        choices[self.below(choices.len())]
    }
}

/// Sizes, offsets and counts that are absurd, in little endian.
fn absurd(dice: &mut Dice, length: usize) -> [u8; 8] {
    let length = length as u64;
    let numbers =
        [0, 1, length, length * 2, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64, u64::MAX - 7, u64::MAX];
    numbers[dice.below(numbers.len())].to_le_bytes()
}

/// `original` with one to three changes, most of them near its start, where headers are.
fn changed(original: &[u8], round: u64) -> Vec<u8> {
    let mut dice = Dice((round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = original.to_vec();
    for _ in 0..=dice.below(3) {
        let reach = if dice.below(3) > 0 { bytes.len().min(2048) } else { bytes.len() };
        let at = dice.below(reach);
        let text: [&[u8]; 12] = [
            b"-1",
            b"1e999",
            b"99999999999999999999",
            b"null",
            b"[]",
            b"{}",
            b"\"\"",
            b"true",
            b"0",
            b"\\ud83d",
            b"4294967296",
            b"../../x",
        ];
        match dice.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.drain(at..(at + 1 + dice.below(16)).min(bytes.len())).for_each(drop),
            2 => {
                let number = absurd(&mut dice, original.len());
                let width = [1, 4, 8][dice.below(3)];
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            3 => {
                let fragment = dice.pick(&text);
                bytes.splice(at..at, fragment.iter().copied());
            }
            4 => {
                // In place of a number, where there is one nearby.
                let is_digit = u8::is_ascii_digit;
                let Some(start) = bytes[at.min(bytes.len())..].iter().position(is_digit) else {
                    continue;
                };
                let start = at + start;
                let end = bytes[start..].iter().position(|b| !is_digit(b)).map_or(bytes.len(), |n| start + n);
                bytes.splice(start..end, dice.pick(&text).iter().copied());
            }
            5 => {
                let (from, length) = (dice.below(bytes.len()), 1 + dice.below(64));
                let part = bytes[from..(from + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Reads `file`, which `read` finds, in all its changed forms; how many of them could be read.
fn survives(file: &Path, read: impl Fn() -> bool) -> u64 {
    let original = fs::read(file).unwrap();
    let mut sound = 0;
    for round in 0..ROUNDS {
        // Replaced, as a mapped file must not change.
        fs::remove_file(file).unwrap();
        fs::write(file, changed(&original, round)).unwrap();
        let begun = Instant::now();
        let (result, bytes) = peak(|| catch_unwind(AssertUnwindSafe(&read)));
        let what = format!("{}, change {round}", file.display());
        let result = result.unwrap_or_else(|_| panic!("{what}: it panicked"));
        assert!(begun.elapsed() < TIME, "{what}: it took {:?}", begun.elapsed());
        assert!(
            bytes < BYTES + 40 * original.len(),
            "{what}: {bytes} bytes for a file of {}",
            original.len()
        );
        sound += u64::from(result);
    }
    sound
}

/// A directory of copies of the files in `from`.
fn copies(from: &Path) -> tempfile::TempDir {
    let room = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            fs::copy(entry.path(), room.path().join(entry.file_name())).unwrap();
        }
    }
    room
}

fn reads_all(source: &dyn TensorSource) -> bool {
    source.names().iter().all(|name| source.bytes(name).is_ok())
}

fn computes(path: &Path) -> bool {
    let options = LoadOptions { device: "cpu".into(), ..LoadOptions::default() };
    Model::load(path.to_str().unwrap(), &options)
        .and_then(|model| model.logits(&[[1, 2, 3]], None))
        .is_ok_and(|logits| logits.len() == 1)
}

#[test]
fn safetensors() {
    let room = copies(&golden().join("qwen2/tied"));
    let file = room.path().join("model.safetensors");
    let sound = survives(&file, || SafetensorsSource::open(&file).is_ok_and(|source| reads_all(&source)));
    assert!((1..ROUNDS).contains(&sound), "{sound} sound files say nothing");
}

#[test]
fn gguf() {
    for name in ["q4_0.gguf", "vocab-scores.gguf", "vocab-llama-bpe.gguf"] {
        let room = tempfile::tempdir().unwrap();
        let file = room.path().join(name);
        fs::copy(golden().join("gguf").join(name), &file).unwrap();
        let read = || {
            let Ok(source) = GgufSource::open(&file) else { return false };
            // Each is tried, whatever the others say.
            [source.config().is_ok(), source.tokenizer().is_ok(), reads_all(&source)].iter().all(|&ok| ok)
        };
        survives(&file, read);
    }
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("q8_0.gguf");
    fs::copy(golden().join("gguf/q8_0.gguf"), &file).unwrap();
    let sound = survives(&file, || computes(&file));
    assert!((1..ROUNDS).contains(&sound), "{sound} sound files say nothing");
}

#[test]
fn configurations() {
    for name in ["config.json", "generation_config.json"] {
        let room = copies(&golden().join("llama/llama3"));
        let file = room.path().join(name);
        if !file.is_file() {
            fs::write(&file, br#"{"eos_token_id": [2, 3], "temperature": 0.7, "top_p": 0.9, "top_k": 20}"#)
                .unwrap();
        }
        let sound = survives(&file, || computes(room.path()));
        assert!((1..ROUNDS).contains(&sound), "{name}: {sound} sound files say nothing");
    }
}

#[test]
fn tokenizers() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/candlewick/tiny");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let room = copies(&tiny);
        fs::remove_file(room.path().join("model.safetensors")).unwrap();
        let read = || {
            let Ok(tokenizer) = Tokenizer::from_dir(room.path()) else { return false };
            tokenizer.decode(&[1, 2, 3, 250], true).is_ok()
        };
        let sound = survives(&room.path().join(name), read);
        assert!((1..ROUNDS).contains(&sound), "{name}: {sound} sound files say nothing");
    }
}

#[test]
fn adapters() {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let room = copies(&golden().join("adapters/qwen2-patterns"));
        let sound = survives(&room.path().join(name), || AdapterFile::read(room.path()).is_ok());
        assert!((1..ROUNDS).contains(&sound), "{name}: {sound} sound files say nothing");
    }
}
