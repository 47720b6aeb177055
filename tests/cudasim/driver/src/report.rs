//! What happened, counted, for whoever started the program: see `LAYERSTREAM_SIM_REPORT`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

/// Copies of one kind.
#[derive(Default)]
pub struct Copies {
    pub count: u64,
    pub bytes: u64,
}

#[derive(Default)]
pub struct Report {
    /// Of each card, its context included, what other programs have not.
    pub peak_vram: BTreeMap<usize, u64>,
    pub peak_pinned: u64,
    pub host_to_device: Copies,
    pub device_to_host: Copies,
    pub device_to_device: Copies,
    /// Launches that ran, by kernel.
    pub launches: BTreeMap<String, u64>,
    pub allocations: u64,
    pub modules: u64,
    pub operations: u64,
    /// Waits of the host for kernels, with copies that these do not need still to happen.
    pub idle_waits: u64,
}

impl Report {
    pub fn launched(&mut self, kernel: &str) {
        match self.launches.get_mut(kernel) {
            Some(count) => *count += 1,
            None => {
                self.launches.insert(kernel.into(), 1);
            }
        }
    }

    /// Writes the report:
    ///
    /// * `misuse`: what ended the program, or null;
    /// * `peak_vram`: bytes, the largest of all cards; `peak_pinned`: bytes of page-locked memory;
    /// * `host_to_device`, `device_to_host`, `device_to_device`: `count` and `bytes` of the copies that ran;
    /// * `launches`: how many of each kernel; `allocations` of device memory; `modules` that were loaded;
    ///   `operations`: all that ran;
    /// * `idle_waits`: how often `cuEventSynchronize` waited for kernels while copies of another stream, which these do not
    ///   need, were still to happen: whoever waits for these first has room for more all the sooner.
    pub fn write(&self, path: &Path, misuse: Option<&str>) {
        let copies = |copies: &Copies| json!({ "count": copies.count, "bytes": copies.bytes });
        let launches: Map<String, Value> = self.launches.iter().map(|(k, n)| (k.clone(), json!(n))).collect();
        let report = json!({
            "misuse": misuse,
            "peak_vram": self.peak_vram.values().max().copied().unwrap_or(0),
            "peak_pinned": self.peak_pinned,
            "host_to_device": copies(&self.host_to_device),
            "device_to_host": copies(&self.device_to_host),
            "device_to_device": copies(&self.device_to_device),
            "launches": launches,
            "allocations": self.allocations,
            "modules": self.modules,
            "operations": self.operations,
            "idle_waits": self.idle_waits,
        });
        if let Err(e) = std::fs::write(path, format!("{report:#}\n")) {
            eprintln!("cudasim: the report cannot be written to {}: {e}", path.display());
        }
    }
}
