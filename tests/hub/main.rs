//! Models by name: downloads from a server that behaves like the Hub, into a cache that Hugging Face's own tools can
//! use, through broken connections, refusals and lies; and the cache alone.
#![cfg(feature = "hub")]

mod commands;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use layerstream::Error;
use layerstream::hub::{Hub, HubOptions, Need, Repo};
use server::{COMMIT, Fault, Server};

/// Weights that no accident repeats.
pub fn weights(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(6_364_136_223_846_793_005) >> 56) as u8).collect()
}

fn model(len: usize) -> Server {
    Server::new(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"tokens\": 1}"),
        ("additional_chat_templates/tool_use.jinja", b"x"),
        ("README.md", b"long"),
        ("pytorch_model.bin*", b"the same again"),
        ("model.safetensors*", &weights(len)),
    ])
}

/// A cache of its own, and the Hub at the server.
struct Fixture {
    dir: tempfile::TempDir,
    options: HubOptions,
}

impl Fixture {
    fn new(server: &Server) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let options = HubOptions {
            cache: dir.path().join("hub"),
            endpoint: server.endpoint(),
            token: None,
            offline: false,
            workers: 4,
            patience: Duration::from_millis(1),
        };
        Fixture { dir, options }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.options.clone())
    }

    fn pull(&self) -> Result<PathBuf, Error> {
        self.hub().pull(&repo("org/model"), &[])
    }

    fn folder(&self) -> PathBuf {
        self.options.cache.join("models--org--model")
    }

    /// The names of what is in the blobs.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder().join("blobs")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn repo(name: &str) -> Repo {
    Repo::parse(name).unwrap()
}

#[track_caller]
fn says(result: Result<PathBuf, Error>, parts: &[&str]) {
    let error = result.expect_err("an error").to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    assert!(!error.contains('\n'));
}

#[test]
fn what_is_needed_comes_into_the_layout_of_the_cache() {
    let server = model(3000);
    let fixture = Fixture::new(&server);
    let dir = fixture.pull().unwrap();
    assert_eq!(dir, fixture.folder().join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(fixture.folder().join("refs/main")).unwrap(), COMMIT);
    let etag = server.state().files["model.safetensors"].etag.clone();
    assert_eq!(fs::read_link(dir.join("model.safetensors")).unwrap(), Path::new("../../blobs").join(&etag));
    let template = fs::read_link(dir.join("additional_chat_templates/tool_use.jinja")).unwrap();
    assert!(template.starts_with("../../../blobs"), "{}", template.display());
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights(3000));
    assert_eq!(fs::read(dir.join("additional_chat_templates/tool_use.jinja")).unwrap(), b"x");
    assert!(!dir.join("README.md").exists() && !dir.join("pytorch_model.bin").exists());
    assert_eq!(fixture.blobs().len(), 4, "nothing unfinished is left");

    // Now it is found without the network, and pulling again brings nothing.
    server.state().log.clear();
    assert_eq!(fixture.hub().open(Path::new("org/model"), Need::Model).unwrap(), dir);
    assert_eq!(fixture.hub().open(Path::new(&format!("org/model@{COMMIT}")), Need::Model).unwrap(), dir);
    assert!(server.state().log.is_empty());
    assert_eq!(fixture.pull().unwrap(), dir);
    assert!(server.requests("GET", "/resolve/").is_empty());
    let progress = fixture.hub().progress();
    assert_eq!((progress.done(), progress.files()), (0, (0, 0)));
}

#[test]
fn shards_are_those_of_the_index() {
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let server = Server::new(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors*", b"one"),
        ("model-00002-of-00002.safetensors*", b"two"),
        ("consolidated.safetensors*", b"all"),
    ]);
    let fixture = Fixture::new(&server);
    let hub = fixture.hub();
    let dir = hub.open(Path::new("org/model"), Need::Model).unwrap();
    assert_eq!(fs::read(dir.join("model-00002-of-00002.safetensors")).unwrap(), b"two");
    assert!(!dir.join("consolidated.safetensors").exists());
    assert_eq!((hub.progress().done(), hub.progress().total()), (index.len() as u64 + 8, index.len() as u64 + 8));
    assert_eq!(hub.progress().files(), (4, 4));

    // Without one of them it is not whole, and the rest is not downloaded again.
    let listed = fixture.hub().list().unwrap();
    assert_eq!((listed.len(), listed[0].complete, listed[0].files), (1, true, 4));
    assert_eq!(listed[0].repo, repo("org/model"));
    let shard = dir.join("model-00002-of-00002.safetensors");
    fs::remove_file(fs::canonicalize(&shard).unwrap()).unwrap();
    assert!(!fixture.hub().list().unwrap()[0].complete);
    server.state().log.clear();
    assert_eq!(fixture.hub().open(Path::new("org/model"), Need::Model).unwrap(), dir);
    assert_eq!(fs::read(&shard).unwrap(), b"two");
    assert_eq!(server.requests("GET", "/cdn/").len(), 1);

    server.state().names = Some(vec!["config.json".into(), "model.safetensors.index.json".into()]);
    let other = Fixture::new(&server);
    says(other.pull(), &["model.safetensors.index.json names model-00001-of-00002.safetensors"]);
}

#[test]
fn broken_connections_are_continued() {
    let server = model(100_000);
    let fixture = Fixture::new(&server);
    server.state().cuts = [0, 10, 40_000, 5, 1].into();
    let dir = fixture.pull().unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights(100_000));
    let ranges = server.requests("GET", "/cdn/model.safetensors");
    assert!(ranges.iter().any(|request| request.headers.contains_key("range")), "{ranges:?}");
}

#[test]
fn a_server_that_always_breaks_off_is_given_up() {
    let server = model(100_000);
    let fixture = Fixture::new(&server);
    server.state().cuts = std::iter::repeat_n(700, 500).collect();
    says(
        fixture.pull(),
        &["org/model: model.safetensors: the download broke off after", "of 100000", "attempts", "kept"],
    );
    server.state().cuts.clear();
    fixture.pull().unwrap();
    let first = server.requests("GET", "/cdn/model.safetensors").pop().unwrap();
    assert!(first.headers["range"].starts_with("bytes="), "the second call went on where the first one ended");
}

#[test]
fn what_an_earlier_attempt_left_is_used() {
    let server = model(50_000);
    let fixture = Fixture::new(&server);
    let etag = server.state().files["model.safetensors"].etag.clone();
    let partial = fixture.folder().join("blobs").join(format!("{etag}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &weights(50_000)[..30_000]).unwrap();
    let dir = fixture.pull().unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights(50_000));
    let requests = server.requests("GET", "/cdn/");
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].headers["range"], "bytes=30000-");

    // What is wrong is found by the hash, and replaced; what is too long, too.
    for stale in [vec![7; 30_000], vec![7; 60_000], vec![7; 50_000]] {
        let fixture = Fixture::new(&server);
        let partial = fixture.folder().join("blobs").join(format!("{etag}.incomplete"));
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, stale).unwrap();
        let dir = fixture.pull().unwrap();
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights(50_000));
    }
}

#[test]
fn a_server_without_ranges_begins_again() {
    let server = model(50_000);
    server.state().ignores_ranges = true;
    server.state().cuts = [20_000, 20_000, 20_000, 20_000].into();
    let fixture = Fixture::new(&server);
    let dir = fixture.pull().unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights(50_000));
}

#[test]
fn a_wrong_hash_is_an_error() {
    let server = model(5000);
    server.state().files.get_mut("model.safetensors").unwrap().content[4000] ^= 1;
    let fixture = Fixture::new(&server);
    says(fixture.pull(), &["model.safetensors", "SHA-256", "removed"]);
    assert!(!fixture.folder().join("refs/main").exists(), "no branch names what is not whole");
    assert!(fixture.hub().list().unwrap().iter().all(|model| !model.complete));
    let etag = server.state().files["model.safetensors"].etag.clone();
    assert!(fixture.blobs().iter().all(|name| !name.starts_with(&etag)), "{:?}", fixture.blobs());
}

#[test]
fn sizes_are_checked() {
    let server = model(5000);
    server.state().files.get_mut("model.safetensors").unwrap().size = 4999;
    says(Fixture::new(&server).pull(), &["the server sends more"]);
    server.state().files.get_mut("model.safetensors").unwrap().size = 5001;
    says(Fixture::new(&server).pull(), &["model.safetensors", "fewer bytes", "gave up"]);
}

#[test]
fn room_is_checked_before_the_first_byte() {
    let server = model(5000);
    server.state().files.get_mut("model.safetensors").unwrap().size = 1 << 60;
    let fixture = Fixture::new(&server);
    says(fixture.pull(), &["GB are still to be downloaded", "GB free", "HF_HUB_CACHE"]);
    assert!(server.requests("GET", "/resolve/").is_empty() && server.requests("GET", "/cdn/").is_empty());
}

#[test]
fn tokens_open_gates_and_stay_with_the_hub() {
    let server = model(5000);
    server.state().token = Some("hf_secret".into());
    let mut fixture = Fixture::new(&server);
    says(fixture.pull(), &["gated or private (401)", "/org/model", "HF_TOKEN", "--hf-token"]);
    fixture.options.token = Some("hf_other".into());
    says(fixture.pull(), &["refused (401)", "accept its terms", "token"]);
    fixture.options.token = Some("hf_secret".into());
    fixture.pull().unwrap();
    assert!(!server.requests("GET", "/cdn/").is_empty());
    assert!(server.requests("GET", "/cdn/").iter().all(|request| !request.headers.contains_key("authorization")));
    assert!(!format!("{:?}", fixture.hub()).contains("hf_"), "tokens are not printed");
    server.state().faults.push_back(Fault { part: "/api/", status: 403, headers: "" });
    says(fixture.pull(), &["refused (403)"]);
}

#[test]
fn what_does_not_exist() {
    let server = model(10);
    let fixture = Fixture::new(&server);
    let pull = |name: &str, files: &[&str]| {
        fixture.hub().pull(&repo(name), &files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>())
    };
    says(pull("org/other", &[]), &["org/other: there is neither a path nor a repository", "token"]);
    says(pull("org/model@v9", &[]), &["no revision \"v9\""]);
    says(pull("org/model", &["*.gguf"]), &["no file matches \"*.gguf\"", "model.safetensors"]);
    server.state().faults.push_back(Fault {
        part: "/resolve/",
        status: 404,
        headers: "x-error-code: EntryNotFound\r\n",
    });
    says(pull("org/model", &[]), &["does not exist"]);
    // A commit and a pull request are revisions too.
    let dir = pull("org/model@refs/pr/1", &[]).unwrap();
    assert_eq!(fixture.hub().open(Path::new("org/model@refs/pr/1"), Need::Model).unwrap(), dir);
    assert_eq!(fs::read_to_string(fixture.folder().join("refs/refs/pr/1")).unwrap(), COMMIT);
    let listed = fixture.hub().list().unwrap();
    assert_eq!(listed[0].repo, repo("org/model@refs/pr/1"));
}

#[test]
fn files_that_are_asked_for() {
    let server = Server::new(&[("a-Q4.gguf*", b"four"), ("a-Q8.gguf*", b"eight"), ("README.md", b"")]);
    let fixture = Fixture::new(&server);
    says(fixture.pull(), &["GGUF", "--files", "a-Q4.gguf, a-Q8.gguf"]);
    let dir = fixture.hub().pull(&repo("org/model"), &["*Q4*".into()]).unwrap();
    assert_eq!(fs::read(dir.join("a-Q4.gguf")).unwrap(), b"four");
    assert!(!dir.join("a-Q8.gguf").exists());
    // It is the one model there is: its repository's name suffices from now on.
    let before = server.requests("GET", "").len();
    assert_eq!(fixture.hub().open(Path::new("org/model"), Need::Model).unwrap(), dir);
    assert_eq!(server.requests("GET", "").len(), before);
    assert!(fixture.hub().list().unwrap()[0].complete);
}

#[test]
fn the_only_gguf_model_needs_no_choice() {
    let parts = ["a-Q4-00001-of-00002.gguf", "a-Q4-00002-of-00002.gguf"];
    let server = Server::new(&[(&format!("{}*", parts[0]), b"one"), (&format!("{}*", parts[1]), b"two")]);
    let fixture = Fixture::new(&server);
    let dir = fixture.hub().open(Path::new("org/model"), Need::Model).unwrap();
    assert!(parts.iter().all(|part| dir.join(part).exists()));
    fs::remove_file(dir.join(parts[1])).unwrap();
    assert!(!fixture.hub().list().unwrap()[0].complete);
}

#[test]
fn text_needs_no_weights() {
    let server = model(5000);
    let fixture = Fixture::new(&server);
    let dir = fixture.hub().open(Path::new("org/model"), Need::Text).unwrap();
    assert!(dir.join("tokenizer.json").exists() && !dir.join("model.safetensors").exists());
    fixture.hub().open(Path::new("org/model"), Need::Model).unwrap();
    assert!(dir.join("model.safetensors").exists());
}

#[test]
fn too_many_requests() {
    let server = model(10);
    let fixture = Fixture::new(&server);
    let busy = |part, headers| Fault { part, status: 429, headers };
    server.state().faults.extend([busy("/api/", "retry-after: 1\r\n"), busy("/cdn/", ""), busy("/resolve/", "")]);
    let start = Instant::now();
    fixture.pull().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "what the server asks for is waited");
    server.state().faults.push_back(busy("/api/", "retry-after: 86400\r\n"));
    says(fixture.pull(), &["too many requests (429)", "asks to wait 86400 s"]);
    server.state().faults.extend((0..20).map(|_| Fault { part: "/api/", status: 503, headers: "" }));
    says(fixture.pull(), &["answers 503", "gave up after"]);
}

#[test]
fn a_stopped_download_can_go_on() {
    let server = model(2_000_000);
    server.state().slow = Some(Duration::from_millis(2));
    let fixture = Fixture::new(&server);
    let hub = fixture.hub();
    let progress = hub.progress();
    let running = thread::spawn(move || hub.pull(&repo("org/model"), &[]));
    while progress.done() < 20_000 {
        thread::sleep(Duration::from_millis(1));
        assert!(!running.is_finished());
    }
    progress.stop();
    assert!(matches!(running.join().unwrap(), Err(Error::Interrupted)));
    assert!(fixture.blobs().iter().any(|name| name.ends_with(".incomplete")));
    server.state().slow = None;
    let dir = fixture.pull().unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), weights(2_000_000));
    let last = server.requests("GET", "/cdn/").pop().unwrap();
    assert!(last.headers.contains_key("range"));
}

#[test]
fn two_at_once_share_the_work() {
    let server = model(300_000);
    server.state().slow = Some(Duration::from_micros(200));
    let fixture = Fixture::new(&server);
    thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| fixture.pull())).collect();
        for pull in pulls {
            assert_eq!(fs::read(pull.join().unwrap().unwrap().join("model.safetensors")).unwrap(), weights(300_000));
        }
    });
    assert_eq!(server.requests("GET", "/cdn/").len(), 1);
}

#[test]
fn without_the_network() {
    let server = model(10);
    let mut fixture = Fixture::new(&server);
    fixture.options.offline = true;
    says(fixture.pull(), &["org/model: not (or not whole) in the cache", "HF_HUB_OFFLINE"]);
    assert!(server.state().log.is_empty());
    fixture.options.offline = false;
    let dir = fixture.pull().unwrap();
    fixture.options.offline = true;
    assert_eq!(fixture.pull().unwrap(), dir);
    fixture.options.offline = false;
    // Nobody listens there.
    fixture.options.endpoint = "http://127.0.0.1:1".into();
    says(fixture.pull(), &["no answer from http://127.0.0.1:1"]);
    fixture.options.endpoint = "nonsense".into();
    says(fixture.pull(), &["HF_ENDPOINT"]);
}

#[test]
fn what_a_server_says_is_not_trusted() {
    let server = model(10);
    let fixture = Fixture::new(&server);
    let outside = fixture.dir.path().join("evil.jinja");
    server.state().names =
        Some(vec!["additional_chat_templates/../../../../../evil.jinja".into(), "model.safetensors".into()]);
    fixture.pull().unwrap();
    assert!(!outside.exists());
    server.state().names = None;
    server.state().commit = "../../../evil".into();
    says(fixture.pull(), &["did not answer with a list of files"]);
    server.state().commit = "c2".into();
    server.state().files.get_mut("config.json").unwrap().etag = "../../../../evil".into();
    says(fixture.pull(), &["config.json", "no version (ETag)"]);
    for location in ["location: file:///etc/passwd\r\n", "location: //elsewhere/x\r\n", ""] {
        server.state().faults.push_back(Fault { part: "/api/", status: 302, headers: location });
        says(fixture.pull(), &["a redirect to"]);
    }
    server.state().faults.extend((0..10).map(|_| Fault {
        part: "/api/",
        status: 307,
        headers: "location: /api/x\r\n",
    }));
    says(fixture.pull(), &["redirected 8 times"]);
}

#[test]
fn what_exists_is_a_path() {
    let server = model(10);
    let fixture = Fixture::new(&server);
    // Unit tests run in the project's directory, which has this one.
    let here = Path::new("src/hub");
    assert!(here.is_dir() && Repo::parse("src/hub").is_some());
    assert_eq!(fixture.hub().open(here, Need::Model).unwrap(), here);
    let no_name = Path::new("./org/model");
    assert_eq!(fixture.hub().open(no_name, Need::Model).unwrap(), no_name);
    assert!(server.state().log.is_empty());
}
