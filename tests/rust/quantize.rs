//! Quantised weights: the blocks of ggml, the values they stand for, products and gradients.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candlewick::checkpoint::gguf::{GgufEntry, ImportanceMatrix, write_gguf};
use candlewick::weight::{BlockFormat, FORMATS, Format, GgmlWeight, TensorInfo, Weight};
use candlewick::{Error, LoadOptions, Model};

use crate::gguf::golden;
use crate::gguf_model::{difference, expected, load, prompts};

fn fixture() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden("gguf/blocks.safetensors"), &Device::Cpu).unwrap()
}

/// Rows that quantisers stumble over.
fn hard() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden("gguf/encoded.safetensors"), &Device::Cpu).unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Every format of the fixture with its weight; only `q8_k`, which no file uses, has no reference.
fn weights() -> Vec<(&'static BlockFormat, GgmlWeight, Tensor)> {
    let fixture = fixture();
    let known = FORMATS.iter().filter(|format| format.format != Format::Q8K);
    let weights = known.map(|format| {
        let blocks = bytes(&fixture[&format!("{}.blocks", format.name)]);
        let weight = GgmlWeight::new(format.format, &blocks, 512).unwrap();
        (format, weight, fixture[&format!("{}.values", format.name)].clone())
    });
    weights.collect()
}

#[test]
fn blocks_stand_for_the_values_of_the_reference() {
    for (format, weight, expected) in weights() {
        assert_eq!((weight.shape(), weight.format()), ((3, 512), format.format));
        assert_eq!(values(&weight.dequantize(DType::F32).unwrap()), values(&expected), "{}", format.name);
        let rows = weight.rows(&[2, 0, 2], DType::F32).unwrap();
        let ids = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
        assert_eq!(values(&rows), values(&expected.index_select(&ids, 0).unwrap()), "{}", format.name);
        assert!(matches!(weight.rows(&[3], DType::F32), Err(Error::InvalidArgument { .. })));
        assert_eq!(*weight.stored().unwrap(), bytes(&fixture()[&format!("{}.blocks", format.name)]));
    }
}

#[test]
fn every_format_is_written_byte_for_byte_as_llama_cpp_writes_it() {
    let (fixture, hard) = (fixture(), hard());
    let (normal, hard_rows) = (&fixture["values"], &hard["values"]);
    let importance = values(&hard["importance"]);
    let written: Vec<_> = FORMATS.iter().filter(|format| format.can_be_written()).collect();
    assert_eq!(written.len(), 12);
    for format in written {
        let name = format.name;
        let encoded = |matrix: &Tensor, importance: Option<&[f32]>| {
            let weight = GgmlWeight::quantize("w", matrix, format, importance).unwrap();
            weight.stored().unwrap().into_owned()
        };
        assert!(encoded(normal, None) == bytes(&fixture[&format!("{name}.blocks")]), "{name}");
        // In the last row a half cannot hold any scale; MXFP4, which has none, then takes its smallest instead.
        let rows = hard_rows.dim(0).unwrap() - usize::from(format.format == Format::MXFP4);
        for (kind, importance) in [("plain", None), ("weighted", Some(importance.as_slice()))] {
            let expected = &hard[&format!("{name}.{kind}")];
            for row in 0..rows {
                let ours = encoded(&hard_rows.narrow(0, row, 1).unwrap(), importance);
                assert!(ours == bytes(&expected.get(row).unwrap()), "{name} {kind}: row {row}");
            }
        }
    }
}

#[test]
fn rows_of_half_precision_are_encoded_as_their_values() {
    let matrix = fixture()["values"].clone();
    for dtype in [DType::F16, DType::BF16] {
        let halves = matrix.to_dtype(dtype).unwrap();
        for name in ["q4_1", "q6_k"] {
            let format = FORMATS.iter().find(|format| format.name == name).unwrap();
            let encode = |matrix: &Tensor| GgmlWeight::quantize("w", matrix, format, None).unwrap();
            let (ours, expected) = (encode(&halves), encode(&halves.to_dtype(DType::F32).unwrap()));
            assert!(ours.stored().unwrap() == expected.stored().unwrap(), "{name} {dtype:?}");
            // A view into a larger matrix.
            let part = encode(&halves.narrow(0, 1, 2).unwrap());
            let expected = expected.stored().unwrap();
            assert!(part.stored().unwrap()[..] == expected[expected.len() / 3..], "{name} {dtype:?}");
        }
    }
}

#[test]
fn values_that_no_block_can_hold_are_named() {
    for format in FORMATS.iter().filter(|format| format.can_be_written()) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            let mut rows = values(&fixture()["values"]);
            rows[512 + 300] = bad;
            let matrix = Tensor::from_vec(rows, (3, 512), &Device::Cpu).unwrap();
            let result = GgmlWeight::quantize("model.layers.0.mlp.up_proj.weight", &matrix, format, None);
            if bad == 3e38 && format.format == Format::MXFP4 {
                assert!(
                    values(&result.unwrap().dequantize(DType::F32).unwrap()).iter().all(|x| x.is_finite())
                );
                continue;
            }
            let text = result.unwrap_err().to_string();
            assert!(text.contains("mlp.up_proj.weight") && text.contains(&format!("{bad}")), "{text}");
            assert!(text.contains("row 1, column 300"), "{}: {text}", format.name);
        }
    }
    let format = BlockFormat::of(Format::Q4K).unwrap();
    let matrix = &fixture()["values"];
    for importance in [vec![1.0; 511], vec![-1.0; 512], vec![f32::NAN; 512]] {
        let result = GgmlWeight::quantize("w", matrix, format, Some(&importance));
        assert!(matches!(result, Err(Error::InvalidArgument { .. })));
    }
}

#[test]
fn products_and_gradients_are_those_of_the_decoded_weight() {
    for (format, weight, decoded) in weights() {
        for tokens in [1, 2, 7] {
            let numbers = (0..tokens * 512).map(|i| ((i * 7919 + 13) % 101) as f32 / 101.0 - 0.5);
            let x = Tensor::from_iter(numbers, &Device::Cpu).unwrap().reshape((tokens, 512)).unwrap();
            let x = Var::from_tensor(&x).unwrap();
            let y = weight.matmul(&x).unwrap();
            let expected = x.matmul(&decoded.t().unwrap()).unwrap();
            let scale = values(&expected).into_iter().fold(0f32, |m, v| m.max(v.abs()));
            // Activations may be rounded to eight bits on the way.
            let worst = difference(&y.detach(), &expected.detach());
            assert!(
                worst <= 1e-2 * scale.max(0.1),
                "{} with {tokens} tokens: {worst} of {scale}",
                format.name
            );
            let slopes = Tensor::from_iter((0..tokens * 3).map(|i| i as f32 - 4.0), &Device::Cpu).unwrap();
            let slopes = slopes.reshape((tokens, 3)).unwrap();
            let gradient = |y: &Tensor| {
                let grads = (y * &slopes).unwrap().sum_all().unwrap().backward().unwrap();
                grads.get(&x).unwrap().detach()
            };
            let (ours, plain) = (gradient(&y), gradient(&expected));
            assert!(difference(&ours, &plain) <= 1e-5, "{} with {tokens} tokens", format.name);
        }
    }
}

#[test]
fn what_is_no_whole_row_is_refused() {
    for (format, bytes, inn) in [
        (Format::Q8_0, 34, 33),
        (Format::Q8_0, 35, 32),
        (Format::Q4K, 144, 128),
        (Format::F32, 128, 32),
        (Format::Q8_0, 0, 0),
    ] {
        assert!(matches!(GgmlWeight::new(format, &vec![0; bytes], inn), Err(Error::InvalidArgument { .. })));
    }
    let narrow = Tensor::zeros((2, 96), DType::F32, &Device::Cpu).unwrap();
    let format = BlockFormat::of(Format::Q4K).unwrap();
    assert!(matches!(GgmlWeight::quantize("w", &narrow, format, None), Err(Error::InvalidArgument { .. })));
}

fn quantized(path: &str, format: &str) -> candlewick::Result<Model> {
    let options = LoadOptions {
        device: crate::fixtures::device(),
        quantize: Some(format.into()),
        ..LoadOptions::default()
    };
    Model::load(golden(path).to_str().unwrap(), &options)
}

#[test]
fn loading_into_a_format_equals_converting_to_it() {
    // The largest change of a logit when torch computes with the values that the gguf package decodes.
    let cases = [
        ("qwen2/tied", "q4_0", 6.8026),
        ("qwen2/tied", "q5_1", 5.0500),
        ("qwen2/tied", "q8_0", 0.83291),
        ("llama/bias", "q8_0", 0.39795),
    ];
    for (name, format, reference) in cases {
        let (plain, expected) = (load(name, "auto"), expected(name));
        let prompts = prompts(&expected);
        let (loaded, converted) = (quantized(name, format).unwrap(), plain.quantize(format).unwrap());
        assert_eq!(loaded.size_in_bytes(), converted.size_in_bytes());
        assert!(loaded.size_in_bytes() < plain.size_in_bytes(), "{name} {format}");
        let (a, b) = (loaded.logits(&prompts, None).unwrap(), converted.logits(&prompts, None).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| difference(a, b) == 0.0), "{name} {format}");
        let changes = a.iter().enumerate().map(|(i, a)| difference(a, &expected[&format!("logits_{i}")]));
        let largest = changes.fold(0.0, f32::max);
        // Activations are rounded to eight bits as well, which shows most where weights have as many.
        assert!(
            (0.5..2.0).contains(&(largest / reference)),
            "{name} {format}: {largest}, expected {reference}"
        );
    }
}

#[test]
fn formats_have_names() {
    let model = load("qwen2/tied", "auto");
    for name in ["int4", "", "q9_0", "q8_k", "iq4_xs"] {
        let error = model.quantize(name).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidArgument { allowed, .. } if allowed.contains("q4_k_m")),
            "{error}"
        );
        assert!(quantized("qwen2/tied", name).is_err());
    }
    assert_eq!(model.quantize("Q8_0").unwrap().dtype_name(), "q8_0");
    // Still the same numbers of a shared table and head.
    assert_eq!(model.quantize("q8_0").unwrap().num_parameters(), model.num_parameters());
    assert!(matches!(
        Model::load(
            golden("qwen2/tied").to_str().unwrap(),
            &LoadOptions {
                memory_limit_bytes: Some(10),
                quantize: Some("q8_0".into()),
                ..LoadOptions::default()
            }
        ),
        Err(Error::OutOfMemory { .. })
    ));
}

/// An importance matrix in llama.cpp's older format: name, calls, sum of the calls' means for each column.
fn old_importance(entries: &[(&str, i32, Vec<f32>)]) -> Vec<u8> {
    let mut file = (entries.len() as u32).to_le_bytes().to_vec();
    for (name, calls, sums) in entries {
        file.extend((name.len() as u32).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(calls.to_le_bytes());
        file.extend((sums.len() as u32).to_le_bytes());
        file.extend(sums.iter().flat_map(|x| x.to_le_bytes()));
    }
    file.extend([9, 0, 0, 0]);
    file
}

/// The same in GGUF: sums of squares and how many were added up.
fn new_importance(path: &Path, entries: &[(&str, Vec<f32>, Vec<f32>)]) {
    let mut infos = Vec::new();
    let mut bytes = HashMap::new();
    for (name, sums, counts) in entries {
        for (suffix, values) in [("in_sum2", sums), ("counts", counts)] {
            let name = format!("{name}.{suffix}");
            infos.push((name.clone(), TensorInfo { format: Format::F32, shape: vec![1, values.len()] }));
            bytes.insert(name, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        }
    }
    let kind = ("general.type".to_string(), GgufEntry::String("imatrix".into()));
    write_gguf(path, &[kind], &infos, |name| Ok(Cow::Borrowed(bytes[name].as_slice()))).unwrap();
}

#[test]
fn importance_matrices_of_both_formats_are_read() {
    let room = tempfile::tempdir().unwrap();
    let (old, new) = (room.path().join("old.dat"), room.path().join("new.gguf"));
    let up = "model.layers.0.mlp.up_proj.weight";
    let entries = [
        ("blk.0.ffn_up.weight", 4, vec![4.0, 8.0, 0.0]),
        ("output.weight", 0, vec![0.5]),
        ("per_layer_thing", 1, vec![1.0]),
    ];
    std::fs::write(&old, old_importance(&entries)).unwrap();
    let read = ImportanceMatrix::open(&old).unwrap();
    assert_eq!(read.get(up).unwrap()[..], [1.0, 2.0, 0.0]);
    assert_eq!(read.get("lm_head.weight").unwrap()[..], [0.5]);
    assert!(read.get("model.layers.1.mlp.up_proj.weight").is_none());
    let experts = ("blk.2.ffn_up.weight", vec![1.0; 4], vec![1.0; 2]);
    let unseen = ("blk.1.ffn_up.weight", vec![0.0, 3.0], vec![0.0]);
    new_importance(&new, &[("blk.0.ffn_up.weight", vec![4.0, 8.0, 0.0], vec![4.0]), unseen, experts]);
    let read = ImportanceMatrix::open(&new).unwrap();
    assert_eq!(read.get(up).unwrap()[..], [1.0, 2.0, 0.0]);
    assert_eq!(read.get("model.layers.1.mlp.up_proj.weight").unwrap()[..], [1.0, 1.0]);
    assert!(read.get("model.layers.2.mlp.up_proj.weight").is_none());
    assert_eq!(read.path(), new);
}

#[test]
fn damaged_importance_matrices_are_refused() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("x.dat");
    let fault = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match ImportanceMatrix::open(&path) {
            Err(Error::InvalidCheckpoint { problems, .. }) => problems.join(" "),
            other => panic!("{other:?}"),
        }
    };
    let whole = old_importance(&[("blk.0.ffn_up.weight", 4, vec![4.0, 8.0])]);
    // The number at the end, which newer files have, may be missing.
    for length in 1..whole.len() - 4 {
        fault(&whole[..length]);
    }
    for at in [0, 4, 31] {
        for count in [0u32, u32::MAX, 1 << 30] {
            let mut changed = whole.clone();
            changed[at..at + 4].copy_from_slice(&count.to_le_bytes());
            fault(&changed);
        }
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let file = old_importance(&[("blk.0.ffn_up.weight", 4, vec![4.0, bad])]);
        assert!(fault(&file).contains("blk.0.ffn_up.weight"));
    }
    assert!(fault(&old_importance(&[("conv.weight", 4, vec![4.0])])).contains("no matrix"));
    let model = std::fs::read(golden("gguf/plain.gguf")).unwrap();
    assert!(fault(&model).contains("is it a model?"));
    assert!(matches!(ImportanceMatrix::open(room.path().join("nothing")), Err(Error::Io { .. })));
}

#[test]
fn a_model_is_quantised_by_what_matters_in_it() {
    let model = load("qwen2/tied", "auto");
    let table = golden("qwen2/tied/model.safetensors");
    let weights = candle_core::safetensors::load(table, &Device::Cpu).unwrap();
    let (path, part) = ("model.layers.1.mlp.up_proj", "blk.1.ffn_up.weight");
    let matrix = &weights[&format!("{path}.weight")];
    let columns = matrix.dims()[1];
    let importance: Vec<f32> = (0..columns).map(|i| ((i * 7 % 11) as f32).powi(2)).collect();
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("i.dat");
    std::fs::write(&file, old_importance(&[(part, 1, importance.clone())])).unwrap();
    let format = BlockFormat::of(Format::Q4_0).unwrap();
    let expected = GgmlWeight::quantize("w", matrix, format, Some(&importance)).unwrap();
    let plain = GgmlWeight::quantize("w", matrix, format, None).unwrap();
    assert!(expected.stored().unwrap() != plain.stored().unwrap());
    let options = LoadOptions {
        device: "cpu".into(),
        quantize: Some("q4_0".into()),
        importance: Some(file.clone()),
        ..LoadOptions::default()
    };
    let loaded = Model::load(golden("qwen2/tied").to_str().unwrap(), &options).unwrap();
    for quantised in [loaded, model.quantize_by("q4_0", Some(&file)).unwrap()] {
        let mut found = 0;
        quantised.decoder().linears(&mut |linear| {
            if linear.path() == path {
                assert!(linear.weight().stored().unwrap() == expected.stored().unwrap());
                found += 1;
            }
        });
        assert_eq!(found, 1);
    }
    std::fs::write(&file, old_importance(&[(part, 1, vec![1.0; columns + 1])])).unwrap();
    let text = model.quantize_by("q4_0", Some(&file)).unwrap_err().to_string();
    assert!(text.contains("mlp.up_proj") && text.contains(&format!("{columns} finite")), "{text}");
    let text = model.quantize("q2_k_s").unwrap_err().to_string();
    assert!(text.contains("importance"), "{text}");
    let alone = LoadOptions { quantize: None, ..options };
    assert!(matches!(
        Model::load(golden("qwen2/tied").to_str().unwrap(), &alone),
        Err(Error::InvalidArgument { .. })
    ));
}
