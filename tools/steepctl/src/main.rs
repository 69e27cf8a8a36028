//! steepctl: asks any agent about any node. Everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    steepctl::run(std::env::args_os())
}
