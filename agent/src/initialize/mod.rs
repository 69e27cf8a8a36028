//! How a node comes to be synchronized: preflight, recipe, and the source's part in it.
//!
//! [`preflight`] looks whether both nodes can do it and changes nothing; [`direct`] is the recipe, read top to
//! bottom; [`steps`] its longer steps; [`subscribe`] makes subscriptions on either end; [`start`] is the door.

pub mod direct;
pub mod findings;
pub mod preflight;
pub mod source;
pub mod start;
pub mod steps;
pub mod subscribe;
