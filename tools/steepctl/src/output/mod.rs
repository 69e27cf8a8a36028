//! Everything steepctl prints: stdout is data, stderr is talk.
//!
//! [`table`] and [`json`] are the two forms of data, [`sides`] two columns to compare, [`progress`] shows an operation as it runs, [`failure`]
//! says what went wrong, [`exit_code`] what the shell is told. Nobody else prints. Text from agents and
//! databases is escaped on its way into a table, a line or a bar; JSON escapes by itself.

pub mod exit_code;
pub mod failure;
pub mod glyphs;
pub mod json;
pub mod progress;
pub mod prompt;
pub mod sides;
pub mod style;
pub mod table;

use std::{
    cell::Cell,
    env,
    io::{self, IsTerminal as _, Write as _},
};

use anstream::AutoStream;
use clap::ValueEnum;
use steep_protocol::failure::{Code, Failure};

use self::glyphs::Glyphs;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    // For people.
    #[default]
    Table,
    // For programs; one object, or one a line where events follow each other.
    Json,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Color {
    // On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    // Always.
    Always,
    // Never.
    Never,
}

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Talk {
    /// Failures and questions only.
    Quiet,
    /// What an operator wants to know.
    Normal,
    /// Also which agents were tried.
    Verbose,
}

/// The two streams and how to write to them.
#[derive(Debug)]
pub struct Output {
    format: Format,
    color: anstream::ColorChoice,
    talk: Talk,
    glyphs: &'static Glyphs,
    reader_gone: Cell<bool>,
    answered_elsewhere: Cell<bool>,
}

impl Output {
    /// Output as the command line and the environment ask for it.
    pub fn new(format: Format, color: Color, talk: Talk) -> Self {
        let color = match color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        Self {
            format,
            color,
            talk,
            glyphs: glyphs::of_this_terminal(),
            reader_gone: Cell::new(false),
            answered_elsewhere: Cell::new(false),
        }
    }

    /// Whether data is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether only failures and questions are wanted on stderr.
    pub fn is_quiet(&self) -> bool {
        self.talk == Talk::Quiet
    }

    /// The marks and blocks this terminal can show.
    pub fn glyphs(&self) -> &'static Glyphs {
        self.glyphs
    }

    /// Whether somebody watches stderr, so that bars make sense there.
    pub fn is_watched(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Whether somebody reads stdout, rather than a program.
    pub fn is_read_by_people(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// How many characters of a line stdout shows: what COLUMNS says, else the terminal, else 80.
    pub fn width(&self) -> usize {
        let said = env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let terminal = || console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
        said.or_else(terminal).unwrap_or(80)
    }

    /// Whether somebody can be asked.
    pub fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && self.is_watched()
    }

    /// Whether stderr shows colours.
    pub fn is_colored(&self) -> bool {
        match self.color {
            anstream::ColorChoice::Auto => AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never,
            choice => choice != anstream::ColorChoice::Never,
        }
    }

    /// Whether stdout's reader went away (`steepctl op list | head`): then there is nothing left to say.
    pub fn reader_is_gone(&self) -> bool {
        self.reader_gone.get()
    }

    /// Prints data, a line or several, to stdout.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = AutoStream::new(io::stdout(), self.color).lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| {
            self.reader_gone.set(error.kind() == io::ErrorKind::BrokenPipe);
            Failure::new(Code::Internal, "cannot write to standard output")
                .caused_by(&error)
                .hint("make room where the output goes, then try again")
        })
    }

    /// Says something to stderr, unless `--quiet`.
    pub fn talk(&self, text: &str) {
        if self.talk >= Talk::Normal {
            self.say(text);
        }
    }

    /// Says something to stderr with `--verbose` only.
    pub fn detail(&self, text: &str) {
        if self.talk >= Talk::Verbose {
            self.say(text);
        }
    }

    /// Says something to stderr in any case.
    pub fn say(&self, text: &str) {
        self.write_stderr(&format!("{text}\n"));
    }

    /// Notes that another agent answered than the one that was to be asked first.
    pub fn answered_elsewhere(&self) {
        self.answered_elsewhere.set(true);
    }

    /// Says which agent answered, where somebody would look for it, or would not expect it.
    pub fn via(&self, served_by: &str) {
        let wanted = self.answered_elsewhere.get()
            || self.talk >= Talk::Verbose
            || (self.is_watched() && self.is_read_by_people());
        if wanted && !served_by.is_empty() && !self.is_json() {
            self.talk(&style::Tone::Faint.paint(&format!("via {}", safe(served_by))));
        }
    }

    fn write_stderr(&self, text: &str) {
        // Nobody is left to tell when stderr is gone.
        let _ = AutoStream::new(io::stderr(), self.color).lock().write_all(text.as_bytes());
    }
}

/// Text from an agent or a database, made safe for a terminal.
pub fn safe(text: &str) -> String {
    steep_protocol::names::escape_controls(text)
}

/// A word of a command line that somebody may copy into a shell.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_to_copy_stays_one_word_in_a_shell() {
        assert_eq!(shell_word("pki/node_a.pem"), "pki/node_a.pem");
        assert_eq!(shell_word("my pki/$x"), "'my pki/$x'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
