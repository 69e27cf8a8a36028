//! Colours by meaning. What is painted here loses its colour again where the stream shows none.

use anstyle::{AnsiColor, Style};
use steep_protocol::{node::NodeState, operation::OperationStatus};

/// What a piece of text means to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// At work.
    Busy,
    /// Look at it.
    Warn,
    /// Act.
    Bad,
    /// Less important than what stands around it.
    Faint,
    /// More important.
    Strong,
}

impl Tone {
    /// `text` in this tone.
    pub fn paint(self, text: &str) -> String {
        let style = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Busy => AnsiColor::Cyan.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Faint => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        };
        format!("{style}{text}{style:#}")
    }
}

/// How a node's state looks; a state of a newer agent looks like nothing in particular.
pub fn of_state(state: &str) -> Tone {
    match state.parse() {
        Ok(NodeState::Synchronized) => Tone::Good,
        Ok(NodeState::Diverged | NodeState::Failed) => Tone::Bad,
        Ok(NodeState::Uninitialized) => Tone::Faint,
        Ok(state) if state.is_active() => Tone::Busy,
        Ok(_) | Err(_) => Tone::Plain,
    }
}

/// How a node's health looks.
pub fn of_health(health: &str) -> Tone {
    match health {
        "ok" => Tone::Good,
        "busy" => Tone::Busy,
        "warn" | "unknown" => Tone::Warn,
        "error" => Tone::Bad,
        _ => Tone::Plain,
    }
}

/// How a member of the mesh looks.
pub fn of_liveness(liveness: &str) -> Tone {
    match liveness {
        "alive" => Tone::Good,
        "suspect" | "unknown" => Tone::Warn,
        "dead" => Tone::Bad,
        _ => Tone::Faint,
    }
}

/// How an operation's status looks.
pub fn of_status(status: &str) -> Tone {
    match status.parse() {
        Ok(OperationStatus::Completed) => Tone::Good,
        Ok(OperationStatus::Running) => Tone::Busy,
        Ok(OperationStatus::Cancelling | OperationStatus::Cancelled | OperationStatus::Interrupted) => Tone::Warn,
        Ok(OperationStatus::Failed) => Tone::Bad,
        Err(_) => Tone::Plain,
    }
}

/// How an operation's step looks.
pub fn of_step(status: &str) -> Tone {
    match status {
        "done" => Tone::Good,
        "running" => Tone::Busy,
        "undone" => Tone::Warn,
        "failed" => Tone::Bad,
        _ => Tone::Faint,
    }
}
