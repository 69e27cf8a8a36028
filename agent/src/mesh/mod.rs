//! The other agents: who they are, how to reach them, what they last said of their nodes.
//!
//! [`membership`] knows who is there and [`view`] what they have said; [`gossip`] decides what is told to whom. These
//! three are pure. [`peers`] and `links` keep a connection to each peer, whoever dialled it; [`transport`] says what carries it, and
//! which of two is used; `carrier` brings what gossip wants told over these; `seeds` finds the first of them; `rows` shows
//! what is known of all nodes, with its age. [`source`] is what a target asks of the source it is initialized from.
//! [`revocations`] are the lists of revoked certificates, which travel from agent to agent by themselves.

pub mod gossip;
pub mod membership;
pub mod view;

mod carrier;
mod datagram;
mod links;
pub mod peers;
pub mod revocations;
mod rows;
mod seeds;
pub mod source;
pub mod transport;

pub use peers::{Facts, Peers};
pub use revocations::{Claims, Revocations, own_is_revoked};
pub use rows::Row;
pub use source::Source;
