//! Checkpoints of a run below one directory: the latest few, and the best adapter.
//!
//! A checkpoint is written under a hidden name and renamed when it is complete, so one that can be seen is whole.

use std::fs;
use std::path::{Path, PathBuf};

use super::Trainer;
use crate::adapter::AdapterFile;
use crate::{Error, Result};

const PREFIX: &str = "checkpoint-";
const BEST: &str = "best";

/// The directory of one run.
#[derive(Debug)]
pub(super) struct Checkpoints {
    directory: PathBuf,
    keep_last: usize,
}

impl Checkpoints {
    pub(super) fn new(directory: PathBuf, keep_last: usize) -> Self {
        Self { directory, keep_last }
    }

    /// Writes `checkpoint-<step>` and removes the oldest ones.
    pub(super) fn save(&self, trainer: &Trainer, step: usize) -> Result<()> {
        self.replace(&format!("{PREFIX}{step}"), |directory| trainer.save_state(directory))?;
        let mut all = list(&self.directory)?;
        let surplus = all.len().saturating_sub(self.keep_last);
        for (_, old) in all.drain(..surplus) {
            fs::remove_dir_all(&old).map_err(|error| Error::io(&old, error))?;
        }
        Ok(())
    }

    /// Writes `best`.
    pub(super) fn save_best(&self, adapter: &AdapterFile) -> Result<()> {
        self.replace(BEST, |directory| adapter.write(directory))
    }

    /// Writes a directory as a whole, in the place of an earlier one.
    fn replace(&self, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let (target, new, old) = (
            self.directory.join(name),
            self.directory.join(format!(".{name}.new")),
            self.directory.join(format!(".{name}.old")),
        );
        remove(&new)?;
        remove(&old)?;
        write(&new)?;
        if target.exists() {
            fs::rename(&target, &old).map_err(|error| Error::io(&target, error))?;
        }
        fs::rename(&new, &target).map_err(|error| Error::io(&target, error))?;
        remove(&old)
    }
}

/// Removes what an interrupted run may have left.
fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(directory, error)),
        _ => Ok(()),
    }
}

/// The checkpoints below `directory`, oldest first.
fn list(directory: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = fs::read_dir(directory).map_err(|error| Error::io(directory, error))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(directory, error))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        found.extend(step.filter(|_| entry.path().is_dir()).map(|step| (step, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// `directory` itself, or the latest checkpoint below it if it is the directory of a run.
pub(super) fn latest(directory: &Path) -> Result<PathBuf> {
    if directory.join(super::state::FILE).is_file() {
        return Ok(directory.to_path_buf());
    }
    match list(directory)?.pop() {
        Some((_, checkpoint)) => Ok(checkpoint),
        None => {
            let problem = format!("there is neither {} nor a checkpoint to resume", super::state::FILE);
            Err(Error::checkpoint(directory, problem))
        }
    }
}
