//! Medians, percentiles, and the processor's time.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Median and range of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without samples. The median of an even number is the mean of the two in the middle.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let sorted = sorted(samples);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Spread { median, min, max })
    }
}

/// Percentiles of how long chunks took, in milliseconds: the smallest value that so many of 100 do not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latency {
    /// Of seconds; `None` without any.
    pub fn of(seconds: impl IntoIterator<Item = f64>) -> Option<Latency> {
        let sorted = sorted(seconds);
        let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1] * 1e3;
        let max = sorted.last()? * 1e3;
        Some(Latency { p50: at(50), p90: at(90), p99: at(99), max })
    }
}

fn sorted(samples: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = samples.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// User and system time of all threads of this process so far.
pub fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let latency = Latency::of((1..=200).map(|i| f64::from(i) / 1e3)).unwrap();
        let expected = [100.0, 180.0, 198.0, 200.0];
        for (found, expected) in [latency.p50, latency.p90, latency.p99, latency.max].into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
        assert_eq!(Latency::of([0.5]).unwrap().p99, 500.0);
    }
}
