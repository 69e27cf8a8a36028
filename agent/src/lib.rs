//! One agent beside each PostgreSQL: it initializes its node from another, serves its rows to others, and
//! keeps watch over replication.
//!
//! Reading order, top down; every arrow between rooms points down this list (`cargo x check` holds it):
//!
//! * [`agent`] wires everything and tells the life story of one run.
//! * [`api`] is the door: parse, authorize, call, reply. [`vitals`] measures how the node fares;
//!   [`mirror`] writes down how the others do; [`upkeep`] is what an operator does with a running agent, and what it
//!   looks at once in a while.
//! * [`health`] notices what keeps the node from replicating and moves it; [`slots`] knows what each slot is there for;
//!   [`sequences`] compares and moves what replication does not carry.
//! * [`initialize`] holds the recipe by which a node comes to be synchronized, and its preflight; [`rooms`] is what
//!   it works with. [`removal`] takes a node out of replication again.
//! * [`snapshot`] moves a database as blocks; [`operations`] runs long work as steps that can be undone;
//!   [`drift`] brings this node's schema to another's.
//! * [`session`] is what this node holds open for a peer, [`keeper`] the process that holds its snapshot; [`cleanup`] knows every side effect and how it is undone;
//!   [`link`] carries replication; [`parts`] cuts tables; [`storage`] is the directory of a snapshot in files; [`breakpoint`] is for specs.
//! * [`store`] is what the agent remembers; [`mesh`] the other agents; [`schema`] compares what two
//!   databases hold, and plans what would bring one to the other; [`identity`] the agent's own certificate while
//!   it runs; [`postgres`] everything said to the local PostgreSQL.
//! * [`troubles`] is what was found wrong; [`lifecycle`] is the states of a node; [`config`] every key of `agent.toml`; [`telemetry`] the log; [`metrics`]
//!   every number told to Prometheus.

pub mod agent;
pub mod api;
pub mod mirror;
pub mod upkeep;
pub mod vitals;

pub mod health;
pub mod initialize;
pub mod removal;
pub mod rooms;
pub mod sequences;
pub mod slots;

pub mod drift;
pub mod operations;
pub mod snapshot;

pub mod breakpoint;
pub mod cleanup;
pub mod keeper;
pub mod link;
pub mod parts;
pub mod session;
pub mod storage;

pub mod identity;
pub mod mesh;
pub mod postgres;
pub mod schema;
pub mod store;

pub mod config;
pub mod lifecycle;
pub mod metrics;
pub mod telemetry;
pub mod troubles;
