//! Where this node's schema leaves another's, and how it is brought back.
//!
//! Reading order: [`look`] reads the database as a catalog; [`deparse`] settles what only two versions of PostgreSQL write
//! in two ways; [`apply`] runs a plan, after [`trial`] has shown that it does what it says.

pub mod apply;
pub mod deparse;
mod error;
pub mod look;
mod trial;

pub use error::Error;
