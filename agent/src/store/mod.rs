//! What the agent remembers, in schema `steep_repl` of its own database.
//!
//! Reading order: [`control`] is the one session all of it goes through, and the lock that keeps a second agent
//! out; [`migrate`] brings the schema up to date and [`identity`] refuses a database that is not this node's.
//! Then one file a table or two: [`nodes`], [`hearsay`] of others, [`operations`] with their [`steps`], [`events`] and [`notes`], [`intents`],
//! [`ledger`], [`progress`], [`removals`], [`snapshots`], [`follows`], [`fingerprints`], [`audit`] with [`denials`], [`signed_intents`].
//!
//! What is written here is believed after a crash, so every function is one transaction. Whoever drops one of its
//! futures half-way finds it done or not done, never half done.

mod control;
mod error;
mod identity;
mod migrate;
mod row;

pub mod hearsay;
pub mod nodes;
pub mod operations;

pub mod events;
pub mod fingerprints;
pub mod follows;
pub mod intents;
pub mod ledger;
pub mod notes;
pub mod preparations;
pub mod progress;
pub mod removals;
pub mod snapshots;
pub mod steps;

pub mod audit;
pub mod denials;
pub mod signed_intents;

pub use audit::{Actor, ActorKind};
pub use control::{Store, keep_agents_out};
pub use error::Error;
pub use identity::{Identity, Owner};
