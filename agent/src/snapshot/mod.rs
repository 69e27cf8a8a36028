//! A database as blocks: how a part is sent, how it is received, what is built on the rows afterwards; and as [`files`].

pub mod files;
pub mod indexes;
pub mod receive;
pub mod send;
mod unpad;
pub mod walwriter;
