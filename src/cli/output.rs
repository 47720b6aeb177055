//! Standard output, flushed at every call so that text appears as it comes; standard error; and files that are either
//! whole or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const NAME: &str = "standard output";

/// Writes text as it is.
pub fn print(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes text as it is, but leaves a terminal at the beginning of a line.
pub fn print_exact(text: &str) -> Result<()> {
    print(text)?;
    if io::stdout().is_terminal() && !text.ends_with('\n') { print("\n") } else { Ok(()) }
}

/// Writes one JSON value on a line.
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).expect("reports have string keys and finite numbers");
    print(&(text + "\n"))
}

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Error::io(Path::new(NAME), "write"))
}

/// Writes to standard error. Where that is closed there is nobody to tell.
pub fn tell(text: impl std::fmt::Display) {
    let _ = write!(io::stderr(), "{text}");
}

/// Whether an error only says that the reader of our output has gone.
pub fn is_closed(error: &Error) -> bool {
    matches!(error, Error::Io { path, source, .. }
        if path.as_os_str() == NAME && source.kind() == ErrorKind::BrokenPipe)
}

/// A file that gets its name when it is complete; dropped before that, it leaves nothing behind.
pub struct WholeFile {
    path: PathBuf,
    partial: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl WholeFile {
    /// Begins to write what shall be `path`, beside it.
    pub fn create(path: &Path) -> Result<WholeFile> {
        // Renaming onto a device would replace it.
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::Request(format!("{}: is not a regular file; give the name of a file", path.display())));
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = PathBuf::from(name);
        let file = File::create(&partial).map_err(Error::io(path, "create"))?;
        Ok(WholeFile { path: path.to_path_buf(), partial, writer: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.as_mut().expect("open until finished").write_all(bytes).map_err(Error::io(&self.path, "write"))
    }

    /// Gives the file its name, replacing what had it.
    pub fn finish(mut self) -> Result<()> {
        let mut writer = self.writer.take().expect("open until finished");
        let renamed = writer.flush().and_then(|()| fs::rename(&self.partial, &self.path));
        if renamed.is_err() {
            self.writer = Some(writer);
        }
        renamed.map_err(Error::io(&self.path, "write"))
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            // An earlier error is being told.
            let _ = fs::remove_file(&self.partial);
        }
    }
}
