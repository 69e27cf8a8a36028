//! The other agents: who they are, how to reach them, what they last said of their nodes.
//!
//! In this version peers come from the configuration; [`peers`] keeps one connection to each of them, whoever
//! dialled it. [`transport`] says what carries it, and which of two is used. [`source`] is what a target asks of the
//! source it is initialized from.

pub mod peers;
pub mod source;
pub mod transport;

pub use peers::{Facts, Peers};
pub use source::Source;
