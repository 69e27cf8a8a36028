//! Notices by itself what keeps this node from replicating, and what others cost it.
//!
//! Every second [`watcher`] looks at this node's subscriptions and asks its sources how their slots fare ([`kept`]
//! answers); [`rules`] say when that amounts to trouble. A node in trouble is DIVERGED, with the cause and the next command, until
//! it is over; what was lost is never over. [`budgets`] are what slots may cost the server that keeps them.

pub mod budgets;
pub mod kept;
pub mod rules;
pub mod watcher;
