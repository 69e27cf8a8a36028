//! Shapes of databases compared, and what would bring one to the other. Pure.
//!
//! Reading order: [`catalog`] is what a node says of its tables, types and sequences, read from the [`document`]s
//! its database wrote; [`compare`] gives each table of two nodes a verdict, [`diff`] names what differs; [`plan`] is the
//! list of statements that would bring the target up to date, and of everything an operator has to do by hand; [`respell`]
//! tells texts that only look different from those that are; [`uses`] says which types a table is made of.

pub mod catalog;
pub mod document;
mod read;

mod clause;
pub mod compare;
pub mod diff;
pub mod plan;
pub mod respell;
mod uses;

pub use catalog::Catalog;
pub use document::BadDocument;
pub use plan::Plan;
pub use uses::blame_types;
