//! The specs: what Steep promises, one file a promise.

mod harness;
