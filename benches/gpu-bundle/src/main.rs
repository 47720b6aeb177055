//! All programs of the GPU bundle in one file, so that what they share, the kernels and the library, is there once. It is
//! started by the name of one of them: the bundle has a link for each.

#[path = "../../../tests/reference/expected.rs"]
mod expected;
mod golden;
#[path = "../../../tests/reference/gpu.rs"]
mod gpu;
mod targets;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

type Program = fn() -> ExitCode;

/// Programs by name.
const PROGRAMS: [(&str, Program); 5] = [
    ("layerstream", layerstream::cli::main),
    ("disk2gpu", layerstream::cli::disk2gpu::main),
    ("golden-check", golden::main),
    ("kernels", layerstream_kernels::workbench::main),
    ("targets", targets::main),
];

fn main() -> ExitCode {
    let started_as = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&started_as).file_name().and_then(OsStr::to_str);
    match PROGRAMS.iter().find(|(program, _)| Some(*program) == name) {
        Some((_, program)) => program(),
        None => {
            let names = PROGRAMS.map(|(program, _)| program).join(", ");
            eprintln!("gpu-bundle: this is {names} in one file; start it by a link with one of these names");
            ExitCode::from(2)
        }
    }
}
