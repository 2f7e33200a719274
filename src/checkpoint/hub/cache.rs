//! The standard cache: `models--org--name/{refs,blobs,snapshots}`.
//!
//! `refs/REVISION` holds a commit, `blobs/ETAG` holds bytes, `snapshots/COMMIT/NAME` links to a blob. On top of that
//! layout, `.candlewick/COMMIT.KIND.json` lists what a finished download consists of; without it nobody could tell a
//! small repository from a half-downloaded one unless the hub is asked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::select::{self, Wanted};
use crate::checkpoint::{AtomicFile, read_json, write_json};
use crate::{Error, Result};

/// One repository's part of the cache.
#[derive(Debug)]
pub(super) struct Repository {
    root: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// `id` has been validated, so that it names one directory below `cache`.
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The commit that a branch, tag or commit stands for, as far as the cache knows.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if let Ok(commit) = fs::read_to_string(self.root.join("refs").join(revision)) {
            let commit = commit.trim();
            // Other tools write what they like here; a name that is a snapshot's stands for it.
            let is_snapshot =
                !commit.is_empty() && !commit.contains(['/', '\\', '.']) && self.snapshot(commit).is_dir();
            return (select::is_object_name(commit) || is_snapshot).then(|| commit.to_string());
        }
        (select::is_object_name(revision) && self.snapshot(revision).is_dir()).then(|| revision.to_string())
    }

    pub(super) fn set_reference(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let mut file = AtomicFile::create(self.root.join("refs").join(revision))?;
        file.write(commit.as_bytes())?;
        file.commit()
    }

    fn record_path(&self, commit: &str, wanted: &Wanted) -> Option<PathBuf> {
        let kind = match wanted {
            Wanted::Model => "model",
            Wanted::Adapter => "adapter",
            Wanted::File(_) => return None,
        };
        Some(self.root.join(".candlewick").join(format!("{commit}.{kind}.json")))
    }

    /// Remembers what a complete download of `wanted` consists of.
    pub(super) fn record(&self, commit: &str, wanted: &Wanted, files: &[String]) -> Result<()> {
        match self.record_path(commit, wanted) {
            Some(path) => write_json(path, &json!(files)),
            None => Ok(()),
        }
    }

    /// Whether everything the hub has for `wanted` is known to be here.
    pub(super) fn proven(&self, commit: &str, wanted: &Wanted) -> bool {
        let Some(path) = self.record_path(commit, wanted) else {
            return self.usable(commit, wanted).is_ok();
        };
        let snapshot = self.snapshot(commit);
        let Ok(Value::Array(files)) = read_json(path) else {
            // Another program's download: weights come last there too, and a tokenizer before them.
            let has_tokenizer = *wanted != Wanted::Model || snapshot.join("tokenizer.json").is_file();
            return has_tokenizer && self.usable(commit, wanted).is_ok();
        };
        let present = |file: &Value| {
            file.as_str().is_some_and(|f| select::check_name(f).is_ok() && snapshot.join(f).is_file())
        };
        !files.is_empty() && files.iter().all(present)
    }

    /// Whether enough is here to try; else what is missing.
    pub(super) fn usable(&self, commit: &str, wanted: &Wanted) -> Result<(), String> {
        wanted.missing_from(&self.snapshot(commit))
    }

    /// Links `snapshots/COMMIT/NAME` to a blob; copies where the file system has no links.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(name);
        let directory = pointer.parent().unwrap_or(&self.root);
        fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        if pointer.is_file() {
            return Ok(());
        }
        // A dangling link, left when somebody removed the blob.
        let _ = fs::remove_file(&pointer);
        let up = "../".repeat(2 + name.matches('/').count());
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer) {
            Ok(()) => Ok(()),
            Err(_) if pointer.is_file() => Ok(()),
            Err(_) => {
                let copy = directory.join(format!(".{etag}.{}.tmp", std::process::id()));
                let placed = fs::copy(self.blob(etag), &copy).and_then(|_| fs::rename(&copy, &pointer));
                placed.map_err(|e| {
                    let _ = fs::remove_file(&copy);
                    Error::io(&pointer, e)
                })
            }
        }
    }

    /// The lock that `huggingface_hub` takes for the same blob; `None` while somebody else holds it.
    ///
    /// It is advice only: file systems without locks are served too, because blobs appear by rename.
    pub(super) fn try_lock(&self, etag: &str) -> Result<Option<File>> {
        fs::create_dir_all(&self.locks).map_err(|e| Error::io(&self.locks, e))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).open(&path).map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => {
                log::debug!("{}: no lock on this file system: {e}", path.display());
                Ok(Some(file))
            }
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    let target = target.to_string_lossy().replace('/', "\\");
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
