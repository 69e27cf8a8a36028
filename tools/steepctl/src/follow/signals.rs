//! Ctrl-C and SIGTERM as something to wait for.

use steep_protocol::failure::{Code, Failure};

/// Who wants us to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Somebody pressed Ctrl-C.
    Interrupt,
    /// The system, or whoever runs us.
    Terminate,
}

/// Listens for both; while it lives, they do not end the program by themselves.
#[derive(Debug)]
pub(super) struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
    #[cfg(windows)]
    terminate: tokio::signal::windows::CtrlBreak,
}

impl Signals {
    #[cfg(unix)]
    pub(super) fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| cannot_listen(&error));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    #[cfg(windows)]
    pub(super) fn listen() -> Result<Self, Failure> {
        use tokio::signal::windows::{ctrl_break, ctrl_c};
        Ok(Self {
            interrupt: ctrl_c().map_err(|error| cannot_listen(&error))?,
            terminate: ctrl_break().map_err(|error| cannot_listen(&error))?,
        })
    }

    /// The next one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            Some(()) = self.interrupt.recv() => Signal::Interrupt,
            Some(()) = self.terminate.recv() => Signal::Terminate,
            else => std::future::pending().await,
        }
    }
}

fn cannot_listen(error: &std::io::Error) -> Failure {
    Failure::new(Code::Internal, "cannot listen for Ctrl-C").caused_by(error)
}
