//! Links the library so that a loader takes it for the CUDA driver: under its name, and loaded for good.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // Who probes for the driver opens it, closes it and opens it again. What it knows must outlive that.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
