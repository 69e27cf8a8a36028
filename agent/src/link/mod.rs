//! The replication link: a subscription's connection to its publisher, carried between the agents.
//!
//! ```text
//! walreceiver > unix socket ([`near`]) ==> stream to the publisher's agent ([`far`]) > walsender, logged in as that agent
//! ```
//! So PostgreSQL listens for no other host, and no password of a database leaves its machine. [`near`] reads the start-up
//! packet ([`startup`]) and wants the link's secret, which only the subscription's connection string holds; [`far`] opens
//! a session for the slots it made for the caller, and lets through what a walreceiver says ([`commands`]), also one that copies its [`tables`] itself. [`relay`]
//! moves the bytes, [`place`] is where sockets lie, [`traffic`] counts. [`Links`] are the links of this node's
//! subscriptions, [`Publisher`] serves those of others.
//!
//! Nothing is queued here: a full socket or a full QUIC window holds the sender back, as one TCP connection would.

mod commands;
mod far;
mod links;
mod near;
mod place;
mod relay;
mod startup;
mod tables;
mod traffic;

pub use self::{
    far::{Publisher, not_yet},
    links::Links,
    traffic::{End, Traffic},
};
