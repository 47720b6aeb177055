//! Families: what configurations mean, the layouts and names that checkpoints come in, rotations that depend on the length
//! of a sequence; and that the golden cases see every mistake one could make in a family.

mod config;
mod layouts;
mod lengths;
mod mixtures;
#[path = "../reference/mod.rs"]
mod reference;
mod sensitivity;
mod states;
