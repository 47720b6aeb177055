//! Stop strings: text is passed on as soon as it cannot be part of one, and cut where the first one is completed.

use crate::{Error, Result};

/// Watches a stream of text for any of several strings.
///
/// The stream ends at the stop string that is *completed* first (of those completed by the same character, the one that
/// began first), so no further token has to be generated to decide, and the result does not depend on how the text was
/// cut into pieces. Neither the stop string nor anything after it is passed on.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that could be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// An empty string stops before anything is said, so it is refused.
    pub fn new(stops: Vec<String>) -> Result<StopStrings> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Request("a stop string is empty; leave it out".into()));
        }
        Ok(StopStrings { stops, held: String::new(), stopped: false })
    }

    /// Takes the next piece of text and returns what is now certain to come before any stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(start) = self.first_match() {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.held_from();
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has been completed.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text has ended: returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string starts that ends first.
    fn first_match(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at)));
        found.min().map(|(_, start)| start)
    }

    /// The start of the longest tail of the held text with which a stop string begins.
    fn held_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut tails = self.held.char_indices().map(|(at, _)| at).filter(|at| self.held.len() - at < longest);
        tails.find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]))).unwrap_or(self.held.len())
    }
}
