//! The `kernels` command. All of it is in the library's `workbench` module, so that other programs have it too.

fn main() -> std::process::ExitCode {
    layerstream_kernels::workbench::main()
}
