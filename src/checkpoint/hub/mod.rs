//! Models by name: local paths, and repositories of the Hugging Face hub through its standard cache.
//!
//! The cache is the one that `huggingface_hub` keeps, in both directions. A snapshot that was downloaded completely is
//! used again without any network traffic, also for a branch; [`HubOptions::refresh`] asks the hub whether the branch has
//! moved. It deliberately does not upload, and it never fetches more than a model needs.
//!
//! Sources: the hub's HTTP API and the cache layout as described at
//! <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

mod cache;
mod client;
mod download;
mod env;
mod select;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use crate::{Error, Result};
use cache::Repository;
use client::{Client, Failure};

pub use env::HubEnv;
pub use select::Wanted;

/// How far a download has come; handed to [`HubOptions::progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes of this file that are on disk, including those of an earlier, interrupted download.
    pub downloaded_bytes: u64,
    /// The file's size, where the hub says it.
    pub total_bytes: Option<u64>,
}

/// Called for every chunk that arrives; must not block for long.
pub type ProgressFn = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// How a source is looked up.
#[derive(Clone, Default)]
pub struct HubOptions {
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
    /// The cache's directory instead of the environment's.
    pub cache_dir: Option<PathBuf>,
    /// An access token instead of the environment's.
    pub token: Option<String>,
    /// Never touch the network.
    pub local_files_only: bool,
    /// Ask the hub whether a branch has moved even when the cache is complete.
    pub refresh: bool,
    /// Receives the progress of downloads.
    pub progress: Option<ProgressFn>,
    /// Set to `true` by another thread to stop; the call then returns [`Error::Io`] of kind `Interrupted`.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("local_files_only", &self.local_files_only)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}

/// Finds `source` with the settings of the process's environment; see [`Hub::resolve`].
pub fn resolve(source: &str, options: &HubOptions, wanted: &Wanted) -> Result<PathBuf> {
    Hub::new(HubEnv::from_process(), options.clone()).resolve(source, wanted)
}

/// One configured way to the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    env: HubEnv,
    options: HubOptions,
}

impl Hub {
    /// A hub with an explicit environment, which tests and embedding programs give.
    pub fn new(env: HubEnv, options: HubOptions) -> Self {
        Self { env, options }
    }

    /// The directory (or, for a GGUF file, the file) that holds `source`.
    ///
    /// `source` is an existing path, `"name"` or `"org/name"` on the hub, or `"org/name:file.gguf"`. What is missing
    /// from the cache is downloaded. Errors: [`Error::ModelNotFound`] where neither disk nor hub has it,
    /// [`Error::InvalidCheckpoint`] where the repository holds no usable weights or a download's hash is wrong,
    /// [`Error::Io`] for the disk, a network that breaks down in mid-download, and cancellation.
    pub fn resolve(&self, source: &str, wanted: &Wanted) -> Result<PathBuf> {
        let local = Path::new(source);
        if local.exists() {
            return Ok(local.to_path_buf());
        }
        let (id, file) = match source.split_once(':') {
            Some((id, file)) => (id, Some(file)),
            None => (source, None),
        };
        if !select::is_repository_id(id) {
            return Err(Error::ModelNotFound {
                name: source.to_string(),
                reason: "there is no such file or directory, and it is not the name of a repository \
                         (\"org/name\" or \"org/name:file.gguf\")"
                    .to_string(),
            });
        }
        match file {
            Some(file) => {
                let snapshot = self.snapshot(id, &Wanted::File(file.to_string()))?;
                Ok(snapshot.join(file))
            }
            None => self.snapshot(id, wanted),
        }
    }

    /// The snapshot directory of repository `id`, complete for `wanted`.
    pub fn snapshot(&self, id: &str, wanted: &Wanted) -> Result<PathBuf> {
        if !select::is_repository_id(id) {
            return Err(Error::argument("id", id, "the name of a repository, \"org/name\""));
        }
        let revision = self.options.revision.as_deref().unwrap_or("main");
        if !select::is_revision(revision) {
            return Err(Error::argument("revision", revision, "a branch, tag or commit"));
        }
        if let Wanted::File(file) = wanted {
            select::check_name(file).map_err(|reason| not_found(id, reason))?;
        }
        let root = self.options.cache_dir.as_ref().unwrap_or(&self.env.cache_dir);
        let repository = Repository::new(root, id);
        let cached = repository.commit_of(revision);
        let fixed = cached.as_deref() == Some(revision);
        if let Some(commit) = &cached
            && (fixed || !self.options.refresh)
            && repository.proven(commit, wanted)
        {
            return Ok(repository.snapshot(commit));
        }
        if self.options.local_files_only || self.env.offline {
            return offline(id, revision, &repository, cached.as_deref(), wanted);
        }
        match self.download(id, revision, &repository, cached.as_deref(), wanted) {
            Ok(path) => Ok(path),
            Err(fault) => fall_back(id, revision, &repository, wanted, fault),
        }
    }

    fn download(
        &self,
        id: &str,
        revision: &str,
        repository: &Repository,
        cached: Option<&str>,
        wanted: &Wanted,
    ) -> Result<PathBuf, Fault> {
        let usable = cached.is_some_and(|commit| repository.usable(commit, wanted).is_ok());
        let client = Client::new(&self.env, &self.options).map_err(Fault::Fatal)?;
        // With a fall-back at hand nobody should wait for a network that is not there.
        let attempts = if usable { 1 } else { client::ATTEMPTS };
        let (commit, listing) = list(&client, id, revision, attempts)?;
        let fetch =
            download::Fetch { client: &client, repository, id, commit: &commit, options: &self.options };
        let snapshot = repository.snapshot(&commit);
        let plan = wanted.small_files(&listing).map_err(|p| Fault::Fatal(unusable(id, wanted, p)))?;
        fetch.all(&plan)?;
        let large = wanted.large_files(&listing, &snapshot).map_err(|e| match e {
            select::Fault::Repository(problem) => Fault::Fatal(unusable(id, wanted, problem)),
            select::Fault::Other(error) => Fault::Fatal(error),
        })?;
        fetch.all(&large)?;
        let files: Vec<String> = plan.into_iter().chain(large).collect();
        repository.record(&commit, wanted, &files).map_err(Fault::Fatal)?;
        // Last, so that a branch keeps its old, complete snapshot when the download of a new one fails.
        repository.set_reference(revision, &commit).map_err(Fault::Fatal)?;
        Ok(snapshot)
    }
}

/// What stopped a download.
enum Fault {
    /// The hub did not answer, or refused; a cached copy may still serve.
    Hub(Failure),
    /// Anything that a cached copy does not mend.
    Fatal(Error),
}

fn list(client: &Client, id: &str, revision: &str, attempts: u32) -> Result<(String, Vec<String>), Fault> {
    let path = format!("/api/models/{id}/revision/{}", client::encode(revision, false));
    let body = client.json(&path, attempts).map_err(Fault::Hub)?;
    let commit = body.get("sha").and_then(Value::as_str).filter(|sha| select::is_object_name(sha));
    let Some(commit) = commit else {
        return Err(Fault::Hub(Failure::Protocol(format!("{path} names no commit"))));
    };
    let mut files = Vec::new();
    for sibling in body.get("siblings").and_then(Value::as_array).into_iter().flatten() {
        let Some(name) = sibling.get("rfilename").and_then(Value::as_str) else { continue };
        // A name that would leave the snapshot is never written, whoever asks for it.
        match select::check_name(name) {
            Ok(()) => files.push(name.to_string()),
            Err(reason) => log::warn!("{id}: ignoring a file of the repository: {reason}"),
        }
    }
    Ok((commit.to_string(), files))
}

/// Without a network: whatever is cached, if it can be loaded at all.
fn offline(
    id: &str,
    revision: &str,
    repository: &Repository,
    cached: Option<&str>,
    wanted: &Wanted,
) -> Result<PathBuf> {
    let missing = match cached {
        None => format!("revision {revision:?} is not in the cache at {}", repository.root().display()),
        Some(commit) => match repository.usable(commit, wanted) {
            Ok(()) => return Ok(repository.snapshot(commit)),
            Err(missing) => format!("the cache at {} lacks {missing}", repository.root().display()),
        },
    };
    let remedy =
        "the network is switched off (local_files_only or HF_HUB_OFFLINE); allow it once to download";
    Err(not_found(id, format!("{missing}, and {remedy}")))
}

/// The hub could not be asked: use the cache with a warning, or report the failure.
fn fall_back(
    id: &str,
    revision: &str,
    repository: &Repository,
    wanted: &Wanted,
    fault: Fault,
) -> Result<PathBuf> {
    let failure = match fault {
        Fault::Fatal(error) => return Err(error),
        Fault::Hub(Failure::Cancelled) => return Err(cancelled(id)),
        Fault::Hub(failure) => failure,
    };
    if let Some(commit) = repository.commit_of(revision)
        && repository.usable(&commit, wanted).is_ok()
    {
        log::warn!("{id}: using the cached copy, because {failure}");
        return Ok(repository.snapshot(&commit));
    }
    Err(failure.into_error(id, revision))
}

fn not_found(id: &str, reason: impl Into<String>) -> Error {
    Error::ModelNotFound { name: id.to_string(), reason: reason.into() }
}

fn unusable(id: &str, wanted: &Wanted, problem: String) -> Error {
    match wanted {
        Wanted::File(_) => not_found(id, problem),
        Wanted::Model => Error::checkpoint(id, problem),
        // The codes that directories have for the same.
        Wanted::Adapter if problem.contains("adapter_config.json") => {
            Error::adapter(id, "missing_config", problem)
        }
        Wanted::Adapter => Error::adapter(id, "missing_weights", problem),
    }
}

fn cancelled(id: &str) -> Error {
    Error::io(id, std::io::Error::new(std::io::ErrorKind::Interrupted, "the download was cancelled"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_that_lack_files_have_the_codes_of_directories() {
        let code = |problem: String| match unusable("org/name", &Wanted::Adapter, problem) {
            Error::InvalidAdapter { code, .. } => code,
            other => panic!("{other}"),
        };
        assert_eq!(code(Wanted::Adapter.small_files(&[]).unwrap_err()), "missing_config");
        assert_eq!(code("the repository has no adapter_model.safetensors".into()), "missing_weights");
    }
}
