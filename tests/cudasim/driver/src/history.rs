//! Who touched which bytes of a region last, and whether the next one may: the detector of unordered accesses.
//!
//! Of every byte it remembers the last write, and the last read of every stream since then. That suffices: what is ordered
//! behind the last write is ordered behind all that this write was ordered behind. Neighbouring bytes with the same past
//! are one segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Clock;

/// What an operation was, for messages.
pub type Label = Arc<str>;

/// One operation as it touched some bytes.
#[derive(Clone, Debug)]
pub struct Access {
    /// Its stream's place in clocks.
    pub stream: usize,
    /// Which operation of that stream.
    pub number: u64,
    pub label: Label,
}

impl Access {
    fn before(&self, clock: &Clock) -> bool {
        self.number <= clock.get(self.stream)
    }
}

#[derive(Clone, Debug, Default)]
struct Segment {
    end: u64,
    write: Option<Access>,
    reads: Vec<Access>,
}

/// Two operations that touch the same bytes, at least one of which writes, and nothing orders them.
#[derive(Debug)]
pub struct Conflict {
    pub start: u64,
    pub end: u64,
    pub other: Label,
    pub other_writes: bool,
}

/// The past of one region.
#[derive(Debug, Default)]
pub struct History {
    segments: BTreeMap<u64, Segment>,
    /// When to look for segments that nobody needs any more.
    crowded: usize,
}

/// Segments up to this many are never worth a search for old ones.
const FEW: usize = 512;

impl History {
    /// Makes `at` a boundary between segments.
    fn split(&mut self, at: u64) {
        if let Some((_, segment)) = self.segments.range_mut(..at).next_back()
            && segment.end > at
        {
            let rest = segment.clone();
            segment.end = at;
            self.segments.insert(at, rest);
        }
    }

    /// The operation `me`, whose past is `clock`, touches [start, end).
    pub fn access(&mut self, start: u64, end: u64, write: bool, me: &Access, clock: &Clock) -> Result<(), Conflict> {
        let found = self.segments.range(..end).rev().take_while(|(_, segment)| segment.end > start);
        for (&from, segment) in found {
            let (from, to) = (from.max(start), segment.end.min(end));
            let conflict = |other: &Access, other_writes| Conflict {
                start: from,
                end: to,
                other: other.label.clone(),
                other_writes,
            };
            if let Some(last) = segment.write.as_ref().filter(|last| !last.before(clock)) {
                return Err(conflict(last, true));
            }
            if let Some(read) = segment.reads.iter().find(|read| write && !read.before(clock)) {
                return Err(conflict(read, false));
            }
        }
        self.split(start);
        self.split(end);
        if write {
            let inside: Vec<u64> = self.segments.range(start..end).map(|(&from, _)| from).collect();
            for from in inside {
                self.segments.remove(&from);
            }
            self.segments.insert(start, Segment { end, write: Some(me.clone()), reads: Vec::new() });
            return Ok(());
        }
        let mut gaps = Vec::new();
        let mut at = start;
        for (&from, segment) in self.segments.range_mut(start..end) {
            if from > at {
                gaps.push((at, from));
            }
            at = segment.end;
            match segment.reads.iter_mut().find(|read| read.stream == me.stream) {
                Some(read) => *read = me.clone(),
                None => segment.reads.push(me.clone()),
            }
        }
        if at < end {
            gaps.push((at, end));
        }
        for (from, to) in gaps {
            self.segments.insert(from, Segment { end: to, write: None, reads: vec![me.clone()] });
        }
        Ok(())
    }

    /// An access that `clock` does not know to have ended.
    pub fn pending(&self, clock: &Clock) -> Option<&Label> {
        self.segments.values().find_map(|segment| {
            let all = segment.write.iter().chain(&segment.reads);
            all.into_iter().find(|access| !access.before(clock)).map(|access| &access.label)
        })
    }

    /// Whether there is so much past that `forget` is worth its time.
    pub fn is_crowded(&self) -> bool {
        self.segments.len() > self.crowded.max(FEW)
    }

    /// Drops what is in the past of everything that can still come: `floor` is in all of their clocks.
    pub fn forget(&mut self, floor: &Clock) {
        self.segments.retain(|_, segment| {
            segment.reads.retain(|read| !read.before(floor));
            segment.write.take_if(|write| write.before(floor));
            segment.write.is_some() || !segment.reads.is_empty()
        });
        self.crowded = self.segments.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(stream: usize, number: u64) -> Access {
        Access { stream, number, label: format!("{stream}:{number}").into() }
    }

    fn knows(past: &[(usize, u64)]) -> Clock {
        let mut clock = Clock::default();
        for &(stream, number) in past {
            clock.set(stream, number);
        }
        clock
    }

    #[test]
    fn unordered_accesses_conflict_where_they_overlap() {
        let mut history = History::default();
        history.access(0, 100, true, &op(0, 1), &knows(&[(0, 1)])).unwrap();
        // Beside it; then after it.
        history.access(100, 200, true, &op(1, 1), &knows(&[(1, 1)])).unwrap();
        history.access(50, 100, false, &op(1, 2), &knows(&[(0, 1), (1, 2)])).unwrap();
        let read = history.access(99, 150, false, &op(2, 1), &knows(&[(1, 1), (2, 1)])).unwrap_err();
        assert_eq!((read.start, read.end, &*read.other, read.other_writes), (99, 100, "0:1", true));
        // Stream 0 writes again without waiting for the reader.
        let write = history.access(0, 60, true, &op(0, 2), &knows(&[(0, 2)])).unwrap_err();
        assert_eq!((write.start, write.end, &*write.other, write.other_writes), (50, 60, "1:2", false));
        history.access(0, 50, true, &op(0, 2), &knows(&[(0, 2)])).unwrap();
        assert!(history.pending(&knows(&[(0, 2), (1, 2)])).is_none());
        assert!(history.pending(&knows(&[(0, 1), (1, 2)])).is_some());
    }

    #[test]
    fn reads_do_not_conflict_and_every_stream_is_waited_for() {
        let mut history = History::default();
        for stream in 0..3 {
            history.access(10, 20, false, &op(stream, 1), &knows(&[(stream, 1)])).unwrap();
        }
        let all_but_one = knows(&[(0, 1), (2, 1), (3, 1)]);
        assert_eq!(&*history.access(19, 21, true, &op(3, 1), &all_but_one).unwrap_err().other, "1:1");
        history.access(20, 30, true, &op(3, 1), &all_but_one).unwrap();
    }

    #[test]
    fn what_is_forgotten_is_what_all_know() {
        let mut history = History::default();
        for i in 0..2000 {
            history.access(i * 10, i * 10 + 5, true, &op(0, i + 1), &knows(&[(0, i + 1)])).unwrap();
        }
        assert!(history.is_crowded());
        history.forget(&knows(&[(0, 1990)]));
        assert_eq!(history.segments.len(), 10);
        assert!(history.access(19_900, 19_901, false, &op(1, 1), &knows(&[(1, 1)])).is_err());
        history.access(0, 19_900, false, &op(1, 1), &knows(&[(1, 1)])).unwrap();
    }
}
