//! Reading and writing safetensors, compared with the `safetensors` crate, and with malformed files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candlewick::Error;
use candlewick::checkpoint::{SafetensorsSource, write_safetensors};
use candlewick::weight::{Format, TensorInfo, TensorSource};
use safetensors::tensor::{Dtype, TensorView};

use crate::allocations::peak;

fn reference_file(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.clone(), b).unwrap()));
    let metadata = Some(HashMap::from([("format".to_string(), "pt".to_string())]));
    fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

fn three(path: &Path) {
    let bytes = |n: usize| (0..n).map(|i| i as u8).collect::<Vec<_>>();
    reference_file(
        path,
        &[
            ("a.weight", Dtype::F32, vec![2, 3], bytes(24)),
            ("b.weight", Dtype::BF16, vec![5], bytes(10)),
            ("empty", Dtype::F16, vec![0, 4], vec![]),
            ("scalar", Dtype::I64, vec![], bytes(8)),
        ],
    );
}

/// A file with a header of our choice.
fn raw(path: &Path, header: &str, data: usize) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(vec![0; data]);
    fs::write(path, file).unwrap();
}

fn message(result: candlewick::Result<SafetensorsSource>) -> String {
    match result {
        Ok(_) => panic!("the file was accepted"),
        Err(Error::InvalidCheckpoint { path, problems }) => {
            format!("{}: {}", path.display(), problems.join("; "))
        }
        Err(other) => other.to_string(),
    }
}

fn error_of(header: &str, data: usize) -> String {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("model.safetensors");
    raw(&path, header, data);
    message(SafetensorsSource::open(&path))
}

#[test]
fn reads_what_the_reference_wrote() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("model.safetensors");
    three(&path);
    for opened in [room.path(), &path] {
        let source = SafetensorsSource::open(opened).unwrap();
        let mut names = source.names();
        names.sort();
        assert_eq!(names, ["a.weight", "b.weight", "empty", "scalar"]);
        assert_eq!(source.info("a.weight"), Some(TensorInfo { format: Format::F32, shape: vec![2, 3] }));
        assert_eq!(source.info("b.weight").unwrap().format, Format::BF16);
        assert_eq!(source.bytes("b.weight").unwrap().as_ref(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(source.bytes("a.weight").unwrap().len(), 24);
        assert!(source.bytes("empty").unwrap().is_empty());
        assert!(source.info("absent").is_none() && source.bytes("absent").is_err());
        assert_eq!(source.metadata()["format"], "pt");
        assert_eq!(source.path(), opened);
    }
}

#[test]
fn the_reference_reads_what_we_wrote_byte_for_byte() {
    let room = tempfile::tempdir().unwrap();
    let (theirs, ours) = (room.path().join("theirs.safetensors"), room.path().join("ours.safetensors"));
    three(&theirs);
    let source = SafetensorsSource::open(&theirs).unwrap();
    let tensors: Vec<_> = source.names().into_iter().map(|n| (n.clone(), source.info(&n).unwrap())).collect();
    write_safetensors(&ours, source.metadata(), &tensors, |name| source.bytes(name)).unwrap();
    let (a, b) = (fs::read(&theirs).unwrap(), fs::read(&ours).unwrap());
    let (theirs, ours) = (
        safetensors::SafeTensors::deserialize(&a).unwrap(),
        safetensors::SafeTensors::deserialize(&b).unwrap(),
    );
    assert_eq!(theirs.len(), ours.len());
    for (name, view) in theirs.iter() {
        assert_eq!(view, ours.tensor(name).unwrap(), "{name}");
    }
    let header = |file: &[u8]| u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(header(&b) % 8, 0);
    assert_eq!(a[8 + header(&a)..], b[8 + header(&b)..], "the order of the data differs");
}

#[test]
fn a_writer_that_fails_leaves_no_file() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("model.safetensors");
    let info = TensorInfo { format: Format::F32, shape: vec![2] };
    let none = BTreeMap::new();
    let one = [("a".to_string(), info.clone())];
    let wrong = write_safetensors(&path, &none, &one, |_| Ok(Cow::Owned(vec![0; 7])));
    assert!(wrong.unwrap_err().to_string().contains("expected 8 bytes"));
    let twice = [one[0].clone(), one[0].clone()];
    assert!(write_safetensors(&path, &none, &twice, |_| Ok(Cow::Owned(vec![0; 8]))).is_err());
    let block = [("q".to_string(), TensorInfo { format: Format::Q8_0, shape: vec![32] })];
    assert!(write_safetensors(&path, &none, &block, |_| Ok(Cow::Owned(vec![0; 34]))).is_err());
    let huge = [("h".to_string(), TensorInfo { format: Format::F32, shape: vec![usize::MAX, 3] })];
    assert!(write_safetensors(&path, &none, &huge, |_| Ok(Cow::Owned(vec![]))).is_err());
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
}

#[test]
fn malformed_headers_are_refused_with_their_reason() {
    let cases = [
        ("", 0, "header:"),
        ("{", 0, "header:"),
        ("[]", 0, "object of tensors"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4, "lie outside"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "do not hold shape"),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "do not hold shape"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#, 8, "header:"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, "belong to no tensor"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "leaves a gap"),
        (r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#, 2, "F8_E4M3 is not supported"),
        (r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0, "do not hold"),
        (r#"{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1, "at most 8"),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
            6,
            "overlaps",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
            2,
            "occurs twice",
        ),
    ];
    for (header, data, expected) in cases {
        let message = error_of(header, data);
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{header}: {message}");
    }
}

#[test]
fn absurd_header_lengths_are_refused_at_once() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("model.safetensors");
    for length in [3, 1 << 20, 200_000_000, u64::MAX] {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(b"{}");
        fs::write(&path, file).unwrap();
        let (opened, bytes) = peak(|| SafetensorsSource::open(&path));
        assert!(message(opened).contains("the header claims"));
        assert!(bytes < 16 << 10, "{bytes} bytes held for a header of {length}");
    }
    for file in [&b""[..], b"1234567"] {
        fs::write(&path, file).unwrap();
        assert!(message(SafetensorsSource::open(&path)).contains("at least 8"));
    }
}

fn sharded(room: &Path, index: &str) -> candlewick::Result<SafetensorsSource> {
    fs::write(room.join("model.safetensors.index.json"), index).unwrap();
    SafetensorsSource::open(room)
}

#[test]
fn shards_are_one_checkpoint() {
    let room = tempfile::tempdir().unwrap();
    let byte = |b: u8| vec![b; 4];
    reference_file(&room.path().join("one.safetensors"), &[("a", Dtype::U8, vec![4], byte(1))]);
    reference_file(&room.path().join("two.safetensors"), &[("b", Dtype::U8, vec![2, 2], byte(2))]);
    let index = r#"{"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#;
    let source = sharded(room.path(), index).unwrap();
    assert_eq!(source.bytes("a").unwrap().as_ref(), byte(1));
    assert_eq!(source.bytes("b").unwrap().as_ref(), byte(2));
    let by_index = SafetensorsSource::open(room.path().join("model.safetensors.index.json")).unwrap();
    assert_eq!(by_index.names().len(), 2);
}

#[test]
fn broken_indexes_are_refused_with_all_problems() {
    let room = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new_in(room.path()).unwrap();
    three(outside.path());
    let home = room.path().join("model");
    fs::create_dir(&home).unwrap();
    reference_file(&home.join("one.safetensors"), &[("a", Dtype::U8, vec![1], vec![1])]);
    reference_file(
        &home.join("two.safetensors"),
        &[("a", Dtype::U8, vec![1], vec![1]), ("b", Dtype::U8, vec![1], vec![1])],
    );
    let absolute = format!(r#"{{"weight_map":{{"a":"{}"}}}}"#, outside.path().display());
    let relative =
        format!(r#"{{"weight_map":{{"a":"../{}"}}}}"#, outside.path().file_name().unwrap().display());
    let cases = [
        ("{}", vec!["weight_map", "missing"]),
        (r#"{"weight_map":{"a":1}}"#, vec!["weight_map.a", "file name"]),
        (&absolute, vec!["outside of the checkpoint"]),
        (&relative, vec!["outside of the checkpoint"]),
        (r#"{"weight_map":{"a":"C:\\x"}}"#, vec!["outside of the checkpoint"]),
        (
            r#"{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}"#,
            vec!["x.safetensors is missing", "y.safe"],
        ),
        (r#"{"weight_map":{"a":"one.safetensors","c":"one.safetensors"}}"#, vec!["tensor c is not in"]),
        (r#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors"}}"#, vec!["a is stored twice"]),
        (r#"{"weight_map":{"b":"one.safetensors","a":"two.safetensors"}}"#, vec!["b is in", "stored twice"]),
    ];
    for (index, expected) in cases {
        let message = message(sharded(&home, index));
        for part in expected {
            assert!(message.contains(part), "{index}: {message}");
        }
    }
}

#[test]
fn a_directory_without_safetensors_says_what_to_do() {
    let room = tempfile::tempdir().unwrap();
    assert!(message(SafetensorsSource::open(room.path())).contains("is this the directory of a model?"));
    fs::write(room.path().join("pytorch_model.bin"), b"x").unwrap();
    let hint = message(SafetensorsSource::open(room.path()));
    assert!(hint.contains("pytorch_model.bin") && hint.contains("safe_serialization=True"), "{hint}");
    assert!(matches!(SafetensorsSource::open(room.path().join("absent")), Err(Error::Io { .. })));
}

/// A small generator with a fixed seed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

#[test]
fn mutated_files_never_panic_and_never_lie() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("model.safetensors");
    three(&path);
    let good = fs::read(&path).unwrap();
    let mut random = Random(7);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..1000 {
        let mut bad = good.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bad.len().min(400));
            match random.below(4) {
                0 => bad.truncate(at),
                1 => bad.insert(at, b"0123456789{}[]\",:-e"[random.below(19)]),
                2 if at < bad.len() => bad[at] ^= 1 << random.below(8),
                _ if at < bad.len() => bad[at] = b"0123456789\xff\x00"[random.below(12)],
                _ => {}
            }
        }
        fs::write(&path, &bad).unwrap();
        match SafetensorsSource::open(&path) {
            Err(_) => refused += 1,
            Ok(source) => {
                accepted += 1;
                for name in source.names() {
                    let info = source.info(&name).unwrap();
                    let expected = info.shape.iter().product::<usize>() * info.format.block_bytes();
                    assert_eq!(source.bytes(&name).unwrap().len(), expected);
                }
            }
        }
    }
    assert!(accepted > 10 && refused > 300, "{accepted} accepted, {refused} refused");
}
