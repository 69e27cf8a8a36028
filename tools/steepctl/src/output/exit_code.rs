//! What the shell is told.
//!
//! 0 success, 1 general, 2 usage (clap's), 3 schema, 4 cancelled, 5 timeout, 6 no connection, 7 permission,
//! 8 precondition, 9 conflict, 10 integrity, 12 what was compared differs, 130 detached by a signal.

use std::process::ExitCode;

use steep_protocol::failure::{Code, Failure};

/// How a command ends when it does not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Success,
    /// It did, and found that an agent does not answer.
    Unreached,
    /// It compared, as it should, and found differences; only where that was to be told.
    Differs,
    /// A signal ended the watching; the operation goes on in the agents.
    Detached,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Success => Self::SUCCESS,
            Exit::Unreached => Self::from(6),
            Exit::Differs => Self::from(12),
            Exit::Detached => Self::from(130),
        }
    }
}

/// The exit code of a failure: its family's number; 2 for a command line that makes no sense.
pub fn of(failure: &Failure) -> u8 {
    match failure.code {
        Code::Usage => 2,
        code => code.family() as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_ends_in_a_number_that_scripts_can_rely_on() {
        for code in Code::ALL {
            let number = of(&Failure::new(*code, ""));
            assert!((1..=10).contains(&number), "{code} ends in {number}");
        }
        let cases = [
            (Code::PeerUnreachable, 6),
            (Code::Denied, 7),
            (Code::TargetNotEmpty, 8),
            (Code::ConfirmationNeeded, 8),
            (Code::FileExists, 8),
            (Code::OperationRunning, 9),
            (Code::Cancelled, 4),
            (Code::Detached, 5),
            (Code::SchemaDiffers, 3),
            (Code::CountsDiffer, 10),
            (Code::Usage, 2),
            (Code::UnknownNode, 1),
        ];
        for (code, number) in cases {
            assert_eq!(of(&Failure::new(code, "")), number, "{code}");
        }
    }
}
