//! One agent beside each PostgreSQL: it initializes its node from another, serves its rows to others, and
//! keeps watch over replication.
//!
//! Reading order, top down; every arrow between rooms points down this list (`cargo x check` holds it):
//!
//! * [`agent`] wires everything and tells the life story of one run.
//! * [`api`] is the door: parse, authorize, call, reply.
//! * [`initialize`] holds the recipe by which a node comes to be synchronized, and its preflight.
//! * [`snapshot`] moves a database as blocks; [`operations`] runs long work as steps that can be undone.
//! * [`cleanup`] knows every side effect and how it is undone.
//! * [`session`] is what this node holds open for a peer; [`store`] is what the agent remembers.
//! * [`postgres`] is everything said to the local PostgreSQL; [`mesh`] the other agents; [`lifecycle`] the
//!   states of a node; [`config`] every key of `agent.toml`; [`telemetry`] the log.

pub mod agent;
pub mod api;
pub mod cleanup;
pub mod initialize;
pub mod operations;
pub mod session;
pub mod snapshot;

pub mod mesh;
pub mod postgres;
pub mod store;

pub mod config;
pub mod lifecycle;
pub mod telemetry;
pub mod vitals;
