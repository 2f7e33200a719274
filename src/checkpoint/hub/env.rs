//! The environment variables of the hub, read in one place.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fmt, fs};

/// Where the hub and its cache are, and how patient to be.
#[derive(Clone)]
pub struct HubEnv {
    /// The hub's address, `HF_ENDPOINT` or `https://huggingface.co`.
    pub endpoint: String,
    /// The cache, `HF_HUB_CACHE` or `$HF_HOME/hub` or `~/.cache/huggingface/hub`.
    pub cache_dir: PathBuf,
    /// The token that is sent when none is given: `HF_TOKEN` or the file `$HF_HOME/token`; `None` when
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`): never touch the network.
    pub offline: bool,
    /// A PEM file of root certificates, `SSL_CERT_FILE`, instead of the built-in ones.
    pub certificates: Option<PathBuf>,
    /// Whether `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are honoured.
    pub use_proxy: bool,
    /// The first pause before a request is repeated; later ones double.
    pub retry_delay: Duration,
    /// A connection without any data for this long counts as cut (`HF_HUB_DOWNLOAD_TIMEOUT`, in seconds).
    pub stall_timeout: Duration,
}

impl fmt::Debug for HubEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubEnv")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubEnv {
    /// The public hub with a cache at `cache_dir`: no token, no proxy, nothing read from the environment.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_string(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            certificates: None,
            use_proxy: false,
            retry_delay: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
        }
    }

    /// The settings of this process.
    pub fn from_process() -> Self {
        Self::from_lookup(
            |name| env::var(name).ok().filter(|value| !value.trim().is_empty()),
            env::home_dir(),
        )
    }

    fn from_lookup(var: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let home = home.unwrap_or_else(|| PathBuf::from("."));
        let path = |name: &str| var(name).map(|value| expand(&value, &home));
        let hf_home = path("HF_HOME").unwrap_or_else(|| {
            path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let mut settings = Self::new(cache.unwrap_or_else(|| hf_home.join("hub")));
        if let Some(endpoint) = var("HF_ENDPOINT") {
            settings.endpoint = endpoint.trim().trim_end_matches('/').to_string();
        }
        if !var("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v)) {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
            let saved = || fs::read_to_string(file).ok();
            settings.token =
                var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(saved).and_then(clean);
        }
        settings.offline =
            var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE")).is_some_and(|v| is_true(&v));
        settings.certificates = path("SSL_CERT_FILE");
        settings.use_proxy = true;
        if let Some(seconds) = var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|v| v.trim().parse::<u32>().ok()) {
            settings.stall_timeout = Duration::from_secs(u64::from(seconds.max(1)));
        }
        settings
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str())
}

fn clean(token: String) -> Option<String> {
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_string())
}

fn expand(value: &str, home: &Path) -> PathBuf {
    match value.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> HubEnv {
        let pairs: Vec<(String, String)> =
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let var = move |name: &str| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        HubEnv::from_lookup(var, Some(PathBuf::from("/home/me")))
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |pairs| read(pairs).cache_dir;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/x")]), Path::new("/home/me/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
    }

    #[test]
    fn the_token_comes_from_the_variable_or_the_file() {
        let room = tempfile::tempdir().unwrap();
        fs::write(room.path().join("token"), "hf_file\n").unwrap();
        let home = room.path().to_str().unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).token.as_deref(), Some("hf_file"));
        assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN", " hf_var ")]).token.as_deref(), Some("hf_var"));
        let hidden = read(&[("HF_TOKEN", "hf_var"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(hidden.token, None);
        let shown = format!("{:?}", read(&[("HF_TOKEN", "hf_secret")]));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn switches_and_addresses() {
        assert!(!read(&[]).offline && !read(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(
            read(&[("HF_HUB_OFFLINE", "true")]).offline && read(&[("TRANSFORMERS_OFFLINE", "1")]).offline
        );
        assert_eq!(read(&[("HF_ENDPOINT", "http://hub.local/")]).endpoint, "http://hub.local");
        assert_eq!(read(&[("HF_HUB_DOWNLOAD_TIMEOUT", "5")]).stall_timeout, Duration::from_secs(5));
    }
}
