//! Rows of training data: what they become, and how bad ones are reported.

use std::io::Write;
use std::sync::atomic::AtomicBool;

use candlewick::train::{Trainer, TrainerOptions, TrainingData};
use candlewick::{Error, LoadOptions, Model};
use serde_json::{Value, json};

fn tiny() -> Model {
    Model::load("candlewick/tiny", &LoadOptions { device: "cpu".into(), ..Default::default() }).unwrap()
}

fn options() -> TrainerOptions {
    TrainerOptions { packing: false, batch_size: 1, shuffle: false, ..TrainerOptions::default() }
}

fn open(rows: Vec<Value>) -> Result<Trainer, Error> {
    Trainer::new(&tiny(), TrainingData::Rows(rows), None, options())
}

/// The place and the reason of a refusal.
fn refusal(rows: Vec<Value>) -> (String, String) {
    match open(rows) {
        Err(Error::InvalidData { origin, reason, .. }) => (origin, reason),
        other => panic!("{other:?}"),
    }
}

/// The loss over one row, which tells two encodings apart.
fn loss(row: Value) -> f64 {
    let trainer = open(vec![json!({"text": "anything"})]).unwrap();
    trainer.evaluate_on(TrainingData::Rows(vec![row]), &AtomicBool::new(false)).unwrap()
}

fn ids(text: &str) -> Vec<u32> {
    tiny().tokenizer().unwrap().encode(text, true).unwrap()
}

fn eos() -> u32 {
    let model = tiny();
    let tokenizer = model.tokenizer().unwrap();
    tokenizer.named_token_id("eos_token").unwrap()
}

#[test]
fn a_text_is_learnt_to_its_end() {
    let mut whole = ids("the cat sat");
    whole.push(eos());
    assert_eq!(loss(json!({"text": "the cat sat"})), loss(json!({"input_ids": whole})));
}

#[test]
fn of_prompt_and_completion_the_completion_is_learnt() {
    let mut whole = ids("the cat sat on the mat");
    let prompt = ids("the cat sat").len();
    assert_eq!(whole[..prompt], ids("the cat sat"));
    whole.push(eos());
    let mut labels: Vec<i64> = whole.iter().map(|id| i64::from(*id)).collect();
    labels[..prompt].fill(-100);
    let row = json!({"prompt": "the cat sat", "completion": " on the mat", "source": "somewhere"});
    assert_eq!(loss(row), loss(json!({"input_ids": whole, "labels": labels})));
}

#[test]
fn of_a_chat_all_turns_of_the_assistant_are_learnt() {
    let model = tiny();
    let tokenizer = model.tokenizer().unwrap();
    let messages = json!([
        {"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"},
        {"role": "user", "content": "who are you"}, {"role": "assistant", "content": "a cat"},
    ]);
    let chat = tokenizer.assistant_spans(&messages, &Default::default()).unwrap();
    assert_eq!(chat.assistant.len(), 2);
    let encoded = tokenizer.encode_masked(&chat.text, &chat.assistant).unwrap();
    let label = |(id, is_learnt): (&u32, &bool)| if *is_learnt { i64::from(*id) } else { -100 };
    let labels: Vec<i64> = encoded.ids.iter().zip(&encoded.mask).map(label).collect();
    assert!(labels.contains(&-100) && labels.iter().any(|label| *label >= 0));
    let row = json!({"input_ids": encoded.ids, "labels": labels});
    assert_eq!(loss(json!({"messages": messages})), loss(row));
    // The same conversation cut into a prompt and a completion: only the last turn is left.
    let mut last = encoded.mask.clone();
    let second = chat.text.rfind("a cat").unwrap();
    let first_turn = tokenizer.encode_masked(&chat.text, std::slice::from_ref(&(0..second))).unwrap().mask;
    last.iter_mut().zip(first_turn).for_each(|(bit, before)| *bit &= !before);
    let labels: Vec<i64> = encoded.ids.iter().zip(&last).map(label).collect();
    let messages = messages.as_array().unwrap();
    let row = json!({"prompt": &messages[..3], "completion": &messages[3..]});
    assert_eq!(loss(row), loss(json!({"input_ids": encoded.ids, "labels": labels})));
}

#[test]
fn masks_of_other_libraries_are_understood() {
    let plain = json!({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]});
    let expected = loss(plain);
    assert_eq!(loss(json!({"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]})), expected);
    assert_eq!(loss(json!({"input_ids": [5, 6, 7, 8], "assistant_masks": [0, 0, 1, 1]})), expected);
    let padded = json!({
        "input_ids": [5, 6, 7, 8, 0, 0], "labels": [-100, -100, 7, 8, -100, -100],
        "attention_mask": [1, 1, 1, 1, 0, 0],
    });
    assert_eq!(loss(padded), expected);
}

#[test]
fn bad_rows_are_refused_with_their_number() {
    let good = json!({"text": "fine"});
    let second = |row: Value| refusal(vec![good.clone(), row]);
    for (row, part) in [
        (json!("text"), "expected an object"),
        (json!({"body": "x"}), "found the fields body"),
        (json!({}), "(none)"),
        (json!({"text": 5}), "\"text\" is not a string"),
        (json!({"prompt": "x"}), "no \"completion\""),
        (json!({"completion": "x"}), "no \"prompt\""),
        (json!({"prompt": "x", "completion": []}), "both"),
        (json!({"messages": "x"}), "not a list"),
        (json!({"messages": [{"role": "user", "content": "x"}]}), "no message of the assistant"),
        (json!({"messages": [{"content": "x"}]}), ""),
        (json!({"input_ids": [1, 2.5]}), "whole numbers"),
        (json!({"input_ids": [1, -2]}), "token id -2"),
        (json!({"input_ids": [1, 99_999_999]}), "token id 99999999"),
        (json!({"input_ids": [1, 2], "labels": [1]}), "1 labels for 2"),
        (json!({"input_ids": [1, 2], "labels": [1, -5]}), "label -5"),
        (json!({"input_ids": []}), "no tokens"),
    ] {
        let (place, reason) = second(row.clone());
        assert!(place.ends_with("row 2 (index 1)"), "{row}: {place}");
        assert!(reason.contains(part), "{row}: {reason}");
    }
    assert_eq!(refusal(Vec::new()).0, "the data set");
    assert!(refusal(vec![json!({"input_ids": [1, 2], "labels": [-100, -100]})]).1.contains("no row"));
}

#[test]
fn long_rows_are_cut_and_counted() {
    let model = tiny();
    let rows =
        vec![json!({"input_ids": vec![3; 30]}), json!({"input_ids": vec![4; 10]}), json!({"input_ids": [5]})];
    let options = TrainerOptions { max_length: 12, ..options() };
    let trainer = Trainer::new(&model, TrainingData::Rows(rows), None, options).unwrap();
    let stats = trainer.data_stats();
    assert_eq!((stats.rows, stats.truncated_rows, stats.truncated_tokens), (3, 1, 18));
    assert_eq!((stats.tokens, stats.rows_without_targets), (23, 1));
    let tokens: Vec<usize> = trainer.map(|step| step.unwrap().tokens).collect();
    assert_eq!(tokens, [11, 9]);
}

#[test]
fn files_are_read_line_by_line() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("rows.jsonl");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"\xef\xbb\xbf{\"text\": \"the first\"}\r\n\n   \n{\"text\": \"the s\xc3\xa9cond\"}\n")
        .unwrap();
    file.write_all(b"{\"input_ids\": [4, 5, 6]}").unwrap();
    drop(file);
    let model = tiny();
    let open = |options| Trainer::new(&model, TrainingData::File(path.clone()), None, options);
    let from_file: Vec<f64> = open(options()).unwrap().map(|step| step.unwrap().loss).collect();
    let rows =
        vec![json!({"text": "the first"}), json!({"text": "the sécond"}), json!({"input_ids": [4, 5, 6]})];
    let rows = Trainer::new(&model, TrainingData::Rows(rows), None, options()).unwrap();
    assert_eq!(from_file, rows.map(|step| step.unwrap().loss).collect::<Vec<_>>());
    assert_eq!(from_file.len(), 3);
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\n{\"text\": oops}\n").unwrap();
    match open(options()) {
        Err(Error::InvalidData { origin, line, reason }) => {
            assert!(origin.ends_with("rows.jsonl") && reason.contains("JSON"), "{origin}: {reason}");
            assert_eq!(line, Some(6));
        }
        other => panic!("{other:?}"),
    }
    let absent = TrainingData::File(room.path().join("absent.jsonl"));
    assert!(matches!(Trainer::new(&model, absent, None, options()), Err(Error::Io { .. })));
}

#[test]
fn packing_fills_batches_and_covers_every_row_once() {
    let model = tiny();
    let lengths = [9, 3, 5, 8, 2, 7, 4, 6, 12, 2, 3];
    let rows: Vec<Value> = lengths.iter().map(|length| json!({"input_ids": vec![7; *length]})).collect();
    let run = |packing, shuffle| {
        let options = TrainerOptions { packing, shuffle, batch_size: 2, max_length: 12, ..options() };
        let trainer = Trainer::new(&model, TrainingData::Rows(rows.clone()), None, options).unwrap();
        let total = trainer.total_steps();
        let tokens: Vec<usize> = trainer.map(|step| step.unwrap().tokens).collect();
        assert_eq!(tokens.len(), total);
        assert_eq!(tokens.iter().sum::<usize>(), lengths.iter().sum::<usize>() - lengths.len());
        tokens
    };
    // Targets are one less than tokens; at most 24 tokens go into a packed batch.
    assert_eq!(run(true, false), [8 + 2 + 4, 7 + 1 + 6 + 3, 5 + 11 + 1 + 2]);
    assert_eq!(run(false, false), [10, 11, 7, 8, 12, 2]);
    assert!(run(true, true).len() <= 4);
    let grouped = run(false, true);
    assert_eq!(grouped.len(), 6);
    let mut sorted = grouped.clone();
    sorted.sort();
    assert_eq!(sorted, [2, 4, 7, 11, 11, 15]);
}
