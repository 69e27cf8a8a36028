//! The specs: what Steep promises, one file a promise.

mod agents;
mod alike;
mod cancel;
mod direct;
mod echo;
mod harness;
mod identity;
mod intents;
mod names;
mod operations;
mod refusals;
mod roles;
mod rows;
mod shapes;
mod state;
mod types;
mod versions;
