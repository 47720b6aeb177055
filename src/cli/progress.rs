//! The status line: how far a pass is, or, where passes are too short for that, how fast they come. It is on standard
//! error, and only where that is a terminal. Where the text goes to the same terminal, the line is below the text, moves
//! down with it, and is gone at the end.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::Progress;
use crate::error::Result;

use super::output;
use super::table::{data, rate, seconds};

/// A pass that is over sooner gets no bar of its own.
const PATIENCE: Duration = Duration::from_millis(300);
const INTERVAL: Duration = Duration::from_millis(50);
const CELLS: u64 = 20;

/// Shows the progress of passes until it is dropped, and prints text meanwhile.
pub struct Status {
    screen: Arc<Mutex<Screen>>,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What is on the terminal.
struct Screen {
    /// Text and status share a terminal.
    shared: bool,
    shown: bool,
    /// What the line says.
    line: String,
    /// Tokens of the longest answer so far.
    tokens: usize,
    /// Columns of the text's last line.
    column: usize,
}

impl Status {
    /// Begins to watch. Nothing is shown where standard error is no terminal, or a dumb one.
    pub fn watch(progress: Progress) -> Status {
        let shared = io::stdout().is_terminal();
        let screen = Arc::new(Mutex::new(Screen { shared, shown: false, line: String::new(), tokens: 0, column: 0 }));
        let ticker = (io::stderr().is_terminal() && !is_dumb()).then(|| {
            let (stop, stopped) = channel();
            let screen = Arc::clone(&screen);
            let tick = move || {
                let run = Run { passes: progress.passes(), since: Instant::now() };
                let mut pass = Pass { number: progress.passes(), since: Instant::now() };
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(INTERVAL) {
                    pass.update(&progress);
                    let mut screen = lock(&screen);
                    screen.line = match pass.since.elapsed() > PATIENCE {
                        true => pass.describe(&progress, screen.tokens),
                        false => run.describe(&progress, screen.tokens),
                    };
                    screen.show();
                }
            };
            (stop, thread::spawn(tick))
        });
        Status { screen, ticker }
    }

    /// Prints what a token brought, which may be nothing. `tokens` is how many its answer has now.
    pub fn print(&self, tokens: usize, text: &str) -> Result<()> {
        let mut screen = lock(&self.screen);
        screen.tokens = screen.tokens.max(tokens);
        if text.is_empty() {
            return Ok(());
        }
        let shown = screen.clear();
        screen.advance(text);
        output::print(text)?;
        // After a line break the next tick is soon enough, and there may be no more text.
        if shown && screen.column > 0 {
            screen.show();
        }
        Ok(())
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        if let Some((stop, ticker)) = self.ticker.take() {
            drop(stop);
            // A ticker that panicked has nothing more to show.
            let _ = ticker.join();
        }
        lock(&self.screen).clear();
    }
}

fn lock(screen: &Mutex<Screen>) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All passes since the status began.
struct Run {
    passes: u64,
    since: Instant,
}

impl Run {
    /// `token 37  430 tokens/s  1.99 GB/s`; the bytes are those of weights, wherever they were.
    fn describe(&self, progress: &Progress, tokens: usize) -> String {
        let passes = progress.passes().saturating_sub(self.passes);
        let bytes = passes.saturating_sub(1) * progress.total() + progress.bytes();
        let time = self.since.elapsed().as_secs_f64();
        format!("token {}  {:.0} tokens/s  {}", tokens + 1, tokens as f64 / time, rate(bytes as f64 / time))
    }
}

/// The running pass, as the ticker has seen it.
struct Pass {
    number: u64,
    since: Instant,
}

impl Pass {
    fn update(&mut self, progress: &Progress) {
        if progress.passes() != self.number {
            *self = Pass { number: progress.passes(), since: Instant::now() };
        }
    }

    /// `token 3 [#####---------------] 35.2 of 141.1 GB  2.31 GB/s  46 s left`
    fn describe(&self, progress: &Progress, tokens: usize) -> String {
        let (bytes, total) = (progress.bytes(), progress.total().max(1));
        let what = match tokens {
            0 => format!("prompt, pass {}", self.number.max(1)),
            n => format!("token {}", n + 1),
        };
        let done = (bytes * CELLS / total) as usize;
        let bar = "#".repeat(done) + &"-".repeat(CELLS as usize - done);
        let speed = bytes as f64 / self.since.elapsed().as_secs_f64();
        let left = (total - bytes.min(total)) as f64 / speed.max(1.0);
        format!("{what} [{bar}] {} of {}  {}  {} left", data(bytes), data(total), rate(speed), seconds(left))
    }
}

impl Screen {
    /// Draws the line, or draws it again. Losing it (a closed terminal) is no error.
    fn show(&mut self) {
        let width = terminal_width();
        // With a full last line the terminal waits to wrap, a state that drawing would lose.
        if self.shared && self.column > 0 && self.column.is_multiple_of(width) {
            return;
        }
        let line: String = self.line.chars().take(width - 1).collect();
        let drawn = match self.below() {
            // Makes room below without moving the text, draws there, and returns to the text's end.
            true => write!(io::stderr(), "\x1bD\x1b[A\x1b7\x1b[B\r{line}\x1b[K\x1b8"),
            false => write!(io::stderr(), "\r{line}\x1b[K"),
        };
        self.shown = drawn.is_ok();
    }

    /// Takes the line off the terminal; whether it was there.
    fn clear(&mut self) -> bool {
        let shown = std::mem::take(&mut self.shown);
        if shown {
            let _ = match self.below() {
                true => write!(io::stderr(), "\x1b7\x1b[B\r\x1b[K\x1b8"),
                false => write!(io::stderr(), "\r\x1b[K"),
            };
        }
        shown
    }

    /// Whether there is text on the cursor's line.
    fn below(&self) -> bool {
        self.shared && self.column > 0
    }

    fn advance(&mut self, text: &str) {
        match text.rsplit_once('\n') {
            Some((_, last)) => self.column = last.chars().count(),
            None => self.column += text.chars().count(),
        }
    }
}

/// Whether the terminal says that it cannot move its cursor.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

fn terminal_width() -> usize {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    }
}
