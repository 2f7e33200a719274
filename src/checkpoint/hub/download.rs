//! One file of a repository into the cache: resumed, checked, then put in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::Repository;
use super::client::{ATTEMPTS, Client, Failure, Head, Reply};
use super::{Fault, HubOptions, Progress, select};
use crate::Error;

/// Downloads files of one commit.
pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client,
    pub(super) repository: &'a Repository,
    pub(super) id: &'a str,
    pub(super) commit: &'a str,
    pub(super) options: &'a HubOptions,
}

impl Fetch<'_> {
    pub(super) fn all(&self, names: &[String]) -> Result<(), Fault> {
        names.iter().try_for_each(|name| self.one(name))
    }

    fn one(&self, name: &str) -> Result<(), Fault> {
        if self.repository.snapshot(self.commit).join(name).is_file() {
            return Ok(());
        }
        let url = self.client.file_url(self.id, self.commit, name);
        let mut failed = 0;
        let reply = loop {
            match self.client.get(&url, None) {
                Ok(reply) => break reply,
                Err(failure) => self.client.pause(failure, &mut failed, ATTEMPTS).map_err(Fault::Hub)?,
            }
        };
        let etag = etag_of(&reply.head).map_err(Fault::Hub)?;
        let blob = self.repository.blob(&etag);
        if !blob.is_file() {
            let _lock = self.lock(&etag)?;
            // Somebody else may have finished it while we waited.
            if !blob.is_file() {
                let partial = self.repository.blob(&format!("{etag}.incomplete"));
                let transfer = Transfer { fetch: self, name, url, etag: &etag, partial };
                transfer.run(reply, &blob)?;
            }
        }
        self.repository.link(self.commit, name, &etag).map_err(Fault::Fatal)
    }

    fn lock(&self, etag: &str) -> Result<File, Fault> {
        let mut told = false;
        loop {
            if let Some(lock) = self.repository.try_lock(etag).map_err(Fault::Fatal)? {
                return Ok(lock);
            }
            if !told {
                log::info!("{}: waiting for another process that downloads the same file", self.id);
                told = true;
            }
            self.client.sleep(Duration::from_millis(50)).map_err(Fault::Hub)?;
        }
    }
}

fn etag_of(head: &Head) -> Result<String, Failure> {
    match &head.etag {
        Some(etag) if select::is_object_name(etag) => Ok(etag.clone()),
        Some(etag) => Err(Failure::Protocol(format!("the etag {etag:?} cannot be a file name"))),
        None => Err(Failure::Protocol("a file without an etag".to_string())),
    }
}

/// One blob on its way.
struct Transfer<'a> {
    fetch: &'a Fetch<'a>,
    name: &'a str,
    url: String,
    etag: &'a str,
    partial: PathBuf,
}

impl Transfer<'_> {
    fn run(&self, first: Reply<'_>, blob: &Path) -> Result<(), Fault> {
        let client = self.fetch.client;
        let mut reply = Some(first);
        let mut failed = 0;
        // Bytes from an earlier run may be damaged without it being this download's fault.
        let mut second_chance = self.size_on_disk() > 0;
        loop {
            let before = self.size_on_disk();
            match self.attempt(reply.take()) {
                Ok(()) => {}
                Err(Fault::Hub(failure)) => {
                    if self.size_on_disk() > before {
                        failed = 0;
                    }
                    client.pause(failure, &mut failed, ATTEMPTS).map_err(|f| self.gave_up(f))?;
                    continue;
                }
                Err(fatal) => return Err(fatal),
            }
            match self.verify() {
                Ok(()) => break,
                Err(Fault::Fatal(error))
                    if second_chance && matches!(error, Error::InvalidCheckpoint { .. }) =>
                {
                    log::warn!("{error}; starting over");
                    second_chance = false;
                }
                Err(fault) => return Err(fault),
            }
        }
        fs::rename(&self.partial, blob).map_err(|e| Fault::Fatal(Error::io(blob, e)))
    }

    /// Brings the partial file to its full size, or fails with what has arrived kept.
    fn attempt(&self, reply: Option<Reply<'_>>) -> Result<(), Fault> {
        let client = self.fetch.client;
        let have = self.size_on_disk();
        let mut reply = match reply {
            Some(reply) if have == 0 || reply.head.size == Some(have) => reply,
            // The first answer was for the whole file; ask for the rest only.
            _ => client.get(&self.url, (have > 0).then_some(have)).map_err(Fault::Hub)?,
        };
        let head = reply.head.clone();
        if etag_of(&head).map_err(Fault::Hub)? != self.etag {
            return Err(Fault::Hub(Failure::Protocol(format!("{} changed during its download", self.name))));
        }
        if have > 0 && head.size == Some(have) {
            return Ok(());
        }
        let resumed = head.status == 206 && head.range_start == Some(have);
        if head.status == 416 || head.status == 206 && !resumed {
            self.discard()?;
            return Err(Fault::Hub(Failure::Network("the rest of the file is not to be had".to_string())));
        }
        let mut file = self.open(resumed)?;
        let mut done = if resumed { have } else { 0 };
        self.report(done, head.size);
        while let Some(chunk) = reply.chunk().map_err(Fault::Hub)? {
            done += chunk.len() as u64;
            if head.size.is_some_and(|size| done > size) {
                self.discard()?;
                return Err(Fault::Hub(Failure::Protocol(format!("{} is longer than announced", self.name))));
            }
            file.write_all(&chunk).map_err(|e| self.io(e))?;
            self.report(done, head.size);
        }
        match head.size {
            Some(size) if done < size => Err(Fault::Hub(Failure::Network(format!(
                "the connection was cut after {done} of {size} bytes"
            )))),
            _ => file.sync_all().map_err(|e| self.io(e)),
        }
    }

    /// Compares the content with its hash, which is the etag of large files; a wrong file is removed.
    fn verify(&self) -> Result<(), Fault> {
        let is_sha256 = self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_sha256 {
            return Ok(());
        }
        let mut file = File::open(&self.partial).map_err(|e| self.io(e))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            self.fetch.client.check().map_err(Fault::Hub)?;
            match file.read(&mut buffer).map_err(|e| self.io(e))? {
                0 => break,
                read => hash.update(&buffer[..read]),
            }
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found.eq_ignore_ascii_case(self.etag) {
            return Ok(());
        }
        self.discard()?;
        let problem = format!(
            "the download of {} has sha256 {found}, expected {}; it was deleted, try again",
            self.name, self.etag
        );
        Err(Fault::Fatal(Error::checkpoint(self.fetch.id, problem)))
    }

    fn open(&self, resumed: bool) -> Result<File, Fault> {
        let directory = self.partial.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(|e| Fault::Fatal(Error::io(directory, e)))?;
        let mut options = OpenOptions::new();
        if resumed {
            options.append(true);
        } else {
            options.write(true).create(true).truncate(true);
        }
        options.open(&self.partial).map_err(|e| self.io(e))
    }

    fn size_on_disk(&self) -> u64 {
        fs::metadata(&self.partial).map_or(0, |m| m.len())
    }

    fn discard(&self) -> Result<(), Fault> {
        match fs::remove_file(&self.partial) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.io(e)),
            _ => Ok(()),
        }
    }

    fn report(&self, downloaded_bytes: u64, total_bytes: Option<u64>) {
        if let Some(progress) = &self.fetch.options.progress {
            progress(Progress { file: self.name, downloaded_bytes, total_bytes });
        }
    }

    fn io(&self, source: io::Error) -> Fault {
        Fault::Fatal(Error::io(&self.partial, source))
    }

    /// The network did not come back; what has arrived stays for the next time.
    fn gave_up(&self, failure: Failure) -> Fault {
        match failure {
            Failure::Network(reason) => {
                let what = format!("{reason}; run again to continue where it stopped");
                Fault::Fatal(Error::io(format!("{}/{}", self.fetch.id, self.name), io::Error::other(what)))
            }
            other => Fault::Hub(other),
        }
    }
}
