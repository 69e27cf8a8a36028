//! Everything said to the local PostgreSQL.
//!
//! Reading order: [`connect`] opens sessions, `cancel` stops what runs on one; [`catalog`] and its neighbours look, [`shapes`] at what tables are made of, [`disk`] at free space; [`replication`], [`slots`],
//! [`origins`], [`publications`] and [`subscriptions`] are what PostgreSQL's replication is made of, [`links`] those that
//! make a mesh, [`walsender`] its bytes, [`copies`] what a physical copy has of its source; [`copy`] moves rows, which `gather` takes off the socket; [`dump`] runs pg_dump and pg_restore; [`inventory`] knows what a restore made, so that it can be dropped;
//! [`ddl`] renders every statement that cannot take parameters.
//!
//! Hands out types of its own: no other room but the store names the client library.

/// The text of a statement under `agent/sql`.
macro_rules! sql {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/", $path))
    };
}
pub(crate) use sql;

mod cancel;
pub mod connect;
mod passfile;

pub mod activity;
pub mod catalog;
pub mod disk;
pub mod rows;
pub mod selection;
pub mod sequences;
pub mod shapes;
pub mod tables;

pub mod copies;
pub mod detours;
pub mod keys;
pub mod links;
pub mod marks;
pub mod origins;
pub mod publications;
pub mod replication;
pub mod slots;
pub mod staging;
pub mod subscriptions;
mod unseen;
pub mod walsender;

pub mod copy;
mod gather;

mod archive;
pub mod dump;
pub mod inventory;
mod script;

pub mod conninfo;
pub mod ddl;
pub mod error;
pub mod version;

pub use cancel::Canceller;
pub use connect::{Database, PostgresConfig, Purpose, Session};
pub use copy::Reader;
pub use error::Error;
pub use version::Version;
