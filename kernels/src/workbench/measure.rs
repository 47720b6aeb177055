//! Time on a GPU: CUDA events around each repetition, the L2 cache filled with something else before it, and what the card
//! itself can do at best as the yardstick.

use crate::bench::{Goal, bytes_of};
use crate::check::Device;
use crate::driver::{Event, Gpu};
use crate::launch::peak::{FLOPS_PER_ROUND, THREADS, peak};
use crate::params::PeakParams;
use serde_json::{Value, json};

use super::gpu::{GpuDevice, Step};

/// Repetitions that are not counted.
const WARM_UP: usize = 3;

/// Seconds of each repetition, sorted. Not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn new(mut seconds: Vec<f64>) -> Times {
        assert!(!seconds.is_empty());
        seconds.sort_by(f64::total_cmp);
        Times(seconds)
    }

    /// The smallest that `share` of all do not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    pub fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 { self.0[middle] } else { (self.0[middle - 1] + self.0[middle]) / 2.0 }
    }
}

/// What this card reached at best, in this run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Bytes read and written a second by a copy.
    pub copy: f64,
    /// Operations a second of `mma` on registers (on sm_75: of multiply-adds).
    pub mma: f64,
    /// Seconds between two events with a kernel between them that does nothing.
    pub empty: f64,
}

/// One line of results.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    /// Whose kernel it is: ours, or the file.
    pub whose: String,
    pub times: Times,
    pub bytes: u64,
    pub flops: u64,
    pub goal: Option<Goal>,
    /// Seconds that the peer of the goal takes, where it was measured.
    pub peer: Option<f64>,
}

impl Row {
    fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.times.median()
    }

    fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.times.median()
    }

    /// What of its goal's yardstick this reaches, and the goal; for shapes that have one whose yardstick was measured.
    fn against_goal(&self, peaks: &Peaks) -> Option<(f64, f64)> {
        match self.goal? {
            Goal::Copy(goal) => Some((self.bytes_per_second() / peaks.copy, goal)),
            Goal::Peer(goal, _) => Some((self.peer? / self.times.median(), goal)),
        }
    }

    /// Whether the goal is reached.
    pub fn reached(&self, peaks: &Peaks) -> Option<bool> {
        self.against_goal(peaks).map(|(reached, goal)| reached >= goal)
    }

    /// The goal in words, and how far this is from it.
    pub fn verdict(&self, peaks: &Peaks) -> Option<String> {
        let (reached, goal) = self.against_goal(peaks)?;
        let what = if matches!(self.goal?, Goal::Copy(_)) { "copy bandwidth" } else { "PyTorch's speed" };
        let verdict = if reached >= goal { "reached" } else { "MISSED" };
        Some(format!("{:.1} % of {what}; the goal of {:.0} % is {verdict}", reached * 100.0, goal * 100.0))
    }

    pub fn header() -> String {
        format!(
            "{:<44} {:>10} {:>21} {:>9} {:>8} {:>9} {:>8}",
            "", "median", "5 % to 95 %", "GB/s", "of copy", "TFLOP/s", "of mma"
        )
    }

    pub fn line(&self, peaks: &Peaks) -> String {
        let spread = format!("{} to {}", duration(self.times.quantile(0.05)), duration(self.times.quantile(0.95)));
        let (bytes, flops) = (self.bytes_per_second(), self.flops_per_second());
        format!(
            "{:<44} {:>10} {spread:>21} {:>9.1} {:>6.1} % {:>9.2} {:>6.1} %",
            if self.whose == OURS { self.name.clone() } else { format!("  {}", self.whose) },
            duration(self.times.median()),
            bytes / 1e9,
            100.0 * bytes / peaks.copy,
            flops / 1e12,
            100.0 * flops / peaks.mma,
        )
    }

    pub fn json(&self, peaks: &Peaks) -> Value {
        let (bytes, flops) = (self.bytes_per_second(), self.flops_per_second());
        json!({
            "name": self.name, "kernel_of": self.whose, "repetitions": self.times.0.len(),
            "median_s": self.times.median(), "p5_s": self.times.quantile(0.05), "p95_s": self.times.quantile(0.95),
            "min_s": self.times.quantile(0.0), "max_s": self.times.quantile(1.0),
            "bytes": self.bytes, "flops": self.flops,
            "bytes_per_s": bytes, "flops_per_s": flops,
            "fraction_of_copy": bytes / peaks.copy, "fraction_of_mma": flops / peaks.mma,
            "goal": self.against_goal(peaks).map(|(_, goal)| goal), "peer_s": self.peer,
            "of_goal": self.verdict(peaks), "goal_reached": self.reached(peaks),
        })
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 10e-3 { format!("{:.1} us", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}

/// `Row::whose` of the kernels of this package.
pub const OURS: &str = "ours";

impl Peaks {
    pub fn json(&self) -> Value {
        json!({ "copy_bytes_per_s": self.copy, "mma_flops_per_s": self.mma, "empty_s": self.empty })
    }
}

/// Times launches on one GPU.
pub struct Meter {
    /// Holds what flushing needs, and the stream that everything runs on.
    device: GpuDevice,
    /// Reads twice as much as the L2 cache holds.
    flush: Vec<Step>,
    pub peaks: Peaks,
    repeat: usize,
}

/// Repetitions when the card itself is measured.
const PEAK_REPEAT: usize = 20;
const PEAK_ROUNDS: i32 = 4096;

fn peak_params(input: u64, out: u64, bytes: usize, rounds: i32) -> Vec<u8> {
    bytes_of(&PeakParams { in_: input as *const _, out: out as *mut _, bytes: bytes as i64, rounds })
}

impl Meter {
    /// Measures the card itself first, which takes under a second. `device` is a GPU with our kernels.
    pub fn new(mut device: GpuDevice, repeat: usize) -> Result<Meter, String> {
        let blocks = device.gpu.multiprocessors()? * 8;
        let (free, _) = device.gpu.memory()?;
        let flush_bytes = (2 * device.gpu.l2_bytes()?).max(32 << 20);
        // Large beside the cache; where a card is small, a quarter of what is free.
        let copy_bytes = (1usize << 30).min(free / 4).max(flush_bytes).next_multiple_of(16);
        let pattern = [1, 2, 3, 4, 5, 6, 7, 8];

        let input = device.repeat(&pattern, copy_bytes)?;
        let copied = device.repeat(&[0], copy_bytes)?;
        let sums = device.repeat(&[0], blocks * THREADS * 4)?;
        let copy = (peak("peak_copy", blocks), peak_params(input, copied, copy_bytes, 0));
        let mma = (peak("peak_mma", blocks), peak_params(0, sums, 0, PEAK_ROUNDS));
        let empty = (peak("peak_read", 1), peak_params(input, sums, 0, 0));
        let [copy, mma, empty] = [copy, mma, empty].map(|step| device.resolve(&[step]));
        let (copy, mma, empty) = (copy?, mma?, empty?);
        let none = Peaks { copy: 1.0, mma: 1.0, empty: 0.0 };
        let mut meter = Meter { device, flush: Vec::new(), peaks: none, repeat: PEAK_REPEAT };
        // SAFETY: the buffers above, large enough for what is told of them.
        let [copy, mma, empty] = unsafe { [meter.time(&copy)?, meter.time(&mma)?, meter.time(&empty)?] };
        let flops = blocks as u64 * PEAK_ROUNDS as u64 * FLOPS_PER_ROUND;
        meter.peaks = Peaks {
            copy: 2.0 * copy_bytes as f64 / copy.median(),
            mma: flops as f64 / mma.median(),
            empty: empty.median(),
        };

        // Of all that memory only what flushing takes is still needed.
        meter.device.clear();
        let input = meter.device.repeat(&pattern, flush_bytes)?;
        let sums = meter.device.repeat(&[0], blocks * THREADS * 4)?;
        let flush = (peak("peak_read", blocks), peak_params(input, sums, flush_bytes, 0));
        meter.flush = meter.device.resolve(&[flush])?;
        meter.repeat = repeat;
        Ok(meter)
    }

    pub fn gpu(&self) -> &Gpu {
        &self.device.gpu
    }

    /// Times launches that belong together, after a flush each time.
    ///
    /// # Safety
    /// Each with the parameter struct of its kernel, whose pointers stay valid until this returns.
    pub unsafe fn time(&self, steps: &[Step]) -> Result<Times, String> {
        let stream = &self.device.stream;
        let mut events = Vec::new();
        // All is queued at once, so that the CPU's part of a launch is over when the GPU comes to it.
        for _ in 0..WARM_UP + self.repeat {
            let (start, end) = (Event::new(&self.device.gpu)?, Event::new(&self.device.gpu)?);
            for step in &self.flush {
                // SAFETY: our own buffers.
                unsafe { stream.launch(&step.function, &step.launch, &step.params)? };
            }
            stream.record(&start)?;
            for step in steps {
                // SAFETY: the caller's promise.
                unsafe { stream.launch(&step.function, &step.launch, &step.params)? };
            }
            stream.record(&end)?;
            events.push((start, end));
        }
        stream.synchronize()?;
        let seconds = events.iter().skip(WARM_UP).map(|(start, end)| end.seconds_since(start));
        Ok(Times::new(seconds.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Peer;

    #[test]
    fn median_and_spread() {
        let times = Times::new(vec![3.0, 1.0, 2.0]);
        assert_eq!((times.median(), times.quantile(0.05), times.quantile(0.95)), (2.0, 1.0, 3.0));
        assert_eq!(Times::new(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        let hundred = Times::new((1..=100).rev().map(f64::from).collect());
        assert_eq!((hundred.quantile(0.05), hundred.quantile(0.95)), (5.0, 95.0));
        assert_eq!((hundred.quantile(0.0), hundred.quantile(1.0)), (1.0, 100.0));
    }

    #[test]
    fn rows_are_held_against_peaks_and_peers() {
        let peaks = Peaks { copy: 1000e9, mma: 100e12, empty: 2e-6 };
        let row = |goal, peer| Row {
            name: "gemm".into(),
            whose: OURS.into(),
            times: Times::new(vec![1e-3]),
            bytes: 800_000_000,
            flops: 50_000_000_000,
            goal,
            peer,
        };
        assert_eq!(row(None, None).reached(&peaks), None);
        assert_eq!(row(Some(Goal::Copy(0.75)), None).reached(&peaks), Some(true));
        assert_eq!(row(Some(Goal::Copy(0.85)), None).reached(&peaks), Some(false));
        let said = row(Some(Goal::Copy(0.85)), None).verdict(&peaks);
        assert_eq!(said.as_deref(), Some("80.0 % of copy bandwidth; the goal of 85 % is MISSED"));
        let line = row(None, None).line(&peaks);
        for part in ["1000.0 us", "800.0", "80.0 %", "50.00", "50.0 %"] {
            assert!(line.contains(part), "`{part}` in: {line}");
        }

        let peer = Goal::Peer(0.55, Peer::Matmul { m: 2048, n: 1, k: 1 });
        assert_eq!(row(Some(peer), None).reached(&peaks), None, "not measured, not judged");
        assert_eq!(row(Some(peer), Some(0.5e-3)).reached(&peaks), Some(false));
        let said = row(Some(peer), Some(0.6e-3)).verdict(&peaks);
        assert_eq!(said.as_deref(), Some("60.0 % of PyTorch's speed; the goal of 55 % is reached"));
        let json = row(Some(peer), Some(0.6e-3)).json(&peaks);
        assert_eq!((&json["fraction_of_copy"], &json["goal_reached"]), (&json!(0.8), &json!(true)));
    }
}
