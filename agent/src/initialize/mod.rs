//! How a node comes to be synchronized: preflight, recipe, and the source's part in it.
//!
//! [`preflight`] looks whether both nodes can do it and changes nothing, with [`shapes`] for the tables and [`disk`]
//! for the room they need; [`direct`] is the recipe, read top to bottom, and [`native`] that of PostgreSQL's own copy, [`choose`] between them; [`prepare`], [`manual`] and [`complete`] are the two ends of a backup made by hand and its door, [`adopt`] what comes first with a physical copy, [`branch`] where it left its source, [`apart`] the proof that two databases are two; [`steps`] its longer steps, [`schema`] the one
//! that makes tables; [`subscribe`] makes subscriptions on either end, over what [`reach`] says; [`start`] is the door, [`resume`] that of an operation an earlier run of the agent has left, [`anew`] what is done about a lost snapshot, [`gates`] how finished tables outlive it, and [`scope`] the source's,
//! where what a peer asks for is held against what an operator has signed. Where the source already replicates both ways
//! with others, [`mesh`] looks at all of them and [`members`] has the steps they take part in. [`reinit`] copies some tables of
//! a node again that was initialized before; [`two_phase`] writes a snapshot into files, and initializes a node from one.

pub mod adopt;
mod anew;
pub mod apart;
mod branch;
mod choose;
pub mod complete;
pub mod direct;
mod disk;
mod drifted;
pub mod findings;
mod gates;
mod manual;
mod members;
pub mod mesh;
pub mod messages;
mod native;
pub mod preflight;
pub mod prepare;
pub mod reach;
pub mod reinit;
pub mod resume;
pub mod schema;
pub mod scope;
mod shapes;
pub mod source;
pub mod start;
pub mod steps;
pub mod subscribe;
pub mod two_phase;
