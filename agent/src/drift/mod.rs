//! Where this node's schema leaves another's, and how it is brought back.
//!
//! Reading order: [`told`] is what agents tell each other of their schemas, [`exchange`] asks and answers; [`sides`] makes
//! catalogs of two nodes, compares and plans; [`watch`] notices by itself. [`look`] reads the database as a catalog;
//! [`deparse`] settles what only two versions of PostgreSQL write in two ways; [`apply`] runs a plan, after [`trial`] has
//! shown that it does what it says.

pub mod apply;
pub mod deparse;
mod error;
pub mod exchange;
pub mod look;
mod sides;
pub mod told;
mod trial;
pub mod watch;

pub use error::Error;
pub use exchange::Drift;
pub use sides::{Pair, Side};
