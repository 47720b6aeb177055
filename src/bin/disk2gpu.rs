//! The `disk2gpu` command. All of it is in the library's `cli` module, beside that of `layerstream`.

fn main() -> std::process::ExitCode {
    layerstream::cli::disk2gpu::main()
}
