//! The rules of the source tree, executable: which room may use which, and what may stand where.
//!
//! They read the text of `src/`. A rule is a function from a file to its problems, and each is tested on a snippet
//! that breaks it, so that a rule that sees nothing fails.

mod planted;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use source::{Source, has_word};

/// The rooms, and what each may import from the crate: a room, or `room::Name` for single items of it.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("device", &["error"]),
    ("batch", &["error", "device"]),
    ("kernels", &["error", "device"]),
    ("weight", &["error", "device", "kernels"]),
    ("nn", &["error", "device", "kernels", "weight", "batch"]),
    ("checkpoint", &["error", "device", "weight"]),
    ("tokenizer", &["error"]),
    ("models", &["error", "device", "batch", "kernels", "weight", "nn", "checkpoint", "tokenizer"]),
    ("adapter", &["error", "device", "weight", "nn", "checkpoint", "kernels::lora", "models::Model"]),
    (
        "generate",
        &[
            "error",
            "batch",
            "tokenizer",
            "models",
            "adapter",
            // A pass through the model: its caches and adapters.
            "nn::Pass",
            "nn::KvCache",
            "nn::KvLayout",
            "nn::AdapterSet",
            "nn::AdapterPlan",
        ],
    ),
    (
        "train",
        &[
            "error",
            "batch",
            "tokenizer",
            "models",
            "adapter",
            "kernels::cross_entropy",
            "kernels::given",
            // The file of a run's state.
            "checkpoint",
            "weight",
            // A pass through the model.
            "nn::Pass",
            "nn::AdapterSet",
            "nn::AdapterPlan",
        ],
    ),
    (
        "embed",
        &[
            "error",
            "batch",
            "tokenizer",
            "models",
            "adapter",
            // The files that describe modules, and a pass through the model.
            "checkpoint::read_json",
            "nn::Pass",
            "nn::AdapterSet",
            "nn::AdapterPlan",
        ],
    ),
    (
        // Compares what everything else computes.
        "selftest",
        &["error", "device", "kernels", "models", "adapter", "generate", "train", "embed"],
    ),
    (
        "python",
        &[
            // What a user of the Rust crate works with; the rooms below are none of its business.
            "error",
            "device",
            "batch",
            "tokenizer",
            "models",
            "adapter",
            "generate",
            "train",
            "embed",
            "selftest",
            // Parts of their arguments.
            "checkpoint::HubOptions",
            "checkpoint::Progress",
            "nn::AdapterSet",
        ],
    ),
];

/// Words that name a model family.
const FAMILIES: &[&str] = &[
    "bert",
    "bge",
    "deepseek",
    "distilbert",
    "electra",
    "gemma",
    "llama",
    "minilm",
    "mistral",
    "mixtral",
    "modernbert",
    "mpnet",
    "nomic",
    "phi3",
    "qwen",
    "roberta",
    "smollm",
];

/// Where family names may stand outside of `models/`, what about them, and why.
const FAMILY_EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("checkpoint/gguf", "", "a GGUF file has its own names for architectures and tokenizers"),
    ("nn/rope", "llama3", "the `rope_type` of configuration files, whichever family uses it"),
];

/// Where `unsafe` may stand, and what for.
const UNSAFE: &[(&str, &str)] = &[
    ("kernels/", "device code and SIMD"),
    ("checkpoint/safetensors", "mmap"),
    ("checkpoint/gguf", "mmap"),
    ("python/memory", "the options of the allocator, which is written in C"),
];

/// The longest file, in lines.
const MAX_LINES: usize = 600;

/// What the crate root re-exports, and the room it comes from.
type Reexports = BTreeMap<String, String>;

fn reexports(lib: &Source) -> Reexports {
    let rooms = ROOMS.iter().map(|(room, _)| *room);
    rooms
        .flat_map(|room| {
            let imports = lib.imports(room).into_iter();
            imports.filter_map(move |import| Some((import.names.last()?.clone(), room.to_owned())))
        })
        .collect()
}

/// The table of rooms holds, for paths through `crate` and through `super`.
fn imports_follow_the_table(file: &Source, reexports: &Reexports) -> Vec<String> {
    let Some((_, may)) = ROOMS.iter().find(|(room, _)| *room == file.room()) else {
        return vec![format!("src/{}: not in any room of the table", file.path)];
    };
    let mut problems = Vec::new();
    for import in file.imports("crate") {
        let mut names = import.names.clone();
        if let Some(room) = reexports.get(&names[0]) {
            names.insert(0, room.clone());
        }
        let allowed = names[0] == file.room()
            || may.iter().any(|may| match may.split_once("::") {
                Some((room, item)) => names[0] == room && names.get(1).is_some_and(|name| name == item),
                None => names[0] == *may,
            });
        if !allowed {
            let path = import.names.join("::");
            problems.push(format!("src/{}:{}: may not use crate::{path}", file.path, import.line));
        }
    }
    for offset in Source::words(&file.bare, "super") {
        let chain = file.bare[..offset].trim_end().ends_with("super::");
        let length = file.bare[offset..].split("::").take_while(|name| name.trim() == "super").count();
        if !chain && length >= file.depth(offset) {
            problems.push(file.problem(offset, "leaves its room through super: write crate:: instead"));
        }
    }
    problems
}

/// Only `python/` knows Python.
fn pyo3_stays_in_its_room(file: &Source) -> Vec<String> {
    if file.room() == "python" {
        return Vec::new();
    }
    let crates = ["pyo3", "numpy", "pyo3_log"];
    let found = crates.into_iter().flat_map(|name| Source::words(&file.bare, name));
    found.map(|offset| file.problem(offset, "Python is known to src/python/ only")).collect()
}

/// Code that depends on the device features is in `device.rs` and `kernels/`.
fn device_features_stay_low(file: &Source) -> Vec<String> {
    if ["device", "kernels"].contains(&file.room()) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for offset in Source::words(&file.code, "feature") {
        let value = file.code[offset + "feature".len()..].trim_start();
        let value = value.strip_prefix('=').unwrap_or_default().trim_start();
        if ["\"metal\"", "\"cuda\""].iter().any(|name| value.starts_with(name)) {
            problems.push(file.problem(offset, "device features belong in device.rs and kernels/"));
        }
    }
    problems
}

/// candle's fused ops end the autograd graph without a word: `kernels/` alone wraps them.
fn fused_ops_stay_in_kernels(file: &Source) -> Vec<String> {
    if file.room() == "kernels" {
        return Vec::new();
    }
    let fused = |names: &[String]| {
        let at = |index: usize| names.get(index).map(String::as_str);
        match at(0) {
            Some("rotary_emb" | "attention" | "cpu_flash_attention" | "*") => true,
            Some("RmsNorm" | "LayerNorm" | "rms_norm" | "layer_norm" | "layer_norm_no_bias") => true,
            Some("ops") => {
                matches!(at(1), None | Some("*" | "softmax_last_dim" | "rms_norm" | "layer_norm" | "sdpa"))
            }
            _ => false,
        }
    };
    let mut problems = Vec::new();
    for import in file.imports("candle_nn").into_iter().filter(|import| fused(&import.names)) {
        let path = import.names.join("::");
        problems.push(format!("src/{}:{}: candle_nn::{path} cuts gradients", file.path, import.line));
    }
    for offset in Source::words(&file.bare, "candle_nn") {
        if file.bare[offset + "candle_nn".len()..].trim_start().starts_with("as ") {
            problems.push(file.problem(offset, "candle_nn under another name hides what is used of it"));
        }
    }
    for (offset, _) in file.bare.match_indices("_no_bwd(") {
        problems.push(file.problem(offset, "an op without a backward belongs in kernels/"));
    }
    problems
}

/// What a family is called is known to its own file.
fn family_names_stay_in_models(file: &Source) -> Vec<String> {
    if file.room() == "models" {
        return Vec::new();
    }
    let lower = file.code.to_ascii_lowercase();
    // One problem per line is enough: names contain each other.
    let mut problems = BTreeMap::new();
    for family in FAMILIES {
        for (offset, _) in lower.match_indices(family) {
            let before = file.code[..offset].chars().next_back();
            let camel = file.code[offset..].starts_with(|c: char| c.is_ascii_uppercase());
            let starts = !before.is_some_and(char::is_alphabetic) || camel;
            let excepted = FAMILY_EXCEPTIONS
                .iter()
                .any(|(path, word, _)| file.path.starts_with(path) && lower[offset..].starts_with(word));
            if starts && !excepted {
                let problem = file.problem(offset, format!("{family:?} belongs in src/models/"));
                problems.insert(file.line(offset), problem);
            }
        }
    }
    problems.into_values().collect()
}

/// A library does not print, and has no unfinished parts.
fn no_printing_and_no_stubs(file: &Source) -> Vec<String> {
    let macros = ["todo", "unimplemented", "dbg", "print", "println", "eprint", "eprintln"];
    let found = macros.into_iter().flat_map(|name| {
        Source::words(&file.bare, name).filter(|offset| file.bare[offset + name.len()..].starts_with('!'))
    });
    found.map(|offset| file.problem(offset, "no printing and no stubs in the library")).collect()
}

/// `unsafe` stands where it is allowed, and each one below the reason why it is sound.
fn unsafe_is_rare_and_explained(file: &Source) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut problems = Vec::new();
    for offset in Source::words(&file.bare, "unsafe") {
        let next = file.bare[offset + "unsafe".len()..].trim_start();
        let pointer_type = next.strip_prefix("extern").map_or(next, str::trim_start);
        let pointer_type = pointer_type.trim_start_matches(['"', 'C', ' ']);
        if pointer_type.starts_with("fn(") || next.starts_with("(") {
            continue; // a type or an attribute does nothing yet
        }
        if !UNSAFE.iter().any(|(path, _)| file.path.starts_with(path)) {
            problems.push(file.problem(offset, "unsafe code belongs in kernels/"));
        }
        // A method of a trait keeps the promise that is written at the trait.
        let is_method = next.starts_with("fn ")
            && file
                .blocks_around(offset)
                .last()
                .is_some_and(|head| has_word(head, "impl") && has_word(head, "for"));
        if !is_method && !explained(&lines[..file.line(offset)]) {
            problems.push(file.problem(offset, "no SAFETY comment above"));
        }
    }
    problems
}

/// Whether the statement that ends these lines has a SAFETY comment on or above it.
fn explained(lines: &[&str]) -> bool {
    let has = |line: &str| line.contains("SAFETY:") || line.contains("# Safety");
    let Some((last, above)) = lines.split_last() else { return false };
    let mut above = above.iter().rev().map(|line| line.trim()).peekable();
    // The statement may have begun some lines earlier.
    while let Some(line) = above.next_if(|line| !line.starts_with("//") && !line.is_empty()) {
        if line.ends_with([';', '{', '}']) {
            return has(last);
        }
    }
    has(last) || above.take_while(|line| line.starts_with("//") || line.starts_with('#')).any(has)
}

/// Every file says what it is for.
fn module_docs_are_present(file: &Source) -> Vec<String> {
    let first = file.text.lines().next().unwrap_or_default();
    let said = first.strip_prefix("//!").is_some_and(|line| line.trim().len() > 10);
    if said { Vec::new() } else { vec![format!("src/{}: no module doc on the first line", file.path)] }
}

/// No file is longer than a reader can hold.
fn lines_are_few(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let problem = format!("{path}: {lines} lines, at most {MAX_LINES} are allowed: split it");
    if lines > MAX_LINES { vec![problem] } else { Vec::new() }
}

/// The rules for one file; `lib.rs` lists the rooms and is in none.
fn check(file: &Source, reexports: &Reexports) -> Vec<String> {
    let mut problems = match file.path.as_str() {
        "lib.rs" => Vec::new(),
        _ => imports_follow_the_table(file, reexports),
    };
    let rules = [
        pyo3_stays_in_its_room,
        device_features_stay_low,
        fused_ops_stay_in_kernels,
        family_names_stay_in_models,
        no_printing_and_no_stubs,
        unsafe_is_rare_and_explained,
        module_docs_are_present,
    ];
    problems.extend(rules.iter().flat_map(|rule| rule(file)));
    problems
}

/// Files below `folder` with one of the endings, sorted.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if endings.contains(&ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let folder = root().join("src");
    let read = |path: &PathBuf| {
        let relative = path.strip_prefix(&folder).unwrap().to_str().unwrap().replace('\\', "/");
        Source::new(&relative, &fs::read_to_string(path).unwrap())
    };
    files(&folder, &["rs"]).iter().map(read).collect()
}

#[test]
fn the_sources_keep_the_rules() {
    let sources = sources();
    let lib = sources.iter().find(|file| file.path == "lib.rs").expect("src/lib.rs");
    let reexports = reexports(lib);
    assert_eq!(reexports.get("Error").map(String::as_str), Some("error"));
    let problems: Vec<String> = sources.iter().flat_map(|file| check(file, &reexports)).collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_room_is_there_and_in_the_table() {
    let sources = sources();
    let seen: BTreeSet<&str> = sources.iter().map(Source::room).filter(|room| *room != "lib").collect();
    let table: BTreeSet<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(seen, table);
    assert_eq!(table.len(), ROOMS.len(), "a room is listed twice");
    for (room, may) in ROOMS {
        for name in *may {
            let name = name.split("::").next().unwrap();
            assert!(table.contains(name) && name != *room, "{room}: {name}");
        }
    }
}

#[test]
fn files_are_short() {
    let folders = ["src", "tests", "python", "benches", "examples"].map(|folder| root().join(folder));
    let paths: Vec<PathBuf> =
        folders.iter().flat_map(|folder| files(folder, &["rs", "py", "metal", "cu"])).collect();
    assert!(paths.len() > 40, "only {} files", paths.len());
    let problems: Vec<String> = paths
        .iter()
        .flat_map(|path| lines_are_few(&path.to_string_lossy(), &fs::read_to_string(path).unwrap()))
        .collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}
