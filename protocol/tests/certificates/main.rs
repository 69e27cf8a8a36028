//! Certificates on real endpoints: what is refused, and what changes while endpoints run.

mod live;
mod pki;
mod refused;
mod revocation;
