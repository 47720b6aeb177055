//! The timeline as JSON in the Trace Event Format of Chrome ("complete" events with microseconds, and metadata that names
//! lanes), which Perfetto (ui.perfetto.dev) and chrome://tracing open.
//!
//! Format: "Trace Event Format", Google, 2016 (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::json;

use super::{Cause, Lane, Recorder, Span};

impl Lane {
    /// Name, and number as a thread's, which is also the order in which lanes are shown.
    fn row(self) -> (String, usize) {
        match self {
            Lane::Compute => ("compute".into(), 1),
            Lane::Wait(_) => ("compute waits".into(), 2),
            Lane::Copy => ("copy".into(), 3),
            Lane::Disk(read) => (format!("disk, read {}", read + 1), 4 + usize::from(read)),
        }
    }

    fn category(self) -> &'static str {
        match self {
            Lane::Compute => "compute",
            Lane::Wait(Cause::Disk) => "wait for disk",
            Lane::Wait(Cause::Copy) => "wait for copy",
            Lane::Copy => "copy",
            Lane::Disk(_) => "disk",
        }
    }
}

impl Recorder {
    /// Writes the timeline; `about` is kept in it as `otherData`. Returns how many spans came after its memory was full and
    /// are not there.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_trace(&self, about: &serde_json::Value, out: &mut dyn Write) -> io::Result<u64> {
        let Some(state) = self.lock() else { return Ok(0) };
        let mut other = about.clone();
        other["spans_left_out"] = json!(state.lost);
        writeln!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{other},\"traceEvents\":[")?;
        let process = json!({"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": "layerstream"}});
        write!(out, "{process}")?;
        let lanes: BTreeSet<(usize, String)> = state.timeline.iter().map(|span| span.lane.row()).map(swap).collect();
        for (number, name) in lanes {
            let named = json!({"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}});
            let order = json!({"ph": "M", "pid": 1, "tid": number, "name": "thread_sort_index", "args": {"sort_index": number}});
            write!(out, ",\n{named},\n{order}")?;
        }
        for span in &state.timeline {
            let Span { start, end, bytes, step, lane } = *span;
            let label = state.labels.get(step as usize);
            let name = match lane {
                Lane::Wait(_) => json!(lane.category()),
                _ => json!(label.map_or("", |label| &label.name)),
            };
            let mut args = json!({});
            if let Some(layer) = label.and_then(|label| label.layer) {
                args["layer"] = json!(layer);
            }
            if bytes > 0 {
                args["bytes"] = json!(bytes);
                args["GB/s"] = json!((bytes as f64 / (end - start).max(1) as f64 * 1e3).round() / 1e3);
            }
            let (category, thread) = (lane.category(), lane.row().1);
            write!(
                out,
                ",\n{{\"ph\":\"X\",\"pid\":1,\"tid\":{thread},\"cat\":\"{category}\",\"name\":{name},\"ts\":{},\"dur\":{},\
                 \"args\":{args}}}",
                Microseconds(start),
                Microseconds(end - start),
            )?;
        }
        out.write_all(b"\n]}\n")?;
        Ok(state.lost)
    }
}

fn swap<A, B>((a, b): (A, B)) -> (B, A) {
    (b, a)
}

/// Nanoseconds, written as microseconds without rounding.
struct Microseconds(u64);

impl std::fmt::Display for Microseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
