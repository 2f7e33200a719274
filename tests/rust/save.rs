//! Saving: what is written loads again and computes the same.

use std::path::{Path, PathBuf};

use candlewick::checkpoint::gguf::GgufSource;
use candlewick::checkpoint::read_json;
use candlewick::{Error, LoadOptions, Model};

use crate::gguf::golden;
use crate::gguf_model::{difference, expected, load, prompts};

/// A place that outlives the test, so that what was written can be looked at with other programs.
fn room(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("save").join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn open(path: &Path) -> Model {
    let options = LoadOptions { device: "cpu".into(), ..LoadOptions::default() };
    Model::load(path.to_str().unwrap(), &options).unwrap()
}

/// The largest difference between the logits of two models.
fn apart(a: &Model, b: &Model, prompts: &[Vec<u32>]) -> f32 {
    let (a, b) = (a.logits(prompts, None).unwrap(), b.logits(prompts, None).unwrap());
    a.iter().zip(&b).map(|(a, b)| difference(a, b)).fold(0.0, f32::max)
}

fn tiny() -> Model {
    open(Path::new("candlewick/tiny"))
}

const TEXTS: [&str; 4] =
    ["", "Once upon a time, 123 cats'll sleep.", "<|im_start|>user\nnaïve  日本<|im_end|>", "  a\n\n b\t"];

#[test]
fn a_saved_directory_loads_and_computes_the_same() {
    for name in ["qwen2/tied", "qwen2/bf16", "qwen3/untied", "llama/bias", "mistral/window", "gguf/yarn.gguf"]
    {
        let model = load(name, "auto");
        let checkpoint = if name.ends_with(".gguf") { "qwen2/yarn" } else { name };
        let path = room(&format!("directory-{}", name.replace('/', "-")));
        model.save_pretrained(&path).unwrap();
        let again = open(&path);
        assert_eq!(apart(&model, &again, &prompts(&expected(checkpoint))), 0.0, "{name}");
        assert_eq!(
            (again.dtype_name(), again.num_parameters()),
            (model.dtype_name(), model.num_parameters())
        );
    }
    let (model, path) = (tiny(), room("directory-tiny"));
    model.save_pretrained(&path).unwrap();
    // Once more, over itself.
    open(&path).save_pretrained(&path).unwrap();
    let again = open(&path);
    assert_eq!((again.config(), again.generation_config()), (model.config(), model.generation_config()));
    for text in TEXTS {
        let ids = model.tokenizer().unwrap().encode(text, true).unwrap();
        assert_eq!(again.tokenizer().unwrap().encode(text, true).unwrap(), ids);
    }
}

#[test]
fn a_saved_gguf_file_loads_and_computes_the_same() {
    let cases = [
        "llama/bias",
        "llama/linear",
        "llama/llama3",
        "qwen2/tied",
        "qwen2/bf16",
        "qwen2/yarn",
        "qwen3/untied",
    ];
    for name in cases {
        for format in [None, Some("q8_0"), Some("q4_0")] {
            let model = load(name, "auto");
            let model = format.map_or_else(|| model.clone(), |format| model.quantize(format).unwrap());
            let path =
                room("gguf").join(format!("{}-{}.gguf", name.replace('/', "-"), format.unwrap_or("plain")));
            model.save_gguf(&path).unwrap();
            let again = open(&path);
            let worst = apart(&model, &again, &prompts(&expected(name)));
            // Caches aside, a base or an epsilon rounded to f32 is all that differs.
            assert!(worst <= 1e-4, "{name} {format:?}: {worst}");
            assert_eq!(again.size_in_bytes(), model.size_in_bytes(), "{name} {format:?}");
            // And from the copy once more.
            let second = path.with_extension("again.gguf");
            again.save_gguf(&second).unwrap();
            assert_eq!(std::fs::read(&path).unwrap().len(), std::fs::read(&second).unwrap().len());
            assert_eq!(apart(&again, &open(&second), &prompts(&expected(name))), 0.0);
        }
    }
}

#[test]
fn a_saved_gguf_file_has_the_tokenizer() {
    let (model, path) = (tiny(), room("gguf").join("tiny.gguf"));
    model.quantize("q8_0").unwrap().save_gguf(&path).unwrap();
    let again = open(&path);
    let (ours, theirs) = (model.tokenizer().unwrap(), again.tokenizer().unwrap());
    for text in TEXTS {
        let ids = ours.encode(text, true).unwrap();
        assert_eq!(theirs.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(theirs.decode(&ids, false).unwrap(), ours.decode(&ids, false).unwrap());
    }
    assert_eq!(ours.config().chat_templates, theirs.config().chat_templates);
    assert!(model.eos_token_ids().iter().all(|id| again.eos_token_ids().contains(id)));
    // From the file back to a directory.
    let directory = room("directory-from-gguf");
    again.save_pretrained(&directory).unwrap();
    let third = open(&directory);
    assert_eq!(
        third.tokenizer().unwrap().encode(TEXTS[1], true).unwrap(),
        ours.encode(TEXTS[1], true).unwrap()
    );
    assert_eq!(third.tokenizer().unwrap().config().chat_templates, ours.config().chat_templates);
    // The directory has the values of the blocks, which meet activations that are not rounded.
    let ids: Vec<u32> = (1..40).collect();
    let ids = [ids];
    let (directory, plain) = (apart(&again, &third, &ids), apart(&again, &model, &ids));
    assert!(directory <= 0.8 * plain, "{directory}, and {plain} from the unrounded values");
}

#[test]
fn a_factor_of_yarn_is_written_under_the_key_that_llama_cpp_reads() {
    let directory = room("yarn-factor");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("qwen2/yarn").join(file), directory.join(file)).unwrap();
    }
    let mut config = read_json(directory.join("config.json")).unwrap();
    config["rope_scaling"]["attention_factor"] = 1.3.into();
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let (model, path) = (open(&directory), room("gguf").join("yarn-factor.gguf"));
    model.save_gguf(&path).unwrap();
    let source = GgufSource::open(&path).unwrap();
    let factor = source.metadata().number("qwen2.rope.scaling.attn_factor").unwrap().unwrap();
    assert!((factor * (1.0 + 0.1 * 4f64.ln()) - 1.3).abs() < 1e-6, "{factor}");
    assert!(apart(&model, &open(&path), &[(1..100).collect()]) < 1e-5);
}

#[test]
fn what_gguf_cannot_say_is_refused_and_leaves_nothing() {
    let path = room("gguf").join("refused.gguf");
    let error = load("llama/dynamic", "auto").save_gguf(&path).unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument { value, .. } if value.contains("dynamic")), "{error}");
    assert!(!path.exists());
}
