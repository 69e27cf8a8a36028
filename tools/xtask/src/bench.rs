//! stub
#[derive(Debug, clap::Args)] pub struct Arguments {}
#[derive(Debug, clap::Subcommand)] pub enum Command { Copy }
pub fn run<T>(_: T) -> anyhow::Result<()> { Ok(()) }
