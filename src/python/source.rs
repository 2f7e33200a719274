//! Where a handle's files came from: opening them with progress and Ctrl-C, and opening them again elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::enter::enter_long;
use crate::Result;
use crate::checkpoint::{HubOptions, Progress};
use crate::models::LoadOptions;

/// The keywords that all kinds of models are opened with.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) name: String,
    /// The same, whatever the working directory is when it is opened again.
    pub(super) place: String,
    pub(super) device: String,
    pub(super) dtype: String,
    pub(super) revision: Option<String>,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) local_files_only: bool,
    pub(super) memory_limit_bytes: Option<u64>,
}

impl Source {
    /// Opens the files; a token is used and forgotten.
    pub(super) fn open<T: Send>(
        &self,
        py: Python<'_>,
        token: Option<String>,
        show_progress_bar: Option<bool>,
        build: impl FnOnce(&str, LoadOptions) -> Result<T> + Send,
    ) -> PyResult<T> {
        let options = LoadOptions {
            device: self.device.clone(),
            dtype: self.dtype.clone(),
            quantize: None,
            importance: None,
            memory_limit_bytes: self.memory_limit_bytes,
            bundled: Some(bundled_directory(py)?),
            hub: HubOptions {
                revision: self.revision.clone(),
                cache_dir: self.cache_dir.clone(),
                token,
                local_files_only: self.local_files_only,
                ..HubOptions::default()
            },
        };
        load(py, options, show_progress_bar, |options| build(&self.name, options))
    }

    /// The keywords, for opening again in another process.
    pub(super) fn keywords<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let keywords = PyDict::new(py);
        keywords.set_item("device", &self.device)?;
        keywords.set_item("dtype", &self.dtype)?;
        keywords.set_item("revision", &self.revision)?;
        keywords.set_item("cache_dir", &self.cache_dir)?;
        keywords.set_item("local_files_only", self.local_files_only)?;
        keywords.set_item("memory_limit_bytes", self.memory_limit_bytes)?;
        Ok(keywords)
    }
}

/// A source that is found from every working directory: the whole path of what is local.
pub(super) fn place(source: &Path) -> String {
    let whole = if source.exists() { whole(source) } else { source.to_path_buf() };
    whole.display().to_string()
}

/// The path from the root, where there is one.
pub(super) fn whole(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// The directory of the bundled model.
pub(super) fn bundled_directory(py: Python<'_>) -> PyResult<PathBuf> {
    let package: Vec<PathBuf> = py
        .import("candlewick")?
        .getattr("__path__")?
        .try_iter()?
        .map(|path| path?.extract())
        .collect::<PyResult<_>>()?;
    Ok(package.first().map(|path| path.join("tiny")).unwrap_or_default())
}

/// Bytes of each file of a download: those that are there, and all.
type Downloads = Arc<Mutex<BTreeMap<String, (u64, Option<u64>)>>>;

/// Loads with progress bars of downloads; Ctrl-C stops it.
pub(super) fn load<T: Send>(
    py: Python<'_>,
    mut options: LoadOptions,
    show_progress_bar: Option<bool>,
    build: impl FnOnce(LoadOptions) -> Result<T> + Send,
) -> PyResult<T> {
    let downloads = Downloads::default();
    let seen = Arc::clone(&downloads);
    options.hub.progress = Some(Arc::new(move |progress: Progress<'_>| {
        let state = (progress.downloaded_bytes, progress.total_bytes);
        seen.lock().unwrap_or_else(PoisonError::into_inner).insert(progress.file.to_owned(), state);
    }));
    let bars = py.import("candlewick._progress")?.getattr("Downloads")?.call1((show_progress_bar,))?;
    let work = |cancel: &Arc<_>| {
        options.hub.cancel = Some(Arc::clone(cancel));
        build(options)
    };
    let loaded = enter_long(py, work, |_| {
        let now = downloads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (file, (done, total)) in now {
            bars.call_method1("update", (file, done, total))?;
        }
        Ok(())
    });
    bars.call_method0("close")?;
    loaded
}
