//! Training against torch and PEFT, and the trainer's own promises.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Tensor, Var};
use candlewick::adapter::{AdapterFile, AdapterRegistry, BiasMode, LoraConfig, Modules};
use candlewick::kernels::cross_entropy::cross_entropy;
use candlewick::models::ARCHITECTURES;
use candlewick::train::{
    AdamW, AdamWConfig, Checkpointing, Example, Schedule, StepMetrics, Trainer, TrainerOptions, TrainingData,
};
use candlewick::{Error, LoadOptions, Model};
use serde_json::{Value, json};

use crate::fixtures::{base, device, directories, golden, json as read_json, max_difference, tensors};

fn training(name: &str) -> std::path::PathBuf {
    golden().join("training").join(name)
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn tiny() -> Model {
    Model::load("candlewick/tiny", &LoadOptions { device: device(), ..Default::default() }).unwrap()
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

fn close(a: f64, b: f64, relative: f64, what: &str) {
    assert!((a - b).abs() <= relative * a.abs().max(b.abs()).max(1e-3), "{what}: {a} and {b}");
}

fn examples(batch: &Value) -> Vec<Example> {
    let row = |row: &Value| Example {
        ids: row["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        labels: row["labels"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect(),
        truncated: 0,
    };
    batch.as_array().unwrap().iter().map(row).collect()
}

/// A trainer for a recorded run of PEFT, and its batches.
fn recorded(case: &Path, checkpointing: Checkpointing) -> (Trainer, Vec<Vec<Example>>, Value) {
    let run = read_json(case.join("run.json"));
    let recipe = &run["recipe"];
    let number = |name: &str| recipe[name].as_f64().unwrap();
    let options = TrainerOptions {
        adapter: Some(AdapterFile::read(&case.join("start")).unwrap()),
        learning_rate: number("learning_rate"),
        schedule: Schedule::from_name(recipe["schedule"].as_str().unwrap()).unwrap(),
        warmup_steps: number("warmup_steps") as usize,
        max_steps: Some(number("max_steps") as usize),
        weight_decay: number("weight_decay"),
        betas: (floats(&recipe["betas"])[0], floats(&recipe["betas"])[1]),
        eps: number("eps"),
        max_grad_norm: Some(number("max_grad_norm")),
        label_smoothing: number("label_smoothing"),
        gradient_accumulation_steps: number("gradient_accumulation_steps") as usize,
        gradient_checkpointing: checkpointing,
        ..TrainerOptions::default()
    };
    let batches: Vec<_> = run["batches"].as_array().unwrap().iter().map(examples).collect();
    let data = TrainingData::Rows(run["batches"][0].as_array().unwrap().clone());
    let trainer = Trainer::new(&base(run["base"].as_str().unwrap()), data, None, options).unwrap();
    (trainer, batches, run)
}

fn cases() -> Vec<std::path::PathBuf> {
    let cases = directories(&golden().join("training"));
    assert!(cases.len() > 7);
    cases
}

#[test]
fn gradients_equal_those_of_peft() {
    for case in cases() {
        let (trainer, batches, run) = recorded(&case, Checkpointing::Auto);
        let expected = tensors(case.join("expected.safetensors"));
        let accumulation = run["recipe"]["gradient_accumulation_steps"].as_u64().unwrap() as usize;
        let rows = batches[..accumulation].concat();
        let gradients = trainer.gradients(&rows).unwrap();
        assert_eq!(gradients.len(), expected.keys().filter(|name| name.starts_with("grad.")).count());
        for (name, gradient) in gradients {
            let expected = &expected[&format!("grad.base_model.model.{name}")];
            let largest = max_difference(expected, &expected.zeros_like().unwrap());
            let worst = max_difference(&gradient, expected);
            assert!(worst < 1e-4 * largest, "{}, {name}: {worst} of {largest}", case.display());
        }
    }
}

#[test]
fn trajectories_equal_those_of_peft() {
    for case in cases() {
        let (mut trainer, batches, run) = recorded(&case, Checkpointing::Auto);
        let accumulation = trainer.options().gradient_accumulation_steps;
        for (step, expected) in run["steps"].as_array().unwrap().iter().enumerate() {
            let rows: Vec<_> = (0..accumulation)
                .map(|k| batches[(step * accumulation + k) % batches.len()].clone())
                .collect();
            let metrics = trainer.step_on(&rows, &never()).unwrap();
            let of = |name: &str| expected[name].as_f64().unwrap();
            let what = |name: &str| format!("{}, step {step}, {name}", case.display());
            close(metrics.loss, of("loss"), 1e-4, &what("loss"));
            close(metrics.grad_norm, of("grad_norm"), 1e-4, &what("norm"));
            assert!((metrics.learning_rate - of("learning_rate")).abs() < 1e-12, "{}", what("rate"));
            assert_eq!(metrics.tokens as f64, of("tokens"), "{}", what("tokens"));
        }
        let expected = tensors(case.join("expected.safetensors"));
        for (name, value) in trainer.adapter().unwrap().tensors() {
            let expected = &expected[&format!("final.base_model.model.{name}")];
            let worst = max_difference(value, expected);
            assert!(worst < 1e-4, "{}, {name}: {worst}", case.display());
        }
    }
}

#[test]
fn schedules_equal_those_of_transformers() {
    let all = read_json(training("schedules.json"));
    for case in all.as_array().unwrap() {
        let schedule = Schedule::from_name(case["schedule"].as_str().unwrap()).unwrap();
        let count = |name: &str| case[name].as_u64().unwrap() as usize;
        let least = case["min"].as_f64().unwrap();
        for (step, expected) in floats(&case["factors"]).into_iter().enumerate() {
            let factor = schedule.factor(step, count("warmup_steps"), count("total_steps"), least);
            assert!((factor - expected).abs() < 1e-12, "{case}, step {step}: {factor}");
        }
    }
}

#[test]
fn adamw_equals_that_of_torch() {
    let run = read_json(training("adamw.json"));
    let var = |name: &str, shape: &[usize]| {
        let values: Vec<f32> = floats(&run["start"][name]).into_iter().map(|x| x as f32).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    };
    let (decayed, plain) = (var("decayed", &[2, 3]), var("plain", &[4]));
    let config = AdamWConfig {
        betas: (floats(&run["betas"])[0], floats(&run["betas"])[1]),
        eps: run["eps"].as_f64().unwrap(),
        weight_decay: run["weight_decay"].as_f64().unwrap(),
    };
    let parameters = [(decayed.clone(), true), (plain.clone(), false)];
    let mut optimizer = AdamW::new(config, parameters.into_iter()).unwrap();
    for step in run["steps"].as_array().unwrap() {
        let tensor = |name: &str, of: &Var| {
            let values: Vec<f32> = floats(&step["gradients"][name]).into_iter().map(|x| x as f32).collect();
            Tensor::from_vec(values, of.dims(), &Device::Cpu).unwrap()
        };
        let gradients = [tensor("decayed", &decayed), tensor("plain", &plain)];
        optimizer.update(&gradients, step["learning_rate"].as_f64().unwrap()).unwrap();
        for (name, var) in [("decayed", &decayed), ("plain", &plain)] {
            let values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
            for (value, expected) in values.iter().zip(floats(&step["values"][name])) {
                assert!((f64::from(*value) - expected).abs() < 1e-6, "{name}: {value} and {expected}");
            }
        }
    }
}

#[test]
fn cross_entropy_and_its_gradient_equal_those_of_torch() {
    let all = read_json(training("cross_entropy.json"));
    let rows: Vec<Vec<f32>> = (all["logits"].as_array().unwrap().iter())
        .map(|row| floats(row).into_iter().map(|x| x as f32).collect())
        .collect();
    let logits = Var::from_tensor(&Tensor::new(rows, &Device::Cpu).unwrap()).unwrap();
    let labels: Vec<i64> = floats(&all["labels"]).into_iter().map(|x| x as i64).collect();
    for case in all["cases"].as_array().unwrap() {
        let smoothing = case["label_smoothing"].as_f64().unwrap() as f32;
        let (sum, counted) = cross_entropy(logits.as_tensor(), &labels, smoothing).unwrap();
        let mean = (sum / counted as f64).unwrap();
        close(f64::from(mean.to_scalar::<f32>().unwrap()), case["loss"].as_f64().unwrap(), 1e-6, "loss");
        let gradient = mean.backward().unwrap().get(logits.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        for (row, expected) in gradient.iter().zip(case["gradient"].as_array().unwrap()) {
            for (value, expected) in row.iter().zip(floats(expected)) {
                assert!((f64::from(*value) - expected).abs() < 1e-6, "{value} and {expected}");
            }
        }
    }
}

/// Rows of a few ids each, for any vocabulary of at least 40.
fn rows(count: usize) -> Vec<Value> {
    let row = |index: usize| {
        let ids: Vec<usize> =
            (0..3 + 5 * index % 11).map(|place| (7 * index + 3 * place * place) % 40).collect();
        json!({"input_ids": ids, "labels": ids})
    };
    (0..count).map(row).collect()
}

/// The same adapter with random values where a fresh one has zeros.
fn disturbed(file: &AdapterFile) -> AdapterFile {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in file.tensors() {
        let noise = candlewick::train::Random::new(5, name).normals(tensor.elem_count(), 0.1);
        let noise = Tensor::from_vec(noise, tensor.dims(), &Device::Cpu).unwrap();
        tensors.insert(name.clone(), (tensor + noise).unwrap());
    }
    AdapterFile::from_tensors(Path::new("disturbed"), file.config().clone(), tensors)
}

/// An adapter of every kind of parameter, in two configurations because DoRA excludes the embedding.
fn every_parameter() -> [LoraConfig; 2] {
    let names = |names: &[&str]| Modules::Names(names.iter().map(ToString::to_string).collect());
    let linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let dora = LoraConfig {
        rank: 3,
        target_modules: names(&[&linears[..], &["lm_head"]].concat()),
        use_dora: true,
        bias: BiasMode::All,
        ..LoraConfig::default()
    };
    let lora = LoraConfig {
        rank: 5,
        target_modules: names(&[&linears[..], &["embed_tokens"]].concat()),
        modules_to_save: vec!["lm_head".into()],
        bias: BiasMode::All,
        ..LoraConfig::default()
    };
    [dora, lora]
}

#[test]
fn every_parameter_of_every_architecture_gets_a_gradient() {
    for architecture in ARCHITECTURES {
        let cases = directories(&golden().join(architecture.model_type));
        assert!(!cases.is_empty(), "{} has no fixture", architecture.model_type);
        for case in cases.iter().filter(|case| case.join("config.json").exists()) {
            let name = format!("{}/{}", architecture.model_type, case.file_name().unwrap().to_str().unwrap());
            let model = base(&name);
            for lora in every_parameter() {
                let fresh = |options| Trainer::new(&model, TrainingData::Rows(rows(4)), None, options);
                let start = fresh(TrainerOptions { lora, ..Default::default() }).unwrap().adapter().unwrap();
                let adapter = Some(disturbed(&start));
                let trainer = fresh(TrainerOptions { adapter, ..Default::default() }).unwrap();
                let batch: Vec<Example> = examples(&Value::Array(rows(4)));
                let gradients = trainer.gradients(&batch).unwrap();
                assert_eq!(gradients.len(), start.tensors().len());
                for (parameter, gradient) in gradients {
                    let values: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
                    assert!(values.iter().all(|x| x.is_finite()), "{name}, {parameter}: not finite");
                    assert!(values.iter().any(|x| *x != 0.0), "{name}, {parameter}: zero");
                }
            }
        }
    }
}

#[test]
fn kept_and_recomputed_layers_give_the_same_gradients() {
    let model = base("qwen3/untied");
    let gradients = |gradient_checkpointing, dropout| {
        let [_, lora] = every_parameter();
        let lora = LoraConfig { dropout, ..lora };
        let options =
            TrainerOptions { lora, gradient_checkpointing, max_steps: Some(2), ..TrainerOptions::default() };
        let mut trainer = Trainer::new(&model, TrainingData::Rows(rows(6)), None, options).unwrap();
        // A step turns dropout on and moves the second factors away from zero.
        trainer.next().unwrap().unwrap();
        let metrics = trainer.next().unwrap().unwrap();
        (metrics.loss, trainer.gradients(&examples(&Value::Array(rows(6)))).unwrap())
    };
    for dropout in [0.0, 0.3] {
        let (loss, kept) = gradients(Checkpointing::Off, dropout);
        for checkpointing in [Checkpointing::On, Checkpointing::Auto] {
            let (other, recomputed) = gradients(checkpointing, dropout);
            close(loss, other, 1e-6, "loss");
            for (name, gradient) in &kept {
                let worst = max_difference(gradient, &recomputed[name]);
                assert!(worst < 1e-5, "{name}, dropout {dropout}: {worst}");
            }
        }
    }
    assert_ne!(gradients(Checkpointing::Off, 0.0).0, gradients(Checkpointing::Off, 0.3).0);
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
    let run = |batch_size, gradient_accumulation_steps| {
        let options = TrainerOptions {
            batch_size,
            gradient_accumulation_steps,
            packing: false,
            shuffle: false,
            max_steps: Some(3),
            learning_rate: 1e-2,
            ..TrainerOptions::default()
        };
        Trainer::new(&base("llama/bias"), TrainingData::Rows(rows(12)), None, options)
            .unwrap()
            .map(Result::unwrap)
            .collect::<Vec<_>>()
    };
    for (a, b) in run(6, 1).iter().zip(run(2, 3)) {
        close(a.loss, b.loss, 1e-5, "loss");
        close(a.grad_norm, b.grad_norm, 1e-5, "norm");
        assert_eq!(a.tokens, b.tokens);
    }
}

#[test]
fn rows_of_a_batch_do_not_see_each_other() {
    let model = base("mistral/window");
    let trainer = Trainer::new(&model, TrainingData::Rows(rows(1)), None, TrainerOptions::default()).unwrap();
    let together = trainer.evaluate_on(TrainingData::Rows(rows(9)), &never()).unwrap();
    let (mut sum, mut tokens) = (0.0, 0.0);
    for row in rows(9) {
        let count = row["labels"].as_array().unwrap().len() as f64 - 1.0;
        sum += trainer.evaluate_on(TrainingData::Rows(vec![row]), &never()).unwrap() * count;
        tokens += count;
    }
    close(together, sum / tokens, 1e-6, "loss");
}

/// Everything about a step but how long it took.
fn facts(metrics: &StepMetrics) -> (usize, f64, f64, f64, usize, f64, Option<f64>) {
    let StepMetrics { step, loss, learning_rate, grad_norm, tokens, epoch, eval_loss, .. } = *metrics;
    (step, loss, learning_rate, grad_norm, tokens, epoch, eval_loss)
}

fn bits(file: &AdapterFile) -> HashMap<String, Vec<u32>> {
    let bits = |tensor: &Tensor| {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    file.tensors().iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

#[test]
fn a_resumed_run_is_the_same_as_an_uninterrupted_one() {
    let model = base("qwen2/tied");
    for packing in [true, false] {
        let room = tempfile::tempdir().unwrap();
        let options = TrainerOptions {
            lora: LoraConfig { dropout: 0.2, use_dora: true, ..LoraConfig::default() },
            packing,
            batch_size: 2,
            max_length: 24,
            gradient_accumulation_steps: 2,
            epochs: 3,
            learning_rate: 3e-3,
            warmup_steps: 2,
            ..TrainerOptions::default()
        };
        let data = || (TrainingData::Rows(rows(25)), Some(TrainingData::Rows(rows(3))));
        let new = || Trainer::new(&model, data().0, data().1, options.clone()).unwrap();
        let mut whole = new();
        let expected: Vec<_> = whole.by_ref().map(|step| facts(&step.unwrap())).collect();
        assert!(expected.len() > 6, "{}", expected.len());
        assert_eq!(expected.iter().filter(|step| step.6.is_some()).count(), 3);
        for cut in [1, 3, 5, 6] {
            let mut first = new();
            let mut steps: Vec<_> = first.by_ref().take(cut).map(|step| facts(&step.unwrap())).collect();
            first.save_state(room.path()).unwrap();
            drop(first);
            let mut second = Trainer::resume(&model, room.path(), data(), |_| Ok(()), &never()).unwrap();
            steps.extend(second.by_ref().map(|step| facts(&step.unwrap())));
            assert_eq!(steps, expected, "cut after {cut}");
            assert_eq!(bits(&second.adapter().unwrap()), bits(&whole.adapter().unwrap()));
        }
        let other = (TrainingData::Rows(rows(26)), None);
        let resumed = Trainer::resume(&model, room.path(), other, |_| Ok(()), &never());
        assert!(matches!(resumed, Err(Error::InvalidData { .. })));
    }
}

#[test]
fn an_interrupted_step_is_taken_again() {
    let model = base("qwen2/tied");
    let options = TrainerOptions { max_steps: Some(4), batch_size: 2, packing: false, ..Default::default() };
    let new = || Trainer::new(&model, TrainingData::Rows(rows(7)), None, options.clone()).unwrap();
    let expected: Vec<_> = new().map(|step| facts(&step.unwrap())).collect();
    let mut trainer = new();
    let mut steps = Vec::new();
    while !trainer.is_finished() {
        let before = bits(&trainer.adapter().unwrap());
        assert!(trainer.next_step(&AtomicBool::new(true)).unwrap().is_err());
        assert_eq!(bits(&trainer.adapter().unwrap()), before);
        steps.push(facts(&trainer.next().unwrap().unwrap()));
    }
    assert_eq!(steps, expected);
}

#[test]
fn divergence_leaves_the_adapter_of_the_last_good_step() {
    let model = base("llama/bias");
    let options =
        TrainerOptions { max_steps: Some(9), learning_rate: 1e38, max_grad_norm: None, ..Default::default() };
    let mut trainer = Trainer::new(&model, TrainingData::Rows(rows(3)), None, options).unwrap();
    let mut before = bits(&trainer.adapter().unwrap());
    let error = loop {
        match trainer.next().expect("it should diverge") {
            Ok(_) => before = bits(&trainer.adapter().unwrap()),
            Err(error) => break error,
        }
    };
    let taken = trainer.step_count();
    assert!(matches!(error, Error::Diverged { step, .. } if step == taken + 1), "{error}");
    assert_eq!(bits(&trainer.adapter().unwrap()), before);
    assert!(trainer.next().is_none());
}

#[test]
fn checkpoints_are_kept_resumed_and_loadable() {
    let model = base("qwen2/tied");
    let room = tempfile::tempdir().unwrap();
    let run = room.path().join("run");
    let options = TrainerOptions {
        max_steps: Some(7),
        batch_size: 2,
        packing: false,
        learning_rate: 1e-2,
        eval_steps: Some(2),
        save_dir: Some(run.clone()),
        save_steps: Some(1),
        keep_last: 2,
        ..TrainerOptions::default()
    };
    let data = || (TrainingData::Rows(rows(6)), Some(TrainingData::Rows(rows(6))));
    let mut trainer = Trainer::new(&model, data().0, data().1, options).unwrap();
    let steps: Vec<StepMetrics> = trainer.by_ref().map(Result::unwrap).collect();
    let evaluated: Vec<usize> = steps.iter().filter(|s| s.eval_loss.is_some()).map(|s| s.step).collect();
    assert_eq!(evaluated, [2, 4, 6, 7]);
    let names: Vec<_> = directories(&run).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["best", "checkpoint-6", "checkpoint-7"]);
    let registry = AdapterRegistry::new(&model, 4);
    let last = registry.load("last", run.to_str().unwrap()).unwrap();
    registry.load("best", run.join("best").to_str().unwrap()).unwrap();
    assert_eq!(registry.add("trained", &trainer.adapter().unwrap()).unwrap().generation, last.generation);
    let resumed = Trainer::resume(&model, &run, data(), |_| Ok(()), &never()).unwrap();
    assert_eq!((resumed.step_count(), resumed.is_finished()), (7, true));
    let longer = |options: &mut TrainerOptions| {
        options.max_steps = Some(9);
        Ok(())
    };
    let mut longer = Trainer::resume(&model, &run, data(), longer, &never()).unwrap();
    assert_eq!(longer.by_ref().map(Result::unwrap).count(), 2);
}

#[test]
fn a_run_without_progress_stops_early() {
    let options = TrainerOptions {
        max_steps: Some(50),
        learning_rate: 0.0,
        eval_steps: Some(1),
        early_stopping_patience: Some(3),
        ..TrainerOptions::default()
    };
    let data = TrainingData::Rows(rows(2));
    let trainer = Trainer::new(&base("qwen2/tied"), data.clone(), Some(data), options).unwrap();
    assert_eq!(trainer.map(Result::unwrap).count(), 4);
}

#[test]
fn the_bundled_model_learns_a_small_task() {
    let model = tiny();
    let rows = ["the red fox said hello to nobody", "a small boat sailed to the green moon"];
    let rows: Vec<Value> = rows.iter().map(|text| json!({"text": text})).collect();
    let options = TrainerOptions {
        lora: LoraConfig { target_modules: Modules::AllLinear, ..LoraConfig::default() },
        max_steps: Some(60),
        learning_rate: 1e-2,
        schedule: Schedule::Constant,
        ..TrainerOptions::default()
    };
    let mut trainer = Trainer::new(&model, TrainingData::Rows(rows), None, options).unwrap();
    let steps: Vec<StepMetrics> = trainer.by_ref().map(Result::unwrap).collect();
    let (first, last) = (steps[0].loss, steps[59].loss);
    assert!(last < 0.1 * first, "{first} -> {last}");
    let registry = AdapterRegistry::new(&model, 1);
    registry.add("learnt", &trainer.adapter().unwrap()).unwrap();
    let generator = candlewick::Generator::new(&model);
    let options = candlewick::GenerationOptions { temperature: Some(0.0), ..Default::default() };
    let learnt = registry.get("learnt").unwrap();
    let story = generator.generate(&"the red fox".into(), &options, Some(learnt)).unwrap();
    assert_eq!(story.text, " said hello to nobody");
}
