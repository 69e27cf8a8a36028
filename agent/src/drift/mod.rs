//! Where this node's schema leaves another's, and how it is brought back.
//!
//! Reading order: [`told`] is what agents tell each other of their schemas; [`exchange`] asks and answers; [`sides`] makes
//! catalogs of both and compares or plans; [`watch`] notices by itself.

pub mod exchange;
mod sides;
pub mod told;
pub mod watch;

pub use exchange::Drift;
pub use sides::{Chosen, Pair, Side};
