//! Faults that tests plant in this backend, to show that each would be noticed: an environment variable names them
//! ([`planted`]). Only in builds with debug assertions; in all others [`set`] is always false.

use layerstream_kernels::driver::planted;

/// What is left out, or done too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// What multiplies does not wait for the copy of its tile.
    UseBeforeCopy,
    /// A copy does not wait until the tile that it overwrites was used.
    OverwriteBeforeUse,
    /// A tile's place in host memory is given back before its copy has happened.
    HostFreedEarly,
    /// Memory is freed without waiting for the copies into it.
    DropWhileCopying,
    /// Memory is freed without waiting for the steps of a pass that ended in a panic.
    DropWhileStepsRun,
    /// Logits are read before they are there.
    LogitsNotWaited,
    /// A layer's keys and values are used before they have come.
    KvUseBeforeCopy,
    /// Keys and values of another layer overwrite what is still being read.
    KvOverwriteBeforeUse,
    /// What was chosen is looked at before it is there.
    ChosenNotWaited,
    /// What multiplies does not wait for the copy of an expert's tile.
    ExpertUseBeforeCopy,
    /// A copy does not wait until the expert's tile that it overwrites was used.
    ExpertOverwriteBeforeUse,
    /// The place of an expert's tile in host memory is given back before its copy has happened.
    ExpertHostFreedEarly,
    /// No fault: as little as can be is copied ahead before experts were asked for, and these come when nothing else can be copied.
    ExpertsComeLate,
    /// A pass that was not completed gives tiles back without waiting for their copies.
    CopiesAbandoned,
    /// A pass that was not completed gives tiles back without waiting for the steps that use them.
    StepsAbandoned,
    /// No fault of this backend: a pass panics in the second layer.
    PassPanics,
}

/// Whether this fault is planted.
pub fn set(trap: Trap) -> bool {
    cfg!(debug_assertions) && planted(&format!("{trap:?}"))
}
