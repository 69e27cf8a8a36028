//! How a node comes to be synchronized: preflight, recipe, and the source's part in it.
//!
//! [`preflight`] looks whether both nodes can do it and changes nothing, with [`shapes`] for the tables and [`disk`]
//! for the room they need; [`direct`] is the recipe, read top to bottom; [`steps`] its longer steps, [`schema`] the one
//! that makes tables; [`subscribe`] makes subscriptions on either end; [`start`] is the door. Where the source already
//! replicates both ways with others, [`mesh`] looks at all of them and [`members`] has the steps they take part in.

pub mod direct;
mod disk;
pub mod findings;
mod members;
pub mod mesh;
pub mod messages;
pub mod preflight;
pub mod schema;
mod shapes;
pub mod source;
pub mod start;
pub mod steps;
pub mod subscribe;
