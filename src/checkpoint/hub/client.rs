//! HTTP as the hub needs it: redirects without leaking the token, retries, stalls and cancellation.
//!
//! Requests run on a thread of their own that hands chunks over; the caller waits in short steps, so that cancelling
//! takes effect while the network is silent.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use std::{fmt, fs, thread};

use serde_json::Value;
use ureq::Agent;
use ureq::http::HeaderMap;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::{HubEnv, HubOptions};
use crate::{Error, Result};

/// How often a request is made before giving up.
pub(super) const ATTEMPTS: u32 = 5;
const MAX_REDIRECTS: usize = 10;
const MAX_PAUSE: Duration = Duration::from_secs(10);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// How soon a raised cancel flag is seen.
const STEP: Duration = Duration::from_millis(20);
const CHUNK: usize = 256 << 10;
const MAX_LISTING_BYTES: usize = 64 << 20;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    Cancelled,
    /// The server answered with an error status.
    Status {
        code: u16,
        message: String,
        retry_after: Option<Duration>,
    },
    /// No answer, or one that broke off.
    Network(String),
    /// An answer that makes no sense; asking again does not help.
    Protocol(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the request was cancelled"),
            Self::Status { code, message, .. } if message.is_empty() => write!(f, "the hub answered {code}"),
            Self::Status { code, message, .. } => write!(f, "the hub answered {code} ({message})"),
            Self::Network(reason) => write!(f, "the hub could not be reached: {reason}"),
            Self::Protocol(reason) => write!(f, "the hub's answer is not understood: {reason}"),
        }
    }
}

impl Failure {
    fn may_pass(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status { code, .. } => matches!(code, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Cancelled | Self::Protocol(_) => false,
        }
    }

    /// The error for the caller, with what would help.
    pub(super) fn into_error(self, id: &str, revision: &str) -> Error {
        let help = match &self {
            Self::Cancelled => return super::cancelled(id),
            Self::Status { code: 401, .. } => {
                "check the name; a private or gated repository needs an access token (token=…, or HF_TOKEN)"
                    .to_string()
            }
            Self::Status { code: 403, .. } => format!(
                "access is restricted: accept the model's conditions on its page (https://huggingface.co/{id}) and use \
                 a token that may read it (token=…, or HF_TOKEN)"
            ),
            Self::Status { code: 404, .. } => format!(
                "check the name and the revision {revision:?}; there is also no local directory of this name"
            ),
            Self::Status { code: 429, .. } => "too many requests; wait, or use an access token".to_string(),
            _ => "check the network, or load from a local directory".to_string(),
        };
        super::not_found(id, format!("{self}; {help}"))
    }
}

/// What the headers of an answer say.
#[derive(Debug, Default, Clone)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    /// Size of the body of this answer.
    pub(super) length: Option<u64>,
    /// First byte of a partial answer.
    pub(super) range_start: Option<u64>,
    /// Size of the whole file, where a partial answer or the hub says it.
    pub(super) size: Option<u64>,
    message: String,
    retry_after: Option<Duration>,
}

enum Message {
    Head(Head),
    Data(Vec<u8>),
    End,
    Failed(String),
}

/// An answer whose body is still arriving.
pub(super) struct Reply<'a> {
    pub(super) head: Head,
    messages: Receiver<Message>,
    client: &'a Client,
}

impl Reply<'_> {
    /// The next chunk, `None` at the end.
    pub(super) fn chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.client.wait(&self.messages)? {
            Message::Data(data) => Ok(Some(data)),
            Message::Failed(reason) => Err(Failure::Network(reason)),
            Message::End | Message::Head(_) => Ok(None),
        }
    }
}

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    cancel: Option<Arc<AtomicBool>>,
    retry_delay: Duration,
    stall_timeout: Duration,
}

impl Client {
    pub(super) fn new(env: &HubEnv, options: &HubOptions) -> Result<Self> {
        let patience = env.stall_timeout;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(patience))
            .timeout_connect(Some(patience.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .user_agent(concat!("candlewick/", env!("CARGO_PKG_VERSION")));
        if !env.use_proxy {
            config = config.proxy(None);
        }
        if let Some(path) = &env.certificates {
            let pem = fs::read(path).map_err(|e| Error::io(path, e))?;
            let roots = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            config = config.tls_config(TlsConfig::builder().root_certs(RootCerts::from(roots)).build());
        }
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint: env.endpoint.clone(),
            token: options.token.clone().or_else(|| env.token.clone()),
            cancel: options.cancel.clone(),
            retry_delay: env.retry_delay,
            stall_timeout: patience,
        })
    }

    /// The address of a file at a commit.
    pub(super) fn file_url(&self, id: &str, commit: &str, name: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, encode(name, true))
    }

    /// A JSON document below the endpoint, asked for at most `attempts` times.
    pub(super) fn json(&self, path: &str, attempts: u32) -> Result<Value, Failure> {
        let url = format!("{}{path}", self.endpoint);
        let mut failed = 0;
        loop {
            match self.body(&url) {
                Ok(body) => {
                    return serde_json::from_slice(&body)
                        .map_err(|e| Failure::Protocol(format!("{path}: {e}")));
                }
                Err(failure) => self.pause(failure, &mut failed, attempts)?,
            }
        }
    }

    fn body(&self, url: &str) -> Result<Vec<u8>, Failure> {
        let mut reply = self.get(url, None)?;
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk()? {
            if body.len() + chunk.len() > MAX_LISTING_BYTES {
                return Err(Failure::Protocol(format!("{url} is larger than {MAX_LISTING_BYTES} bytes")));
            }
            body.extend(chunk);
        }
        match reply.head.length {
            Some(length) if length != body.len() as u64 => {
                Err(Failure::Network(format!("the answer broke off after {} of {length} bytes", body.len())))
            }
            _ => Ok(body),
        }
    }

    /// One request, without retries; `from` asks for the rest of a file.
    pub(super) fn get(&self, url: &str, from: Option<u64>) -> Result<Reply<'_>, Failure> {
        let (sender, messages) = sync_channel(4);
        let request = Request {
            agent: self.agent.clone(),
            url: url.to_string(),
            home: origin(&self.endpoint).unwrap_or_default(),
            token: self.token.clone(),
            from,
        };
        let spawned =
            thread::Builder::new().name("candlewick-hub".to_string()).spawn(move || request.run(&sender));
        spawned.map_err(|e| Failure::Network(format!("no thread for the request: {e}")))?;
        let head = match self.wait(&messages)? {
            Message::Head(head) => head,
            Message::Failed(reason) => return Err(Failure::Network(reason)),
            Message::Data(_) | Message::End => return Err(Failure::Network("no answer".to_string())),
        };
        match head.status {
            200 | 206 | 416 => Ok(Reply { head, messages, client: self }),
            300..=399 => Err(Failure::Protocol(format!("{url}: {}", head.message))),
            code => Err(Failure::Status { code, message: head.message, retry_after: head.retry_after }),
        }
    }

    fn wait(&self, messages: &Receiver<Message>) -> Result<Message, Failure> {
        let start = Instant::now();
        // The thread has its own time limits; this one is for a resolver or proxy that ignores them.
        let limit = self.stall_timeout * 2 + Duration::from_secs(10);
        loop {
            self.check()?;
            match messages.recv_timeout(STEP) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) if start.elapsed() < limit => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failure::Network(format!("nothing for {limit:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Network("the request ended without an answer".to_string()));
                }
            }
        }
    }

    /// Fails when the cancel flag is up.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Failure::Cancelled),
            _ => Ok(()),
        }
    }

    /// Waits before the next attempt, or gives the failure back when there is none.
    pub(super) fn pause(&self, failure: Failure, failed: &mut u32, attempts: u32) -> Result<(), Failure> {
        *failed += 1;
        if !failure.may_pass() || *failed >= attempts {
            return Err(failure);
        }
        let doubled = self.retry_delay.saturating_mul(1 << (*failed - 1).min(16)).min(MAX_PAUSE);
        let pause = match &failure {
            Failure::Status { retry_after: Some(asked), .. } => (*asked).min(MAX_RETRY_AFTER),
            _ => doubled,
        };
        log::warn!("{failure}; trying again in {:.1} s", pause.as_secs_f64());
        self.sleep(pause)
    }

    pub(super) fn sleep(&self, pause: Duration) -> Result<(), Failure> {
        let end = Instant::now() + pause;
        loop {
            self.check()?;
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(STEP)),
                _ => return Ok(()),
            }
        }
    }
}

/// One request with everything its thread needs.
struct Request {
    agent: Agent,
    url: String,
    /// The only origin that may see the token.
    home: String,
    token: Option<String>,
    from: Option<u64>,
}

impl Request {
    fn run(self, sender: &SyncSender<Message>) {
        // A receiver that is gone means that nobody waits any more.
        let last = match self.transfer(sender) {
            Ok(()) => Message::End,
            Err(reason) => Message::Failed(reason),
        };
        let _ = sender.send(last);
    }

    fn transfer(&self, sender: &SyncSender<Message>) -> Result<(), String> {
        let mut url = self.url.clone();
        let mut head = Head::default();
        for _ in 0..=MAX_REDIRECTS {
            let at_home = origin(&url).is_some_and(|o| o == self.home);
            let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| at_home) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(from) = self.from {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| e.to_string())?;
            read_head(&mut head, response.status().as_u16(), response.headers(), at_home);
            if matches!(head.status, 301 | 302 | 303 | 307 | 308) {
                let target = text(response.headers(), "location").unwrap_or_default();
                let Some(next) = join(&url, &target) else {
                    head.message = format!("redirected to {target:?}, which is not allowed");
                    break;
                };
                head.message = format!("more than {MAX_REDIRECTS} redirects");
                url = next;
                continue;
            }
            if sender.send(Message::Head(head)).is_err() {
                return Ok(());
            }
            return pump(response.into_body().into_reader(), sender);
        }
        let _ = sender.send(Message::Head(head));
        Ok(())
    }
}

fn pump(mut body: impl Read, sender: &SyncSender<Message>) -> Result<(), String> {
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = match body.read(&mut chunk) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.to_string()),
        };
        if read == 0 {
            return Ok(());
        }
        chunk.truncate(read);
        if sender.send(Message::Data(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// Collects what counts over the hops: etag and size come from the hub, status and lengths from the last answer.
fn read_head(head: &mut Head, status: u16, headers: &HeaderMap, at_home: bool) {
    let number = |name: &str| text(headers, name).and_then(|v| v.trim().parse::<u64>().ok());
    head.status = status;
    head.length = number("content-length");
    head.message =
        text(headers, "x-error-message").or_else(|| text(headers, "x-error-code")).unwrap_or_default();
    head.retry_after = number("retry-after").map(Duration::from_secs);
    head.range_start = None;
    if at_home {
        head.size = number("x-linked-size").or(head.size);
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        head.etag =
            etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_string()).or(head.etag.take());
    }
    match status {
        200 => head.size = head.size.or(head.length),
        206 => {
            let range = text(headers, "content-range").unwrap_or_default();
            let (span, total) = range.trim_start_matches("bytes ").split_once('/').unwrap_or_default();
            head.range_start = span.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
            head.size = total.trim().parse().ok().or(head.size);
        }
        _ => {}
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string)
}

/// `scheme://host:port` in lower case.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    // Credentials in an address would make two hosts look alike.
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_ascii_lowercase();
    let scheme = scheme.to_ascii_lowercase();
    let default = if scheme == "https" { ":443" } else { ":80" };
    Some(format!("{scheme}://{}", host.strip_suffix(default).unwrap_or(&host)))
}

/// The target of a redirect; `None` where it leaves HTTP or falls from HTTPS to HTTP.
fn join(url: &str, target: &str) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    if target.starts_with("//") {
        return Some(format!("{scheme}:{target}"));
    }
    if target.starts_with('/') {
        return Some(format!("{}{target}", origin(url)?));
    }
    let (next, _) = target.split_once("://")?;
    let safe = next.eq_ignore_ascii_case("https") || next.eq_ignore_ascii_case("http") && scheme == "http";
    safe.then(|| target.to_string())
}

/// Percent-encodes a path component, or a whole path whose slashes stay.
pub(super) fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep_slash && byte == b'/';
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_compare_hosts_and_ports() {
        let same = |a: &str, b: &str| origin(a) == origin(b);
        assert!(same("https://Hub.co/a", "https://hub.co:443/b"));
        assert!(!same("https://hub.co", "http://hub.co") && !same("http://hub.co", "http://hub.co:8080"));
        assert!(!same("https://hub.co", "https://hub.co.evil.org"));
        assert!(!same("https://hub.co", "https://hub.co@evil.org/"));
    }

    #[test]
    fn redirects_stay_on_http_and_never_lose_encryption() {
        assert_eq!(join("https://h/a/b?c", "/d").as_deref(), Some("https://h/d"));
        assert_eq!(join("http://h/a", "//g/d").as_deref(), Some("http://g/d"));
        assert_eq!(join("http://h/a", "https://g/d").as_deref(), Some("https://g/d"));
        assert_eq!(join("https://h/a", "http://g/d"), None);
        assert_eq!(join("https://h/a", "file:///etc/passwd"), None);
        assert_eq!(join("https://h/a", ""), None);
    }

    #[test]
    fn names_are_percent_encoded() {
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü#?.json", true), "a%20b/%C3%BC%23%3F.json");
    }
}
