//! What other people's kernels take for the same problems: cuBLAS and flash attention, as PyTorch has them (peers.py).

use std::process::Command;

use crate::bench::Peer;
use serde_json::{Value, json};

const SCRIPT: &str = include_str!("peers.py");

fn problem(peer: &Peer) -> Value {
    match *peer {
        Peer::Matmul { m, n, k } => json!({ "op": "matmul", "m": m, "n": n, "k": k }),
        Peer::Attention { rows, heads, kv_heads, head_dim } => {
            json!({ "op": "attention", "rows": rows, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim })
        }
    }
}

/// Who did it, and the median seconds of each problem, none where it did not fit.
///
/// # Errors
/// Python, PyTorch or its GPU support is not there, or fails.
pub fn time(peers: &[Peer], gpu: u32, repeat: usize) -> Result<(String, Vec<Option<f64>>), String> {
    let problems = Value::Array(peers.iter().map(problem).collect()).to_string();
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT, &problems, &repeat.to_string()]);
    if std::env::var_os("CUDA_VISIBLE_DEVICES").is_none() {
        command.env("CUDA_VISIBLE_DEVICES", gpu.to_string());
    }
    let output = command.output().map_err(|e| format!("cannot run python3: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(said.lines().last().unwrap_or("python3 failed and says nothing").to_string());
    }
    answer(&output.stdout, peers.len()).ok_or_else(|| "peers.py answers in another form than it should".into())
}

fn answer(said: &[u8], count: usize) -> Option<(String, Vec<Option<f64>>)> {
    let answer: Value = serde_json::from_slice(said).ok()?;
    let seconds: Vec<Option<f64>> = answer["seconds"].as_array()?.iter().map(Value::as_f64).collect();
    (seconds.len() == count).then_some((answer["with"].as_str()?.to_string(), seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_or_refused() {
        let said = br#"{"with": "PyTorch", "seconds": [0.5, null]}"#;
        assert_eq!(answer(said, 2), Some(("PyTorch".into(), vec![Some(0.5), None])));
        assert_eq!(answer(said, 3), None);
        assert_eq!(answer(b"nothing", 0), None);
    }
}
