//! Initialization in two phases: a snapshot is written into files, and applied when and where it is wanted.
//!
//! [`generate`] writes one, with [`tables`] for its rows, and goes on with it after the agent's end with [`again`]; [`shelf`]
//! knows those there are, and takes them away; [`lend`] is the source's part when one is applied. [`apply`] is the door of that
//! on the target: its recipe is the direct one's, with files for the source of schema and rows, and [`steps`] where it differs.

pub mod again;
pub mod apply;
pub mod generate;
pub mod lend;
pub mod shelf;
pub mod steps;
mod tables;
