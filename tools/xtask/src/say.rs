//! How `cargo x` talks: always on standard error, so that standard output stays for results.

use std::{
    fmt::Display,
    io::{IsTerminal, stderr},
    time::Duration,
};

/// Whether colour would be seen and is wanted.
fn colour() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn painted(code: &str, text: impl Display) -> String {
    if colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// The title of a part of the work.
pub fn heading(text: impl Display) {
    eprintln!("\n{}", painted("1", text));
}

/// Something that is under way now.
pub fn step(text: impl Display) {
    eprintln!("  {} {text}", painted("36", "·"));
}

/// Something that is done and good.
pub fn good(text: impl Display) {
    eprintln!("  {} {text}", painted("32", "✓"));
}

/// Something that went wrong.
pub fn bad(text: impl Display) {
    eprintln!("  {} {text}", painted("31", "✗"));
}

/// A line that belongs to the one above it.
pub fn detail(text: impl Display) {
    eprintln!("    {text}");
}

/// A duration as people say it: `0.42 s`, `12.3 s`, `4 min 03 s`.
pub fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{s:.2} s"),
        s if s < 60.0 => format!("{s:.1} s"),
        _ => format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

/// A size as people say it: `14 MB`, `1.5 GB`.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 10_000_000_000 => format!("{:.0} GB", b as f64 / 1e9),
        b if b >= 1_000_000_000 => format!("{:.1} GB", b as f64 / 1e9),
        b if b >= 1_000_000 => format!("{:.0} MB", b as f64 / 1e6),
        b => format!("{:.0} kB", b as f64 / 1e3),
    }
}

/// A count with its thousands apart: `1,204,332`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_thousands_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_204_332, "1,204,332")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn durations_read_as_people_say_them() {
        for (milliseconds, text) in [(420, "0.42 s"), (12_340, "12.3 s"), (243_000, "4 min 03 s")] {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), text);
        }
    }
}
