//! The specs: what Steep promises, one file a promise.

mod agents;
mod alike;
mod cancel;
mod certificates;
mod direct;
mod echo;
mod harness;
mod identity;
mod link;
mod names;
mod operations;
mod refusals;
mod rows;
mod shapes;
mod state;
mod types;
mod versions;
