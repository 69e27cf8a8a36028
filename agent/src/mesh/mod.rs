//! The other agents: who they are, how to reach them, what they last said of their nodes.
//!
//! In this version peers come from the configuration; [`peers`] keeps one connection to each of them, whoever
//! dialled it. [`source`] is what a target asks of the source it is initialized from. [`revocations`] are the lists
//! of revoked certificates, which travel from agent to agent by themselves.

pub mod peers;
pub mod revocations;
pub mod source;

pub use peers::{Facts, Peers};
pub use revocations::{Claims, Revocations, own_is_revoked};
pub use source::Source;
