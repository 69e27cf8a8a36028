//! A database as blocks: which parts it is cut into, how a part is sent, how it is received, and what is built
//! on the rows afterwards.

pub mod indexes;
pub mod receive;
pub mod send;
