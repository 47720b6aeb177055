//! The operations that a program needs, on the devices that can run them.

pub mod cpu;
