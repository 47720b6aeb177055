//! A server that behaves like the Hugging Face Hub, as far as downloads go, and misbehaves where a test asks for it:
//! small files are sent by itself, large ones by a redirect to another host name that must not see the token.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct File {
    pub content: Vec<u8>,
    /// Sent by the other host, and named by its SHA-256.
    pub large: bool,
    pub etag: String,
    pub size: u64,
}

/// What to answer with in place of the truth, to requests whose path has `part`.
pub struct Fault {
    pub part: &'static str,
    pub status: u16,
    pub headers: &'static str,
}

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, File>,
    /// What the list of files says in place of the names.
    pub names: Option<Vec<String>>,
    pub commit: String,
    pub token: Option<String>,
    pub faults: VecDeque<Fault>,
    /// Bytes after which the next answers with content break off.
    pub cuts: VecDeque<usize>,
    pub ignores_ranges: bool,
    /// Time between the thousands of bytes of an answer.
    pub slow: Option<Duration>,
    pub log: Vec<Request>,
}

pub struct Server {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves `org/model` with these files; names that end in `*` are large ones.
    pub fn new(files: &[(&str, &[u8])]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut state = State { commit: COMMIT.into(), ..State::default() };
        for (name, content) in files {
            let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            let large = name.ends_with('*');
            let etag = if large { hash } else { hash[..40].to_owned() };
            let file = File { content: content.to_vec(), large, etag, size: content.len() as u64 };
            state.files.insert(name.trim_end_matches('*').to_owned(), file);
        }
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &state, port));
            }
        });
        Server { port, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The requests so far that have a method and a part of a path.
    pub fn requests(&self, method: &str, part: &str) -> Vec<Request> {
        let asked = |request: &&Request| request.method == method && request.path.contains(part);
        self.state().log.iter().filter(asked).cloned().collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is sent back.
struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(stream: TcpStream, state: &Mutex<State>, port: u16) {
    let Some(request) = read(&stream) else { return };
    let (answer, cut, slow) = {
        let mut state = lock(state);
        state.log.push(request.clone());
        let answer = decide(&mut state, &request, port);
        let content =
            request.method == "GET" && matches!(answer.status, 200 | 206) && !request.path.starts_with("/api");
        let cut = if content { state.cuts.pop_front() } else { None };
        (answer, cut, state.slow.filter(|_| content))
    };
    let head = format!("HTTP/1.1 {} X\r\n{}connection: close\r\n", answer.status, answer.headers);
    let length = match answer.headers.contains("content-length") {
        true => String::new(),
        false => format!("content-length: {}\r\n", answer.body.len()),
    };
    let mut body = if request.method == "HEAD" { &[][..] } else { &answer.body[..] };
    body = &body[..cut.unwrap_or(body.len()).min(body.len())];
    let mut stream = &stream;
    // Whoever stops reading is not an error of the server.
    let _ = stream.write_all(format!("{head}{length}\r\n").as_bytes());
    for piece in body.chunks(if slow.is_some() { 1000 } else { body.len().max(1) }) {
        if stream.write_all(piece).is_err() {
            break;
        }
        if let Some(pause) = slow {
            thread::sleep(pause);
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers })
}

fn decide(state: &mut State, request: &Request, port: u16) -> Answer {
    let says = |status: u16, headers: &str, body: &[u8]| Answer { status, headers: headers.into(), body: body.into() };
    if let Some(at) = state.faults.iter().position(|fault| request.path.contains(fault.part)) {
        let fault = state.faults.remove(at).unwrap();
        return says(fault.status, fault.headers, b"");
    }
    if let Some(name) = request.path.strip_prefix("/cdn/") {
        return match state.files.get(name) {
            Some(file) => content(&file.content, request, state.ignores_ranges),
            None => says(404, "", b""),
        };
    }
    if let Some(token) = &state.token
        && request.headers.get("authorization") != Some(&format!("Bearer {token}"))
    {
        return says(401, "x-error-code: GatedRepo\r\n", b"");
    }
    let commit = &state.commit;
    if let Some(revision) = request.path.strip_prefix("/api/models/org/model/revision/") {
        if !["main", "refs%2Fpr%2F1", commit].contains(&revision) {
            return says(404, "x-error-code: RevisionNotFound\r\n", b"");
        }
        let names = state.names.clone().unwrap_or_else(|| state.files.keys().cloned().collect());
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name})).collect();
        return says(200, "", serde_json::json!({"sha": commit, "siblings": siblings}).to_string().as_bytes());
    }
    let Some(name) = request.path.strip_prefix(&format!("/org/model/resolve/{commit}/")) else {
        return says(404, "x-error-code: RepoNotFound\r\n", b"");
    };
    let Some(file) = state.files.get(name) else {
        return says(404, "x-error-code: EntryNotFound\r\n", b"");
    };
    if file.large {
        let headers = format!(
            "x-repo-commit: {commit}\r\nx-linked-etag: \"{}\"\r\nx-linked-size: {}\r\nlocation: \
             http://localhost:{port}/cdn/{name}\r\n",
            file.etag, file.size
        );
        return says(302, &headers, b"Found. Redirecting");
    }
    let mut answer = content(&file.content, request, state.ignores_ranges);
    answer.headers += &format!("x-repo-commit: {commit}\r\netag: \"{}\"\r\n", file.etag);
    answer
}

/// A file, or what a range asks of it.
fn content(content: &[u8], request: &Request, ignores_ranges: bool) -> Answer {
    let range = request.headers.get("range").filter(|_| !ignores_ranges);
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match start {
        None => {
            let headers = format!("content-length: {}\r\n", content.len());
            Answer { status: 200, headers, body: content.into() }
        }
        Some(start) if start >= content.len() => Answer { status: 416, headers: String::new(), body: Vec::new() },
        Some(start) => {
            let headers = format!("content-range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
            Answer { status: 206, headers, body: content[start..].into() }
        }
    }
}
