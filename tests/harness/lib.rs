//! Two nodes and the words to talk about them: what specs are written in.
//!
//! [`Cluster`] starts nodes, a [`Node`] is asked and told things in SQL, [`Steepctl`] is an operator at its keyboard,
//! [`Follower`] one who keeps watching, and [`Operation`] what they started. [`fault`] breaks parts on purpose,
//! [`by_hand`] runs what steepctl has printed, [`Hosts`] are network namespaces, a [`Clock`] goes wrong; [`Inventory`] lists what a node holds so that leftovers show. [`guest`] speaks to an agent with whatever certificate, a
//! [`stranger`] does to it what no agent does, and a [`Line`] is the network between two nodes, to be cut. [`ledger`]
//! writes all the while and knows afterwards what must be there. [`until`] waits for a fact, never for a time. [`shop`]
//! has tables to copy, an [`ObjectStore`] holds snapshots.
//!
//! Everything started is ended when its last [`Node`] drops, also when the spec fails; then the agents' last lines
//! are shown. Every line an agent logged is held against the schema of log events. With `STEEP_KEEP=1` a failed
//! spec's files stay where they are.

mod background;
pub mod by_hand;
pub mod clock;
mod cluster;
pub mod fault;
mod follower;
pub mod guest;
mod hosts;
mod inventory;
pub mod ledger;
mod logs;
mod node;
pub mod object_store;
mod operation;
mod relay;
pub mod shop;
mod steepctl;
pub mod stranger;
mod stray;
mod wait;

pub use steep_protocol::node::NodeState;
pub use xtask::cluster::server::Stop;

pub use self::{
    clock::Clock,
    cluster::Cluster,
    fault::crash_points,
    follower::Follower,
    hosts::Hosts,
    inventory::Inventory,
    ledger::{Ledger, Writers},
    node::{Content, Node},
    object_store::ObjectStore,
    operation::Operation,
    relay::{Line, reached_at},
    steepctl::{Outcome, Steepctl},
    stray::Stray,
    wait::{PATIENCE, until},
};
