//! Sweeps: one experiment with many settings.
//!
//! A sweep is a base experiment, optional named variants of it, and a grid of keys with the values
//! each takes; every combination is a [`Cell`]. Cells are experiments like any other: checked before the
//! first one runs, each in a folder of its own that is named after its content. So an interrupted sweep
//! goes on where it was, a changed one keeps what is still in it, and several processes, on one machine
//! or on many with a common file system, may work on the same sweep at once.

mod cell;
mod error;
mod results;
mod run;
mod spec;

pub(crate) use self::results::RESULTS;
pub use self::{
    cell::Cell,
    error::SweepError,
    results::{CellResult, SweepResults},
    run::{SweepOptions, SweepProgress, run},
    spec::{Axis, Sweep, Variant},
};
