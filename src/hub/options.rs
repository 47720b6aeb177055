//! Where the cache and the Hub are, by the environment variables that Hugging Face's tools read.

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach the Hub, and where what comes from it is kept.
#[derive(Clone)]
pub struct HubOptions {
    /// The directory with the cached repositories.
    pub cache: PathBuf,
    /// The address of the Hub or a mirror, without a slash at the end.
    pub endpoint: String,
    /// An access token, for repositories that are private or gated.
    pub token: Option<String>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Files that are downloaded at the same time.
    pub workers: usize,
    /// How long to wait before the first repetition of a request that failed; each later one waits twice as long.
    pub patience: Duration,
}

impl fmt::Debug for HubOptions {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// What the environment says: `HF_HUB_CACHE` and `HF_HOME` (default `~/.cache/huggingface`), `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_TOKEN_PATH` or the token that `hf auth login` stored, `HF_HUB_OFFLINE`.
    pub fn from_env() -> HubOptions {
        let var =
            |name: &str| env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let home = var("HF_HOME").map(expand).unwrap_or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(expand).unwrap_or_else(|| expand("~/.cache".into()));
            cache.join("huggingface")
        });
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map(expand);
        let token_file = var("HF_TOKEN_PATH").map(expand).unwrap_or_else(|| home.join("token"));
        let stored = || fs::read_to_string(token_file).ok().map(|token| token.trim().to_owned());
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(stored);
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = var("HF_HUB_OFFLINE").or_else(|| var("TRANSFORMERS_OFFLINE"));
        HubOptions {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()),
            offline: offline.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&&*value.to_uppercase())),
            workers: 8,
            patience: Duration::from_secs(1),
        }
    }
}

/// `~` at the start of a path is the user's home.
fn expand(path: String) -> PathBuf {
    match (path.strip_prefix('~'), env::var_os("HOME")) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            PathBuf::from(home).join(rest.trim_start_matches('/'))
        }
        _ => path.into(),
    }
}
