//! Takes a node out of replication everywhere, whether or not all nodes can be reached now.
//!
//! [`operation`] is what an operator starts: it writes the removal down, does this node's part and tells all others.
//! [`part`] is what each node does when it hears of it; [`spread`] tells those that were not reached, again and again, and
//! does what could not be done at once. Every node that has heard of a removal helps to tell the rest: it is finished even
//! when the node that began it never comes back. The data of all nodes stays.

pub mod operation;
pub mod part;
pub mod spread;
