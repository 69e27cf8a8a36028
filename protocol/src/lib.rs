//! The words Steep's agents use, and how they travel.
//!
//! Reading order: [`ids`], [`lsn`] and [`names`] are the small words; [`node`] and [`operation`] say what
//! nodes and long work can be; [`failure`] is an error that keeps its meaning across the wire; [`time`] the time
//! of day in messages; [`version`] is the rule two agents agree by; [`wire`] is how all of it travels; [`intent`] is what
//! an operator signs. [`v1`] holds the generated messages.
//!
//! Knows no PostgreSQL client, no terminal and no command line.

pub mod ids;
pub mod lsn;
pub mod names;

pub mod node;
pub mod operation;

pub mod failure;
pub mod time;
pub mod version;

pub mod intent;
pub mod wire;

/// The messages and services of `proto/steep/v1`, as generated.
#[expect(missing_docs, reason = "the .proto files are the documentation")]
#[allow(clippy::allow_attributes, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("steep.v1");

    /// The file descriptors of all services, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steep.v1.bin"));
}
