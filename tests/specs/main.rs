//! The specs: what Steep promises, one file a promise.

mod agents;
mod alike;
mod cancel;
mod direct;
mod echo;
mod harness;
mod hostile;
mod identity;
mod names;
mod operations;
mod refusals;
mod rows;
mod shapes;
mod state;
mod transport;
mod types;
mod versions;
