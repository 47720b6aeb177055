//! The `layerstream` command. All of it is in the library's `cli` module, so that tests and other programs share it.

fn main() -> std::process::ExitCode {
    layerstream::cli::main()
}
