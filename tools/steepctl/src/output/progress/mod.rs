//! An operation shown as it runs: live bars on a terminal, plain lines in a pipe, or every event as JSON.
//!
//! [`bars`] draws on stderr, [`plain`] writes `key=value` lines to stdout, JSON writes one event a line to
//! stdout. All three are fed the same events and know nothing of where those come from.

pub mod bars;
pub mod plain;

use clap::ValueEnum;
use steep_protocol::{failure::Failure, v1};

use self::{bars::Bars, plain::Plain};
use super::{Output, json};

/// How an operation's progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Style {
    // Bars on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    // Live bars; where stderr is no terminal they become plain lines.
    Bars,
    // A line per milestone and per ten seconds, as key=value.
    Plain,
}

/// Which operation is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its id.
    pub op_id: String,
    /// The node it changes.
    pub target: String,
    /// The node it reads; empty where there is none.
    pub source: String,
}

impl Subject {
    /// The subject of an operation an agent told us about.
    pub fn of(operation: &v1::Operation) -> Self {
        Self { op_id: operation.op_id.clone(), target: operation.target.clone(), source: operation.source.clone() }
    }
}

/// Shows one operation, event after event.
#[derive(Debug)]
pub enum Display {
    /// On a terminal.
    Bars(Bars),
    /// In a pipe.
    Plain(Plain),
    /// For programs.
    Json,
}

impl Display {
    /// The display that fits what was asked and what stderr is.
    pub fn new(out: &Output, style: Style, subject: &Subject) -> Self {
        if out.is_json() {
            return Self::Json;
        }
        match style {
            Style::Auto if out.is_watched() && !out.is_quiet() => Self::Bars(Bars::new(out, subject.clone())),
            Style::Bars if out.is_watched() => Self::Bars(Bars::new(out, subject.clone())),
            Style::Auto | Style::Bars | Style::Plain => Self::Plain(Plain::new(subject.clone())),
        }
    }

    /// Shows what `event` says.
    pub fn show(&mut self, event: &v1::OperationEvent, out: &Output) -> Result<(), Failure> {
        match self {
            Self::Bars(bars) => {
                bars.show(event, out);
                Ok(())
            }
            Self::Plain(plain) => match plain.line(event) {
                Some(line) => out.data(&line),
                None => Ok(()),
            },
            Self::Json => out.json_line(&json::message("OperationEvent", event)),
        }
    }

    /// Says something beside the progress without tearing it.
    pub fn talk(&mut self, text: &str, out: &Output) {
        match self {
            Self::Bars(bars) => bars.above(text, out),
            Self::Plain(_) | Self::Json => out.talk(text),
        }
    }

    /// Takes the bars away, for a question or for good; the next [`Display::resume`] brings them back.
    pub fn pause(&mut self) {
        if let Self::Bars(bars) = self {
            bars.pause();
        }
    }

    /// Brings the bars back.
    pub fn resume(&mut self, out: &Output) {
        if let Self::Bars(bars) = self {
            bars.resume(out);
        }
    }

    /// Whether the end needs a line of its own, because no data on stdout has told it yet.
    pub fn leaves_the_end_untold(&self) -> bool {
        matches!(self, Self::Bars(_))
    }
}
