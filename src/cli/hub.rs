//! Models by name: `pull`, `list`, and what every command does with a MODEL that is a repository.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::error::{Error, Result};
use crate::hub::{Hub, HubOptions, HubProgress, Need, Repo};

use super::args;
use super::interrupt::{Reaction, on_next};
use super::output;
use super::table::{Table, count, data};

const INTERVAL: Duration = Duration::from_millis(200);

/// The directory or file of a model, downloaded first if it is a repository that is not here.
pub fn local(model: &args::Model, need: Need) -> Result<PathBuf> {
    local_at(&model.path, &model.hub, need)
}

/// The same for a model that is named beside the first.
pub fn local_at(path: &Path, hub_args: &args::Hub, need: Need) -> Result<PathBuf> {
    let hub = hub(hub_args);
    shown(&hub, || hub.open(path, need))
}

/// The directory that the cache has for a model that is a repository, whatever of it is there.
pub fn snapshot(model: &args::Model) -> Option<PathBuf> {
    hub(&model.hub).snapshot(&model.path)
}

pub fn pull(args: &args::Pull) -> Result<()> {
    let named = args.repo.to_str().and_then(Repo::parse);
    let Some(repo) = named else {
        return Err(Error::Request(format!("{} is not the name of a repository (org/name)", args.repo.display())));
    };
    let repo = match (&args.revision, &repo.revision) {
        (None, _) => repo,
        (Some(revision), None) => match Repo::parse(&format!("{}@{revision}", repo.id)) {
            Some(repo) => repo,
            None => return Err(Error::Request(format!("{revision:?} is not the name of a revision"))),
        },
        (Some(_), Some(_)) => return Err(Error::Request("give the revision once: --revision, or behind the @".into())),
    };
    let hub = hub(&args.hub);
    let dir = shown(&hub, || hub.pull(&repo, &args.files))?;
    output::print(&format!("{}\n", dir.display()))
}

pub fn list(args: &args::List) -> Result<()> {
    let cached = Hub::new(HubOptions::from_env()).list()?;
    if args.json {
        let models = cached.iter().map(|model| {
            json!({
                "model": model.repo.to_string(), "commit": model.commit, "path": model.path, "files": model.files,
                "bytes": model.bytes, "complete": model.complete,
            })
        });
        return output::json(&models.collect::<Vec<_>>());
    }
    let mut table = Table::default();
    for model in &cached {
        let state = if model.complete { "" } else { ", incomplete" };
        table.row(&model.repo, format!("{}, {}{state}", data(model.bytes), count(model.files as u64, "file")));
    }
    output::print(&table.to_string())
}

fn hub(args: &args::Hub) -> Hub {
    let mut options = HubOptions::from_env();
    options.token = args.hf_token.clone().or(options.token);
    Hub::new(options)
}

/// Does something that may download: shows how far it is, and lets Ctrl-C end it.
fn shown<T>(hub: &Hub, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let progress = hub.progress();
    on_next(Reaction::StopDownload(progress.clone()));
    let (stop, stopped) = channel::<()>();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            watch(&progress, || matches!(stopped.recv_timeout(INTERVAL), Err(RecvTimeoutError::Timeout)))
        });
        let result = work();
        drop(stop);
        result
    });
    on_next(Reaction::Exit);
    result
}

/// Draws the bar as long as `goes_on` says so. Where there is no terminal, what is downloaded is told once.
fn watch(progress: &HubProgress, mut goes_on: impl FnMut() -> bool) {
    let style = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("a valid template").progress_chars("##-");
    let mut bar: Option<ProgressBar> = None;
    let mut told = false;
    while goes_on() {
        let (files, all) = progress.files();
        // What is there already is no download.
        if progress.done() >= progress.total() {
            continue;
        }
        if !io::stderr().is_terminal() {
            if !told {
                output::tell(format!("downloading {}, {}\n", count(all, "file"), data(progress.total())));
            }
            told = true;
            continue;
        }
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(0).with_style(style.clone());
            bar.reset_eta();
            bar
        });
        bar.set_length(progress.total());
        bar.set_position(progress.done());
        let note = progress.note();
        bar.set_message(if note.is_empty() { format!("file {} of {all}", (files + 1).min(all)) } else { note });
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}
