//! Downloads from a local server that speaks the hub's protocol, also when it misbehaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candlewick::checkpoint::{Hub, HubEnv, HubOptions, Wanted};
use candlewick::{Error, Result};

use crate::hub_server::{COMMIT, ID, Repo, Request, Response, Server, files_below, partial, sha256};

struct Setup {
    room: tempfile::TempDir,
    server: Server,
    options: HubOptions,
    token: Option<String>,
    offline: bool,
}

impl Setup {
    fn new(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let room = tempfile::tempdir().unwrap();
        let server = Server::start(answer);
        Self { room, server, options: HubOptions::default(), token: None, offline: false }
    }

    fn of(repo: Repo) -> Self {
        Self::new(move |request| repo.answer(request))
    }

    fn hub(&self) -> Hub {
        let mut env = HubEnv::new(self.room.path());
        env.endpoint = self.server.endpoint.clone();
        env.token = self.token.clone();
        env.offline = self.offline;
        env.retry_delay = Duration::from_millis(1);
        env.stall_timeout = Duration::from_secs(2);
        Hub::new(env, self.options.clone())
    }

    fn get(&self) -> Result<PathBuf> {
        self.hub().resolve(ID, &Wanted::Model)
    }

    fn reason(&self) -> String {
        match self.get() {
            Err(Error::ModelNotFound { name, reason }) if name == ID => reason,
            other => panic!("{other:?}"),
        }
    }

    fn repository(&self) -> PathBuf {
        self.room.path().join("models--org--model")
    }

    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.repository().join("blobs")).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }
}

#[test]
fn a_model_is_fetched_once_in_the_standard_layout() {
    let repo = Repo::model();
    let setup = Setup::of(repo.clone());
    let snapshot = setup.get().unwrap();
    assert_eq!(snapshot, setup.repository().join("snapshots").join(COMMIT));
    assert_eq!(files_below(&snapshot), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), repo.weights());
    assert_eq!(fs::read_to_string(setup.repository().join("refs/main")).unwrap(), COMMIT);
    let etag = sha256(repo.weights());
    assert_eq!(fs::read(setup.repository().join("blobs").join(&etag)).unwrap(), repo.weights());
    if cfg!(unix) {
        let link = fs::read_link(snapshot.join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag));
    }
    let before = setup.server.requests().len();
    assert_eq!(before, 4, "one listing and three files");
    assert_eq!(setup.get().unwrap(), snapshot);
    assert_eq!(setup.server.requests().len(), before, "the second load used the network");
}

#[test]
fn a_local_path_needs_no_hub() {
    let setup = Setup::new(|_| Response::status(500));
    let here = setup.room.path().to_str().unwrap();
    assert_eq!(setup.hub().resolve(here, &Wanted::Model).unwrap(), setup.room.path());
    for source in ["./absent", "/absent/model", "a/b/c", "model.gguf/", "...", "org/..", "org/na me", ""] {
        let error = setup.hub().resolve(source, &Wanted::Model).unwrap_err();
        assert!(matches!(error, Error::ModelNotFound { .. }), "{source}: {error}");
    }
    assert!(setup.server.requests().is_empty());
}

#[test]
fn offline_uses_the_cache_and_only_the_cache() {
    let mut setup = Setup::of(Repo::model());
    setup.offline = true;
    let reason = setup.reason();
    assert!(
        reason.contains("revision \"main\" is not in the cache") && reason.contains("HF_HUB_OFFLINE"),
        "{reason}"
    );
    setup.offline = false;
    let snapshot = setup.get().unwrap();
    let before = setup.server.requests().len();
    setup.options.local_files_only = true;
    setup.options.refresh = true;
    assert_eq!(setup.get().unwrap(), snapshot);
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    assert!(setup.reason().contains("lacks model.safetensors"));
    assert_eq!(setup.server.requests().len(), before);
}

#[test]
fn a_cache_made_by_others_is_used_when_the_hub_is_out_of_reach() {
    let mut setup = Setup::new(|_| Response::status(503));
    let snapshot = setup.repository().join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(setup.repository().join("refs")).unwrap();
    fs::write(setup.repository().join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    assert!(setup.reason().contains("503"), "an incomplete snapshot was accepted");
    let index = r#"{"weight_map":{"a":"model-1.safetensors"}}"#;
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    assert!(setup.get().is_err());
    fs::write(snapshot.join("model-1.safetensors"), "x").unwrap();
    let before = setup.server.requests().len();
    assert_eq!(setup.get().unwrap(), snapshot);
    assert_eq!(setup.server.requests().len(), before + 1, "with a fall-back at hand the hub is asked once");
    fs::write(snapshot.join("tokenizer.json"), "{}").unwrap();
    assert_eq!(setup.get().unwrap(), snapshot);
    assert_eq!(setup.server.requests().len(), before + 1, "a whole model needs no hub");
    setup.offline = true;
    assert_eq!(setup.get().unwrap(), snapshot);
    let short = snapshot.with_file_name("abc");
    fs::rename(&snapshot, &short).unwrap();
    fs::write(setup.repository().join("refs/main"), "abc").unwrap();
    assert_eq!(setup.get().unwrap(), short, "what others call a commit need not be one");
}

#[test]
fn revisions_are_branches_tags_or_commits() {
    let mut setup = Setup::of(Repo::model());
    for revision in ["v1", "refs/pr/1"] {
        setup.options.revision = Some(revision.to_string());
        assert!(setup.get().unwrap().ends_with(COMMIT));
        assert_eq!(fs::read_to_string(setup.repository().join("refs").join(revision)).unwrap(), COMMIT);
    }
    let before = setup.server.requests().len();
    setup.options.revision = Some(COMMIT.to_string());
    setup.options.refresh = true;
    setup.get().unwrap();
    assert_eq!(setup.server.requests().len(), before, "a commit never changes");
    for bad in ["../../etc", "/etc", "a\\b", ""] {
        setup.options.revision = Some(bad.to_string());
        assert!(matches!(setup.get(), Err(Error::InvalidArgument { .. })), "{bad}");
    }
}

#[test]
fn a_branch_that_moved_is_seen_on_refresh_and_kept_until_complete() {
    let repo = Arc::new(Mutex::new(Repo::model()));
    let (shared, broken) = (repo.clone(), Arc::new(AtomicBool::new(false)));
    let failing = broken.clone();
    let mut setup = Setup::new(move |request| {
        let new = request.path.contains("/resolve/89abcdef") && request.path.ends_with("model.safetensors");
        if new && failing.load(Ordering::Relaxed) {
            return Response::status(500);
        }
        shared.lock().unwrap().answer(request)
    });
    let old = setup.get().unwrap();
    repo.lock().unwrap().commit = "89abcdef".repeat(5);
    repo.lock().unwrap().files.insert("model.safetensors".to_string(), b"new".to_vec());
    assert_eq!(setup.get().unwrap(), old);
    setup.options.refresh = true;
    broken.store(true, Ordering::Relaxed);
    assert_eq!(setup.get().unwrap(), old, "a half-downloaded snapshot replaced a whole one");
    broken.store(false, Ordering::Relaxed);
    let new = setup.get().unwrap();
    assert_eq!(fs::read(new.join("model.safetensors")).unwrap(), b"new");
    assert_eq!(setup.server.count("resolve/89abcdef89abcdef89abcdef89abcdef89abcdef/config.json"), 1);
    assert!(old.join("model.safetensors").is_file());
}

#[test]
fn refusals_say_what_to_do() {
    for (status, help) in [(401, "HF_TOKEN"), (403, "accept the model's conditions"), (404, "check the name")]
    {
        let setup = Setup::new(move |_| Response::status(status).with("X-Error-Message", "told by the hub"));
        let reason = setup.reason();
        assert!(reason.contains(help) && reason.contains("told by the hub"), "{reason}");
        assert_eq!(setup.server.requests().len(), 1, "{status} was tried again");
    }
    let setup = Setup::new(|_| Response::status(500));
    assert!(setup.reason().contains("500"));
    assert_eq!(setup.server.requests().len(), 5);
    let mut env = HubEnv::new(setup.room.path());
    env.endpoint = "http://127.0.0.1:1".to_string();
    env.retry_delay = Duration::from_millis(1);
    let error = Hub::new(env, HubOptions::default()).resolve(ID, &Wanted::Model).unwrap_err();
    assert!(error.to_string().contains("could not be reached"), "{error}");
}

#[test]
fn busy_servers_are_asked_again() {
    for status in [429, 503] {
        let repo = Repo::model();
        let setup = Setup::new(move |request| match request.earlier {
            0 => Response::status(status).with("Retry-After", 0),
            1 => Response::status(status),
            _ => repo.answer(request),
        });
        setup.get().unwrap();
        assert_eq!(setup.server.requests().len(), 12, "each of the four requests thrice");
    }
}

#[test]
fn retry_after_is_honoured() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| match (request.path.starts_with("/api"), request.earlier) {
        (true, 0) => Response::status(429).with("Retry-After", 1),
        _ => repo.answer(request),
    });
    let start = Instant::now();
    setup.get().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_cut_connection_is_resumed_where_it_stopped() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| {
        let response = repo.answer(request);
        if request.path.ends_with("model.safetensors") && request.earlier < 7 {
            response.cut(9_000)
        } else {
            response
        }
    });
    let snapshot = setup.get().unwrap();
    assert_eq!(
        sha256(&fs::read(snapshot.join("model.safetensors")).unwrap()),
        sha256(Repo::model().weights())
    );
    let ranges: Vec<Option<String>> = setup
        .server
        .requests()
        .iter()
        .filter(|r| r.path.ends_with("model.safetensors"))
        .map(|r| r.header("range").map(str::to_string))
        .collect();
    assert_eq!(ranges.len(), 8, "progress between cuts must not use up the attempts: {ranges:?}");
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[7].as_deref(), Some("bytes=63000-"));
    assert_eq!(setup.blobs().len(), 3);
}

#[test]
fn what_an_interrupted_run_left_is_resumed_by_the_next() {
    let repo = Repo::model();
    let alive = Arc::new(AtomicBool::new(false));
    let (up, served) = (alive.clone(), repo.clone());
    let setup = Setup::new(move |request| {
        if !request.path.ends_with("model.safetensors") || up.load(Ordering::Relaxed) {
            return served.answer(request);
        }
        if request.earlier == 0 { served.answer(request).cut(40_000) } else { Response::status(200).cut(0) }
    });
    assert!(setup.get().is_err());
    let partial = setup.repository().join("blobs").join(format!("{}.incomplete", sha256(repo.weights())));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 40_000);
    alive.store(true, Ordering::Relaxed);
    let snapshot = setup.get().unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), repo.weights());
    let last = setup.server.requests().pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=40000-"));
    assert!(!partial.exists());
}

#[test]
fn a_server_that_ignores_ranges_is_served_from_the_start() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| {
        let mut plain = request.clone();
        plain.headers.remove("range");
        let response = repo.answer(&plain);
        if request.path.ends_with("model.safetensors") && request.earlier == 0 {
            response.cut(9_000)
        } else {
            response
        }
    });
    let snapshot = setup.get().unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), Repo::model().weights());
}

#[test]
fn a_damaged_leftover_is_downloaded_afresh() {
    for length in [5_000, 100_000, 150_000] {
        let repo = Repo::model();
        let setup = Setup::of(repo.clone());
        let blobs = setup.repository().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(repo.weights()))), vec![1; length]).unwrap();
        let snapshot = setup.get().unwrap();
        assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), repo.weights(), "{length}");
        assert_eq!(setup.blobs().len(), 3);
    }
}

#[test]
fn a_wrong_hash_is_an_error_and_leaves_nothing() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| {
        let mut response = repo.answer(request);
        if request.path.ends_with("model.safetensors") {
            response.body[50_000] ^= 1;
        }
        response
    });
    match setup.get() {
        Err(Error::InvalidCheckpoint { problems, .. }) => {
            assert!(problems[0].contains("sha256"), "{problems:?}")
        }
        other => panic!("{other:?}"),
    }
    assert!(setup.blobs().iter().all(|b| b.len() == 40), "{:?}", setup.blobs());
    let snapshot = setup.repository().join("snapshots").join(COMMIT);
    assert_eq!(files_below(&snapshot), ["config.json", "tokenizer.json"]);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let repo = Repo::model();
    let content = repo.clone();
    let other = Server::start(move |request| partial(content.weights(), request));
    let target = format!("{}/bucket/weights?signature=x", other.endpoint);
    let mut setup = Setup::new(move |request| {
        if request.path == format!("/{ID}/resolve/{COMMIT}/model.safetensors") {
            let response = repo.answer(&Request { path: request.path.clone(), ..request.clone() });
            let kept = response.headers.into_iter().filter(|(n, _)| n.starts_with("X-Linked")).collect();
            let moved = Response { headers: kept, ..Response::status(302) };
            return moved.with("Location", &target).with("ETag", "\"not-the-file\"");
        }
        if request.path.ends_with("config.json") && !request.path.starts_with("/moved") {
            return Response::status(307).with("Location", format!("/moved{}", request.path));
        }
        let path = request.path.trim_start_matches("/moved").to_string();
        repo.answer(&Request { path, ..request.clone() })
    });
    setup.token = Some("hf_secret".to_string());
    let snapshot = setup.get().unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), Repo::model().weights());
    assert_eq!(setup.server.count("/moved"), 1);
    assert!(setup.server.requests().iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(other.requests().len(), 1);
    assert_eq!(other.requests()[0].header("authorization"), None);
    assert!(!format!("{:?}", setup.hub()).contains("hf_secret"));
}

#[test]
fn endless_redirects_and_nonsense_are_errors() {
    let answers: [fn(&Request) -> Response; 5] = [
        |r| Response::status(302).with("Location", &r.path),
        |_| Response::status(302).with("Location", "file:///etc/passwd"),
        |_| Response { body: b"<html>".to_vec(), ..Response::status(200) },
        |_| Response { body: b"{\"siblings\":[]}".to_vec(), ..Response::status(200) },
        |_| Response {
            body: b"{\"sha\":\"../../../../x\",\"siblings\":[]}".to_vec(),
            ..Response::status(200)
        },
    ];
    for answer in answers {
        let setup = Setup::new(answer);
        let reason = setup.reason();
        assert!(reason.contains("not understood"), "{reason}");
        assert_eq!(files_below(setup.room.path()), [""; 0]);
    }
}

#[test]
fn names_that_leave_the_directory_are_never_written() {
    let evil = ["../evil.json", "/evil.json", "1_Pooling/../../evil.json", "C:\\evil.json", "..\\evil.json"];
    let mut repo = Repo::model();
    for name in evil {
        repo.files.insert(name.to_string(), b"evil".to_vec());
    }
    let setup = Setup::of(repo.clone());
    setup.get().unwrap();
    assert_eq!(setup.server.count("evil"), 0);
    for name in evil {
        let error = setup.hub().snapshot(ID, &Wanted::File(name.to_string())).unwrap_err();
        assert!(error.to_string().contains("not allowed"), "{error}");
    }
    repo.files.remove("model.safetensors");
    let index = br#"{"weight_map":{"a":"../../../evil.safetensors"}}"#.to_vec();
    repo.files.insert("model.safetensors.index.json".to_string(), index);
    let setup = Setup::of(repo);
    assert!(matches!(setup.get(), Err(Error::InvalidConfig { .. })));
}

#[test]
fn an_etag_cannot_be_a_path() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| {
        let response = repo.answer(request);
        if request.path.ends_with("config.json") {
            response.with("ETag", "\"../../../evil\"")
        } else {
            response
        }
    });
    assert!(setup.reason().contains("cannot be a file name"));
}

#[test]
fn shards_modules_and_tokenizers_are_chosen() {
    let file = |n: &str| (n.to_string(), n.as_bytes().to_vec());
    let names = [
        "config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "sentence_bert_config.json",
        "vocab.txt",
        "onnx/model.onnx",
        "a-1.safetensors",
        "a-2.safetensors",
        "b.safetensors",
    ];
    let mut repo = Repo::new(&[]);
    repo.files = names.iter().map(|n| file(n)).collect();
    let index = br#"{"weight_map":{"x":"a-1.safetensors","y":"a-2.safetensors","z":"a-1.safetensors"}}"#;
    repo.files.insert("model.safetensors.index.json".to_string(), index.to_vec());
    let setup = Setup::of(repo);
    let snapshot = setup.get().unwrap();
    let all = [
        "1_Pooling",
        "2_Dense",
        "a-1.safetensors",
        "a-2.safetensors",
        "config.json",
        "model.safetensors.index.json",
        "modules.json",
        "sentence_bert_config.json",
        "vocab.txt",
    ];
    assert_eq!(files_below(&snapshot), all);
    assert_eq!(files_below(&snapshot.join("2_Dense")), ["config.json", "model.safetensors"]);
    assert_eq!(fs::read(snapshot.join("2_Dense/config.json")).unwrap(), b"2_Dense/config.json");
}

#[test]
fn the_whole_model_may_be_in_a_folder() {
    let names = ["modules.json", "0_BERT/config.json", "0_BERT/model.safetensors", "0_BERT/vocab.txt"];
    let mut repo = Repo::new(&[]);
    repo.files = names.iter().map(|name| ((*name).to_string(), name.as_bytes().to_vec())).collect();
    let mut setup = Setup::of(repo);
    let snapshot = setup.get().unwrap();
    assert_eq!(files_below(&snapshot.join("0_BERT")), ["config.json", "model.safetensors", "vocab.txt"]);
    setup.offline = true;
    assert_eq!(setup.get().unwrap(), snapshot);
}

#[test]
fn one_gguf_file_with_all_its_parts() {
    let file = |n: &str| (n.to_string(), n.as_bytes().to_vec());
    let mut repo = Repo::new(&[]);
    let names = ["q8.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "half-00001-of-00002.gguf"];
    repo.files = names.iter().map(|n| file(n)).collect();
    let setup = Setup::of(repo);
    let resolve = |source: &str| setup.hub().resolve(source, &Wanted::Model);
    let one = resolve("org/model:q8.gguf").unwrap();
    assert_eq!(fs::read(&one).unwrap(), b"q8.gguf");
    assert_eq!(files_below(one.parent().unwrap()), ["q8.gguf"]);
    let before = setup.server.requests().len();
    resolve("org/model:q8.gguf").unwrap();
    assert_eq!(setup.server.requests().len(), before);
    let split = resolve("org/model:big-00001-of-00002.gguf").unwrap();
    assert!(split.with_file_name("big-00002-of-00002.gguf").is_file());
    for (source, hint) in [
        ("org/model:absent.gguf", "it has big-00001"),
        ("org/model:half-00001-of-00002.gguf", "half-00002-of-00002.gguf"),
        ("org/model", "after a colon"),
    ] {
        let error = resolve(source).unwrap_err().to_string();
        assert!(error.contains(hint), "{source}: {error}");
    }
}

#[test]
fn repositories_without_what_is_wanted_say_what_they_have() {
    let setup = Setup::of(Repo::new(&[("config.json", vec![b'{', b'}']), ("pytorch_model.bin", vec![])]));
    let error = setup.get().unwrap_err().to_string();
    assert!(error.contains("pickle") && error.contains("pytorch_model.bin"), "{error}");
    let adapter = Repo::new(&[("adapter_config.json", vec![1]), ("adapter_model.safetensors", vec![2])]);
    let setup = Setup::of(adapter);
    assert!(setup.get().unwrap_err().to_string().contains("holds an adapter"));
    let snapshot = setup.hub().resolve(ID, &Wanted::Adapter).unwrap();
    assert_eq!(files_below(&snapshot), ["adapter_config.json", "adapter_model.safetensors"]);
    let before = setup.server.requests().len();
    setup.hub().resolve(ID, &Wanted::Adapter).unwrap();
    assert_eq!(setup.server.requests().len(), before);
    let setup = Setup::of(Repo::model());
    assert!(matches!(setup.hub().resolve(ID, &Wanted::Adapter), Err(Error::InvalidAdapter { .. })));
}

#[test]
fn progress_counts_every_byte() {
    let mut setup = Setup::of(Repo::model());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    setup.options.progress = Some(Arc::new(move |p| {
        log.lock().unwrap().push((p.file.to_string(), p.downloaded_bytes, p.total_bytes));
    }));
    setup.get().unwrap();
    let seen = seen.lock().unwrap();
    let weights: Vec<_> = seen.iter().filter(|(f, ..)| f == "model.safetensors").collect();
    assert_eq!(weights[0].1, 0);
    assert!(weights.windows(2).all(|w| w[0].1 <= w[1].1));
    assert_eq!(*weights[weights.len() - 1], ("model.safetensors".to_string(), 100_000, Some(100_000)));
}

#[test]
fn cancelling_takes_effect_while_data_trickles() {
    let repo = Repo::model();
    let mut setup = Setup::new(move |request| {
        let mut response = repo.answer(request);
        response.slow = request.path.ends_with("model.safetensors").then_some(Duration::from_millis(500));
        response
    });
    let (flag, calls) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    setup.options.cancel = Some(flag.clone());
    let (raised, at) = (flag.clone(), Arc::new(Mutex::new(None)));
    let moment = at.clone();
    setup.options.progress = Some(Arc::new(move |p| {
        if p.file == "model.safetensors" && calls.fetch_add(1, Ordering::Relaxed) == 1 {
            *moment.lock().unwrap() = Some(Instant::now());
            raised.store(true, Ordering::Relaxed);
        }
    }));
    match setup.get() {
        Err(Error::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::Interrupted),
        other => panic!("{other:?}"),
    }
    assert!(at.lock().unwrap().unwrap().elapsed() < Duration::from_millis(300));
    flag.store(false, Ordering::Relaxed);
    assert!(setup.blobs().iter().any(|b| b.ends_with(".incomplete")), "what arrived was thrown away");
}

#[test]
fn a_silent_server_counts_as_cut() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| {
        let mut response = repo.answer(request);
        if request.path.ends_with("model.safetensors") && request.earlier == 0 {
            response.slow = Some(Duration::from_secs(60));
        }
        response
    });
    let start = Instant::now();
    setup.get().unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn two_at_once_download_once() {
    let repo = Repo::model();
    let setup = Setup::new(move |request| {
        let mut response = repo.answer(request);
        response.slow = request.path.ends_with("model.safetensors").then_some(Duration::from_millis(5));
        response
    });
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..3).map(|_| scope.spawn(|| setup.get().unwrap())).collect();
        for handle in handles {
            let snapshot = handle.join().unwrap();
            assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), Repo::model().weights());
        }
    });
    assert_eq!(setup.blobs().len(), 3);
}
