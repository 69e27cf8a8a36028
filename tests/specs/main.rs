//! The specs: what Steep promises, one file a promise.

mod agents;
mod alike;
mod cancel;
mod certificates;
mod contexts;
mod direct;
mod echo;
mod events;
mod harness;
mod http;
mod identity;
mod intents;
mod link;
mod membership;
mod mesh;
mod names;
mod operations;
mod refusals;
mod removal;
mod roles;
mod rows;
mod shapes;
mod state;
mod types;
mod upkeep;
mod versions;
