//! `--profile` and `--trace`: where the time went, as tables for people and as a timeline for Perfetto.

use std::fmt::Write as _;
use std::io;

use serde_json::json;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::profile::{Recorder, Report, Row, SPANS};
use crate::stream::DemandStats;

use super::args;
use super::output::{WholeFile, tell};
use super::table::{Table, count, data, rate, seconds};

/// What of both was asked for.
pub struct Seeing {
    profile: bool,
    trace: Option<WholeFile>,
    recorder: Recorder,
}

impl Seeing {
    /// Begins to record if that was asked for. The trace's file is made now, so that a wrong name is told before the work.
    pub fn begin(args: &args::Seeing) -> Result<Seeing> {
        let trace = args.trace.as_deref().map(WholeFile::create).transpose()?;
        let recorder =
            if args.profile || trace.is_some() { Recorder::new(trace.is_some()) } else { Recorder::default() };
        Ok(Seeing { profile: args.profile, trace, recorder })
    }

    /// What the model is to record to.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Prints the tables and writes the timeline, of all passes so far.
    pub fn end(self, model: &Model) -> Result<()> {
        if let Some(report) = self.recorder.report().filter(|_| self.profile) {
            tell(tables(&report, model.expert_stats().as_ref()));
        }
        let Some(mut file) = self.trace else { return Ok(()) };
        let report = self.recorder.report().unwrap_or_default();
        let Row { disk_wait, copy_wait, compute, idle, .. } = report.total;
        let about = json!({
            "program": format!("layerstream {}", env!("CARGO_PKG_VERSION")),
            "model": model.checkpoint().dir(),
            "device": model.processor().describe(),
            "passes": report.passes,
            "seconds": report.seconds,
            "disk_wait_seconds": disk_wait,
            "copy_wait_seconds": copy_wait,
            "compute_seconds": compute,
            "host_seconds": idle,
            "disk_bytes": report.disk.bytes,
        });
        let mut failure = None;
        let left_out = self.recorder.write_trace(&about, &mut Into { file: &mut file, failure: &mut failure });
        match (left_out, failure) {
            (_, Some(error)) => return Err(error),
            (Err(error), None) => return Err(Error::Request(format!("the trace cannot be written: {error}"))),
            (Ok(0), None) => {}
            (Ok(n), None) => tell(format!("the trace has the first {SPANS} spans; {n} more did not fit\n")),
        }
        file.finish()
    }
}

/// A file as what JSON is written to; its own error says more than that of the trait.
struct Into<'a> {
    file: &'a mut WholeFile,
    failure: &'a mut Option<Error>,
}

impl io::Write for Into<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map(|()| bytes.len()).map_err(|error| {
            *self.failure = Some(error);
            io::ErrorKind::Other.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tables(report: &Report, experts: Option<&DemandStats>) -> String {
    let mut text = String::new();
    for (title, rows) in [("step", &report.kinds), ("layer", &report.layers)] {
        let _ = writeln!(
            text,
            "\n{title:<18}{:>7}{:>11}{:>11}{:>11}{:>11}{:>11}{:>12}  limit",
            "calls", "disk wait", "copy wait", "compute", "host", "copying", "weights"
        );
        let total = (title == "step").then_some(&report.total);
        rows.iter().chain(total).for_each(|row| line(&mut text, row));
    }
    let disk = &report.disk;
    let mut summary = Table::default();
    summary.row("passes", format!("{}, {} in all", report.passes, seconds(report.seconds)));
    let (bytes, busy) = (disk.bytes, disk.busy_seconds());
    let speed = rate(if busy > 0.0 { bytes as f64 / busy } else { 0.0 });
    summary.row(
        "disk",
        format!(
            "{} in {}, {speed} for the {} in which it had work; {:.1} reads in flight",
            data(bytes),
            count(disk.reads, "read"),
            seconds(busy),
            disk.in_flight()
        ),
    );
    let Row { copied, copying, .. } = report.total;
    if copying > 0.0 {
        let speed = rate(copied as f64 / copying);
        summary.row("copies", format!("{} to the GPU, {speed} for the {} they took", data(copied), seconds(copying)));
    }
    if let Some(experts) = experts {
        let hits = 100.0 * experts.hit_rate().unwrap_or(0.0);
        let read = data(experts.bytes_read);
        summary.row("experts", format!("{hits:.0} % of {} from memory, {read} read", data(experts.bytes_used)));
    }
    summary.row("limit", report.total.limit());
    let _ = write!(text, "\n{summary}");
    text
}

fn line(text: &mut String, row: &Row) {
    let Row { name, calls, .. } = row;
    let speed = if row.bytes > 0 { rate(row.rate()) } else { String::new() };
    let times = [row.disk_wait, row.copy_wait, row.compute, row.idle, row.copying].map(seconds);
    let [disk, copy, compute, host, copying] = times;
    let limit = row.limit();
    let _ = writeln!(
        text,
        "{name:<18}{calls:>7}{disk:>11}{copy:>11}{compute:>11}{host:>11}{copying:>11}{speed:>12}  {limit}"
    );
}
