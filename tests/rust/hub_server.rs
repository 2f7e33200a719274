//! A small server that speaks the hub's protocol, and misbehaves on request.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const ID: &str = "org/model";

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// How many requests for this path came before.
    pub(crate) earlier: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut_after: Option<usize>,
    /// Wait before each kilobyte.
    pub(crate) slow: Option<Duration>,
}

impl Response {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut_after = Some(after);
        self
    }
}

/// The files of one repository at one commit.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    pub(crate) commit: String,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

impl Repo {
    pub(crate) fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let files = files.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
        Self { commit: COMMIT.to_string(), files }
    }

    pub(crate) fn model() -> Self {
        let weights: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        Self::new(&[
            ("config.json", b"{\"model_type\": \"test\"}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("README.md", b"not wanted".to_vec()),
            ("pytorch_model.bin", b"not wanted".to_vec()),
            ("consolidated.safetensors", b"not wanted".to_vec()),
            ("model.safetensors", weights),
        ])
    }

    pub(crate) fn weights(&self) -> &[u8] {
        &self.files["model.safetensors"]
    }

    pub(crate) fn answer(&self, request: &Request) -> Response {
        for revision in ["main", &self.commit, "v1", "refs%2Fpr%2F1"] {
            if request.path == format!("/api/models/{ID}/revision/{revision}") {
                return self.listing();
            }
        }
        let prefix = format!("/{ID}/resolve/{}/", self.commit);
        match request.path.strip_prefix(&prefix).and_then(|name| self.files.get(name).map(|b| (name, b))) {
            Some((name, body)) => self.file(name, body, request),
            None => Response::status(404).with("X-Error-Message", "Entry not found"),
        }
    }

    fn listing(&self) -> Response {
        let names: Vec<_> = self.files.keys().map(|n| serde_json::json!({"rfilename": n})).collect();
        let body = serde_json::json!({"id": ID, "sha": self.commit, "siblings": names});
        Response { body: body.to_string().into_bytes(), ..Response::status(200) }
    }

    fn file(&self, name: &str, body: &[u8], request: &Request) -> Response {
        let hash = sha256(body);
        let large = name.ends_with(".safetensors") || name.ends_with(".gguf");
        let etag = if large { hash } else { hash[..40].to_string() };
        let response = partial(body, request).with("X-Repo-Commit", &self.commit);
        if large {
            let size = body.len();
            response
                .with("X-Linked-Etag", format!("\"{etag}\""))
                .with("X-Linked-Size", size)
                .with("ETag", "\"other\"")
        } else {
            response.with("ETag", format!("W/\"{etag}\""))
        }
    }
}

/// The whole body, or what a `Range` header asks for.
pub(crate) fn partial(body: &[u8], request: &Request) -> Response {
    let from =
        request.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from < body.len() => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Response { body: body[from..].to_vec(), ..Response::status(206) }.with("Content-Range", range)
        }
        Some(_) => Response::status(416),
        None => Response { body: body.to_vec(), ..Response::status(200) },
    }
}

pub(crate) struct Server {
    pub(crate) endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (shared, answer) = (log.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (shared.clone(), answer.clone());
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { endpoint, log }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|r| r.path.contains(part)).count()
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Response,
) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok).take_while(|l| !l.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    let request = {
        let mut log = log.lock().unwrap();
        let earlier = log.iter().filter(|r| r.path == path).count();
        let request = Request { path, headers, earlier };
        log.push(request.clone());
        request
    };
    let response = answer(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", response.status);
    head += &format!("Content-Length: {}\r\n", response.body.len());
    for (name, value) in &response.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let body = &response.body[..response.cut_after.unwrap_or(response.body.len()).min(response.body.len())];
    for chunk in body.chunks(1024) {
        stream.write_all(chunk).ok()?;
        if let Some(pause) = response.slow {
            thread::sleep(pause);
        }
    }
    stream.flush().ok()
}

/// The names of what a directory holds, sorted.
pub(crate) fn files_below(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
