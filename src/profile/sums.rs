//! Sums of what was recorded, by kind of step and by layer.

use super::{Recorder, State};

/// Of one step, in nanoseconds and bytes.
#[derive(Clone, Default)]
pub(super) struct Sum {
    pub calls: u64,
    pub bytes: u64,
    pub copied: u64,
    pub disk_wait: u64,
    pub copy_wait: u64,
    pub compute: u64,
    pub idle: u64,
    pub copying: u64,
}

/// What the drives did.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub reads: u64,
    pub bytes: u64,
    /// Nanoseconds in which at least one read was in flight.
    pub(super) busy: u64,
    /// Nanoseconds of all reads together.
    pub(super) latency: u64,
}

impl Disk {
    /// Seconds in which at least one read was in flight.
    pub fn busy_seconds(&self) -> f64 {
        self.busy as f64 / 1e9
    }

    /// Reads in flight, on average over those seconds.
    pub fn in_flight(&self) -> f64 {
        self.latency as f64 / self.busy.max(1) as f64
    }
}

/// Steps that belong together. Times are seconds of the lane that computes; together they are its whole time.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub name: String,
    /// Launches or calls: of a product, one for each tile.
    pub calls: u64,
    /// Waiting for bytes from a drive, or for the engine to fetch them.
    pub disk_wait: f64,
    /// Waiting for a copy to the GPU that was under way.
    pub copy_wait: f64,
    pub compute: f64,
    /// Nothing ran, and nothing was on its way: the host had not come to it.
    pub idle: f64,
    /// Seconds of the copy lane, which are beside the others.
    pub copying: f64,
    /// Bytes of weights that were used.
    pub bytes: u64,
    /// Bytes that were copied to the GPU.
    pub copied: u64,
}

impl Row {
    /// Seconds that it took in all.
    pub fn seconds(&self) -> f64 {
        self.disk_wait + self.copy_wait + self.compute + self.idle
    }

    /// Bytes of weights per second.
    pub fn rate(&self) -> f64 {
        if self.seconds() > 0.0 { self.bytes as f64 / self.seconds() } else { 0.0 }
    }

    /// What took most of its time: `disk`, `copy`, `compute` or `host`.
    pub fn limit(&self) -> &'static str {
        let causes =
            [("compute", self.compute), ("disk", self.disk_wait), ("copy", self.copy_wait), ("host", self.idle)];
        causes.into_iter().reduce(|most, other| if other.1 > most.1 { other } else { most }).map_or("", |most| most.0)
    }

    fn add(&mut self, sum: &Sum) {
        let seconds = |ns: u64| ns as f64 / 1e9;
        self.calls += sum.calls;
        self.disk_wait += seconds(sum.disk_wait);
        self.copy_wait += seconds(sum.copy_wait);
        self.compute += seconds(sum.compute);
        self.idle += seconds(sum.idle);
        self.copying += seconds(sum.copying);
        self.bytes += sum.bytes;
        self.copied += sum.copied;
    }
}

/// All passes so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub passes: u64,
    /// Seconds of all passes, each from its beginning to its logits.
    pub seconds: f64,
    /// By kind of step, in the order in which they first come.
    pub kinds: Vec<Row>,
    /// By layer; what belongs to none is the last.
    pub layers: Vec<Row>,
    pub total: Row,
    pub disk: Disk,
}

impl Recorder {
    /// Sums of what was recorded so far; none if the recorder is off.
    pub fn report(&self) -> Option<Report> {
        let state = self.lock()?;
        let mut report = Report { passes: state.passes, seconds: state.wall as f64 / 1e9, ..Report::default() };
        report.disk = disk(&state, self.now());
        report.total.name = "total".into();
        for (label, sum) in state.labels.iter().zip(&state.sums).filter(|(_, sum)| sum.calls > 0) {
            report.total.add(sum);
            row(&mut report.kinds, label.kind.into()).add(sum);
            let layer = label.layer.map_or("others".into(), |layer| format!("layer {layer}"));
            row(&mut report.layers, layer).add(sum);
        }
        report.total.idle += state.idle as f64 / 1e9;
        if let Some(at) = report.layers.iter().position(|row| row.name == "others") {
            let others = report.layers.remove(at);
            report.layers.push(others);
        }
        Some(report)
    }
}

fn disk(state: &State, now: u64) -> Disk {
    let running = if state.in_flight > 0 { now - state.disk_since } else { 0 };
    Disk { busy: state.disk.busy + running, ..state.disk.clone() }
}

fn row(rows: &mut Vec<Row>, name: String) -> &mut Row {
    let at = rows.iter().position(|row| row.name == name).unwrap_or(rows.len());
    if at == rows.len() {
        rows.push(Row { name, ..Row::default() });
    }
    &mut rows[at]
}
