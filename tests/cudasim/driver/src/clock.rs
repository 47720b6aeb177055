//! Vector clocks: what is known to have ended before something begins.
//!
//! Every stream has a place in the clock, and numbers its operations from 1. An operation's clock holds, for every stream,
//! how many of its operations certainly end before this one begins: because they are in the same stream, because of an
//! event, or because the host had waited for them before it queued this one. The host is one actor: threads of a program
//! are taken to order themselves.

/// For each stream, how many of its operations are in the past.
#[derive(Clone, Debug, Default)]
pub struct Clock(Vec<u64>);

impl Clock {
    pub fn get(&self, stream: usize) -> u64 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    pub fn set(&mut self, stream: usize, number: u64) {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] = number;
    }

    /// Adds all that `other` knows.
    pub fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Keeps only what `other` knows too.
    pub fn meet(&mut self, other: &Clock) {
        self.0.truncate(other.0.len());
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).min(*theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_knows_both_and_meet_what_both_know() {
        let (mut a, mut b) = (Clock::default(), Clock::default());
        a.set(0, 5);
        a.set(2, 1);
        b.set(0, 3);
        b.set(1, 4);
        let mut joined = a.clone();
        joined.join(&b);
        assert_eq!([joined.get(0), joined.get(1), joined.get(2)], [5, 4, 1]);
        a.meet(&b);
        assert_eq!([a.get(0), a.get(1), a.get(2), a.get(9)], [3, 0, 0, 0]);
    }
}
