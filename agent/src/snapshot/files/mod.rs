//! A snapshot as files: [`manifest`] says what is there and is signed; [`codec`] how rows are compressed, [`rows`] counts
//! them; [`write`] makes the files of the rows, [`read`] opens a snapshot and gives them back, [`verify`] looks at all of it.
//! One that lies with another agent is read through [`peer`], which that one's [`lent`] answers.

pub mod codec;
pub mod lent;
pub mod manifest;
pub mod peer;
pub mod read;
pub mod rows;
pub mod verify;
pub mod write;
