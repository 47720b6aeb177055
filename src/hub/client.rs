//! Requests to the Hub: what a repository has, what a file is, and its bytes from any place on. Redirects are followed
//! here, because the token must not travel to other hosts and the Hub says what a file is before it redirects.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::config::Config;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::error::{Error, Result};

use super::cache::is_commit;
use super::options::HubOptions;
use super::problem;
use super::progress::HubProgress;
use super::repo::Repo;

/// A connection that is silent for so long is taken for broken.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest list of files that is read.
const MAX_ANSWER: u64 = 64 << 20;
/// How often a request is repeated that brings nothing.
const ATTEMPTS: u32 = 6;
/// The longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);
const MAX_REDIRECTS: usize = 8;

/// What the Hub says about a file.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub name: String,
    /// The file's name in the cache: for large files the SHA-256 of the content.
    pub etag: String,
    pub size: Option<u64>,
}

pub(super) struct Client<'a> {
    agent: Agent,
    options: &'a HubOptions,
    progress: &'a HubProgress,
    repo: &'a Repo,
}

/// Why a request is repeated, and how long to wait at least.
pub(super) struct Again {
    pub why: String,
    pub wait: Option<Duration>,
}

/// What came of one request.
pub(super) enum Outcome<T> {
    Done(T),
    Again(Again),
}

impl<'a> Client<'a> {
    pub fn new(options: &'a HubOptions, progress: &'a HubProgress, repo: &'a Repo) -> Client<'a> {
        // Where a certificate file is named, the system's are wanted (a company's proxy); else those built in.
        let own = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(|name| std::env::var_os(name).is_some());
        let roots = if own { RootCerts::PlatformVerifier } else { RootCerts::WebPki };
        let config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("layerstream/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Client { agent: config.into(), options, progress, repo }
    }

    /// The commit that the revision is, and the names of its files.
    pub fn files(&self) -> Result<(String, Vec<String>)> {
        let revision = self.repo.revision().replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.options.endpoint, self.repo.id);
        let answer = self.patiently(|| {
            let response = match self.send("GET", &url, 0, Follow::All)? {
                Outcome::Done(response) => response,
                Outcome::Again(again) => return Ok(Outcome::Again(again)),
            };
            let mut bytes = Vec::new();
            Ok(match response.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut bytes) {
                Ok(_) => Outcome::Done(bytes),
                Err(e) => Outcome::Again(Again { why: e.to_string(), wait: None }),
            })
        })?;
        let listed = || {
            let answer: Value = serde_json::from_slice(&answer).ok()?;
            let commit = answer.get("sha")?.as_str().filter(|commit| is_commit(commit))?.to_owned();
            let name = |file: &Value| Some(file.get("rfilename")?.as_str()?.to_owned());
            let names: Vec<String> = answer.get("siblings")?.as_array()?.iter().map(name).collect::<Option<_>>()?;
            Some((commit, names))
        };
        let (commit, mut names) = listed().ok_or_else(|| {
            self.problem(format!("{url} did not answer with a list of files; is HF_ENDPOINT the address of a Hub?"))
        })?;
        // A name that leads elsewhere is nobody's file.
        names.retain(|name| {
            name.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']))
        });
        Ok((commit, names))
    }

    /// What a file of a commit is.
    pub fn remote(&self, commit: &str, name: &str) -> Result<Remote> {
        let url = self.url(commit, name);
        let (status, headers) = self.patiently(|| {
            Ok(match self.send("HEAD", &url, 0, Follow::UntilKnown)? {
                Outcome::Done(response) => Outcome::Done((response.status(), response.headers().clone())),
                Outcome::Again(again) => Outcome::Again(again),
            })
        })?;
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let etag = text("x-linked-etag").or_else(|| text("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if etag.is_empty() || etag.len() > 128 || !etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
            return Err(self.problem(format!("{url}: the server names no version (ETag) of the file; is it a Hub?")));
        }
        // The length of a redirect is not that of the file.
        let length = text("content-length").filter(|_| status == 200);
        let size = text("x-linked-size").or(length).and_then(|size| size.parse().ok());
        Ok(Remote { name: name.to_owned(), etag, size })
    }

    /// The bytes of a file from `start` on; whether the server begins there, or at the beginning.
    pub fn bytes(&self, commit: &str, name: &str, start: u64) -> Result<Outcome<(Body, bool)>> {
        let url = self.url(commit, name);
        Ok(match self.send("GET", &url, start, Follow::All)? {
            Outcome::Again(again) => Outcome::Again(again),
            Outcome::Done(response) => {
                let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
                let from = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
                let there = response.status() == 206 && from == Some(start);
                if response.status() == 206 && !there {
                    return Err(self.problem(format!("{name}: asked for bytes from {start} on, got {range:?}")));
                }
                Outcome::Done((response.into_body(), there))
            }
        })
    }

    /// Repeats a request until it is answered, with growing pauses, and gives up after some that brought nothing.
    pub fn patiently<T>(&self, mut request: impl FnMut() -> Result<Outcome<T>>) -> Result<T> {
        let mut failures = 0;
        loop {
            if self.progress.stopped() {
                return Err(Error::Interrupted);
            }
            match request()? {
                Outcome::Done(done) => return Ok(done),
                Outcome::Again(again) => {
                    failures += 1;
                    self.pause(failures, &again)?;
                }
            }
        }
    }

    /// Waits after a number of failures in a row.
    ///
    /// # Errors
    /// If there have been enough, or the server asks for too much.
    pub fn pause(&self, failures: u32, again: &Again) -> Result<()> {
        let wait = again.wait.unwrap_or_default().max(self.options.patience.saturating_mul(1 << failures.min(5) >> 1));
        if failures >= ATTEMPTS || wait > MAX_WAIT {
            let asked =
                if wait > MAX_WAIT { format!(", and asks to wait {} s", wait.as_secs()) } else { String::new() };
            return Err(self.problem(format!(
                "{}{asked}; gave up after {failures} attempts. What has come is kept: the same command later goes on from \
                 there",
                again.why
            )));
        }
        self.progress.set_note(format!("{}; trying again", again.why));
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if self.progress.stopped() {
                return Err(Error::Interrupted);
            }
            thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
        self.progress.set_note(String::new());
        Ok(())
    }

    pub fn problem(&self, what: impl Into<String>) -> Error {
        problem(self.repo, what)
    }

    fn url(&self, commit: &str, name: &str) -> String {
        let name: String = name.split('/').map(escaped).collect::<Vec<_>>().join("/");
        format!("{}/{}/resolve/{commit}/{name}", self.options.endpoint, self.repo.id)
    }

    /// One request, and those that it redirects to.
    fn send(&self, method: &str, url: &str, start: u64, follow: Follow) -> Result<Outcome<Response<Body>>> {
        let mut url = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = if method == "HEAD" { self.agent.head(&url) } else { self.agent.get(&url) };
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            if let Some(token) = self.options.token.as_ref().filter(|_| origin(&url) == origin(&self.options.endpoint))
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(e) => return self.failed(&url, e).map(Outcome::Again),
            };
            let status = response.status().as_u16();
            if !(300..400).contains(&status) {
                return self.judge(&url, response);
            }
            if follow == Follow::UntilKnown && response.headers().contains_key("x-linked-etag") {
                return Ok(Outcome::Done(response));
            }
            let location = response.headers().get("location").and_then(|location| location.to_str().ok());
            let location = location.ok_or_else(|| self.problem(format!("{url}: a redirect to nowhere")))?;
            url = match location.strip_prefix('/') {
                Some(path) if !path.starts_with('/') => format!("{}/{path}", origin(&url)),
                _ if location.starts_with("http://") || location.starts_with("https://") => location.to_owned(),
                _ => return Err(self.problem(format!("{url}: a redirect to {location:?}"))),
            };
        }
        Err(self.problem(format!("{url}: redirected {MAX_REDIRECTS} times")))
    }

    /// A request that got no answer: some causes pass.
    fn failed(&self, url: &str, error: ureq::Error) -> Result<Again> {
        let host = origin(url);
        match error {
            ureq::Error::HostNotFound => Err(self.problem(format!(
                "there is no such path, and {host} cannot be found: check the network, or set HF_ENDPOINT to a mirror"
            ))),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                Err(self.problem(format!("cannot ask {host}: {error}; check HF_ENDPOINT")))
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => Err(self.problem(format!(
                "no secure connection to {host}: {error}; behind a proxy, name its certificates in SSL_CERT_FILE"
            ))),
            error => Ok(Again { why: format!("no answer from {host} ({error})"), wait: None }),
        }
    }

    /// What an answer means.
    fn judge(&self, url: &str, response: Response<Body>) -> Result<Outcome<Response<Body>>> {
        let status = response.status().as_u16();
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let page = format!("{}/{}", self.options.endpoint, self.repo.id);
        let give = "with HF_TOKEN, --hf-token or `hf auth login`";
        Err(self.problem(match (status, code) {
            (200 | 206, _) => return Ok(Outcome::Done(response)),
            // A range behind the end.
            (416, _) => {
                let why = format!("{url}: the server has fewer bytes of it than the Hub says (416)");
                return Ok(Outcome::Again(Again { why, wait: None }));
            }
            (401 | 403, code) if code != "RepoNotFound" => match &self.options.token {
                Some(_) => format!(
                    "access is refused ({status}): if it is gated, accept its terms at {page}, and see that the token may \
                     read it"
                ),
                None => format!(
                    "it is gated or private ({status}): accept its terms at {page}, and give an access token {give}"
                ),
            },
            (_, "RevisionNotFound") => format!("there is no revision {:?} of it", self.repo.revision()),
            (_, "EntryNotFound") => format!("{url} does not exist"),
            (401 | 404, _) => format!(
                "there is neither a path nor a repository of this name (or revision) at {}; if it is private, give an \
                 access token {give}",
                self.options.endpoint
            ),
            (408 | 429 | 500..=599, _) => {
                let why = match status {
                    429 => format!("{} says: too many requests (429)", origin(url)),
                    _ => format!("{} answers {status}", origin(url)),
                };
                return Ok(Outcome::Again(Again { why, wait: retry_after(response.headers()) }));
            }
            _ => format!("{url} answers {status}"),
        }))
    }
}

/// How far redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    All,
    /// Only until an answer says what the file is.
    UntilKnown,
}

/// Seconds that a server asks to wait, where it says so in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get("retry-after")?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}

/// A part of a path as it is written in an address.
fn escaped(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(origin("https://a.b:8/c/d"), "https://a.b:8");
        assert_eq!(origin("http://a"), "http://a");
        assert_eq!(escaped("a b%é.txt"), "a%20b%25%C3%A9.txt");
    }
}
