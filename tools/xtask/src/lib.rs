//! Everything that is automated in this project, as a library; `cargo x` is the command around it.
//!
//! Reading order: [`workspace`] knows where the project lies and builds it; [`process`], [`interrupt`] and
//! [`say`] are how other programs are run, how all of it ends on Ctrl-C, and how we talk about it.
//! [`postgres`] finds or fetches servers, [`cluster`] starts nodes with them. On these stand the commands:
//! [`demo`], [`test`], [`check`] with [`tidy`], [`extension`], and [`bench`].
//!
//! The harness of the specs uses [`cluster`] too, so that a spec, the demo and a script meet the same nodes.

pub mod workspace;

pub mod interrupt;
pub mod process;
pub mod say;

pub mod postgres;

pub mod cluster;

pub mod bench;
pub mod check;
pub mod demo;
pub mod extension;
pub mod test;
pub mod tidy;
