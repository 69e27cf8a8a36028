//! The specs: what Steep promises, one file a promise.

mod cancel;
mod direct;
mod echo;
mod harness;
mod operations;
mod refusals;
mod rows;
mod state;
mod versions;
