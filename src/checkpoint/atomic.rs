//! Files that appear whole or not at all.
//!
//! It writes beside the target and renames; it does not lock, so of two writers the last one wins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A file under construction; dropping it without [`commit`](Self::commit) leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Starts a file that will be called `target`, whose directory is created where it is missing.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref();
        let Some(name) = target.file_name() else {
            return Err(Error::argument("path", target.display(), "the path of a file"));
        };
        let directory = parent(target);
        fs::create_dir_all(directory).map_err(|e| Error::io(directory, e))?;
        loop {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
            let temporary = directory.join(hidden);
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    let writer = Some(BufWriter::with_capacity(1 << 20, file));
                    return Ok(Self { target: target.to_path_buf(), temporary, writer });
                }
                // Left by a process that died and had our id.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(temporary, e)),
            }
        }
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(writer) = self.writer.as_mut() else { return Ok(()) };
        writer.write_all(bytes).map_err(|e| Error::io(&self.target, e))
    }

    /// Puts the file in place, after its bytes have reached the disk.
    pub fn commit(mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let placed = writer.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| {
            file.sync_all()?;
            drop(file);
            fs::rename(&self.temporary, &self.target)
        });
        if let Err(source) = placed {
            // A failure to clean up is less telling than the one that is reported.
            let _ = fs::remove_file(&self.temporary);
            return Err(Error::io(&self.target, source));
        }
        sync_directory(parent(&self.target));
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename durable where the system can; some file systems refuse to sync a directory, which loses nothing.
fn sync_directory(directory: &Path) {
    if cfg!(unix)
        && let Ok(handle) = File::open(directory)
    {
        let _ = handle.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_at_commit_and_replaces_the_old_one() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("deep/er/file.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"one").unwrap();
        assert!(!path.exists());
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"two").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("file.bin");
        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_commit_that_fails_cleans_up() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"x").unwrap();
        assert!(matches!(file.commit(), Err(Error::Io { .. })));
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1);
    }
}
