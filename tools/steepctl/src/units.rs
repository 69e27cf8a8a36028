//! Quantities as operators write and read them: bytes, counts, rates, durations, moments. Pure.

use std::time::Duration;

use jiff::Timestamp;

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuantity {
    /// No duration.
    #[error("{0:?} is no duration: 500ms, 30s, 5m or 2h is expected")]
    Duration(String),
    /// A bare number.
    #[error("{0:?} has no unit: 90m, 72h or 7d is expected")]
    NoUnit(String),
    /// No rate.
    #[error("{0:?} is no rate: bytes a second are expected, as in 50MB, 50MiB or 50000")]
    Rate(String),
}

/// Reads `500ms`, `30s`, `5m`, `2h`, `1d`, or several together (`1m30s`); a bare number means seconds.
pub fn parse_duration(text: &str) -> Result<Duration, BadQuantity> {
    let bad = || BadQuantity::Duration(text.to_owned());
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds)).and_then(|duration| within_a_year(duration).ok_or_else(bad));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        total += Duration::from_millis(number.checked_mul(millis).ok_or_else(bad)?);
        rest = next;
    }
    if text.is_empty() { Err(bad()) } else { within_a_year(total).ok_or_else(bad) }
}

/// Reads for how long something is kept, as [`parse_duration`] does; a bare number may have been meant as days or hours.
pub fn parse_lifetime(text: &str) -> Result<Duration, BadQuantity> {
    match text.parse::<u64>() {
        Ok(_) => Err(BadQuantity::NoUnit(text.to_owned())),
        Err(_) => parse_duration(text),
    }
}

/// Longer waits are typing mistakes, and would overflow a clock.
fn within_a_year(duration: Duration) -> Option<Duration> {
    (duration <= Duration::from_secs(366 * 86_400)).then_some(duration)
}

/// Reads bytes a second: `50000`, `50MB` (decimal), `50MiB` (binary), with or without `/s`.
pub fn parse_rate(text: &str) -> Result<u64, BadQuantity> {
    let bad = || BadQuantity::Rate(text.to_owned());
    let plain = text.strip_suffix("/s").unwrap_or(text).trim();
    let end = plain.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(plain.len());
    let (number, unit) = plain.split_at(end);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    let rate = number * factor as f64;
    // 0 would mean "no limit" on the wire, which nobody who types a limit wants.
    if rate >= 1.0 && rate < u64::MAX as f64 { Ok(rate as u64) } else { Err(bad()) }
}

const SIZES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

fn scale(bytes: f64) -> usize {
    let mut step = 0;
    let mut left = bytes;
    // 999.95 and more would print as 1000.0.
    while left >= 999.95 && step + 1 < SIZES.len() {
        left /= 1024.0;
        step += 1;
    }
    step
}

fn scaled(bytes: f64, step: usize) -> String {
    let value = bytes / 1024f64.powi(i32::try_from(step).expect("there are six sizes"));
    if step == 0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// `0 B`, `12.5 KiB`, `181.0 GiB`.
pub fn bytes(bytes: u64) -> String {
    let step = scale(bytes as f64);
    format!("{} {}", scaled(bytes as f64, step), SIZES[step])
}

/// `128.9/181.0 GiB`: both in the unit of the greater.
pub fn bytes_of(done: u64, expected: u64) -> String {
    let step = scale(done.max(expected) as f64);
    format!("{}/{} {}", scaled(done as f64, step), scaled(expected as f64, step), SIZES[step])
}

/// `412.0 MiB/s`; nothing for a rate that is no number.
pub fn byte_rate(per_second: f64) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return String::new();
    }
    let step = scale(per_second);
    format!("{} {}/s", scaled(per_second, step), SIZES[step])
}

/// `1.9 Mrow/s`, `812 row/s`.
pub fn row_rate(per_second: f64) -> String {
    if !per_second.is_finite() || per_second < 0.0 {
        return String::new();
    }
    match per_second {
        rate if rate < 999.5 => format!("{rate:.0} row/s"),
        rate if rate < 999_950.0 => format!("{:.1} krow/s", rate / 1e3),
        rate => format!("{:.1} Mrow/s", rate / 1e6),
    }
}

/// `88,213,311`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 table`, `3 tables`.
pub fn counted(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number))
}

/// `45ms`, `0.4s`, `58s`, `8m32s`, `3h12m`, `5d4h`: two units at most.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration < Duration::from_millis(95) => format!("{}ms", duration.as_millis()),
        0..10 => format!("{:.1}s", duration.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// `02:09`, `1:02:09`: for a clock that counts down.
pub fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3_600, seconds % 3_600 / 60, seconds % 60);
    if hours == 0 { format!("{minutes:02}:{seconds:02}") } else { format!("{hours}:{minutes:02}:{seconds:02}") }
}

/// `78.4%`. Rounds down: nothing is 100% before it is.
pub fn percent(percent: f64) -> String {
    format!("{:.1}%", (percent.clamp(0.0, 100.0) * 10.0).floor() / 10.0)
}

/// A protobuf moment as ours; nothing when it is absent or out of range.
pub fn moment(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}

/// `2026-11-22T10:04:31Z`: to the second, for lines that programs read.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-11-22 10:04:31Z`: to the second, for people.
pub fn date_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// `now`, `3s`, `2m05s`; with a `~` before what is too old to be believed.
pub fn age(milliseconds: u64, is_stale: bool) -> String {
    let age = Duration::from_millis(milliseconds);
    match (age.as_secs(), is_stale) {
        (0, false) => "now".into(),
        (seconds @ 1..10, false) => format!("{seconds}s"),
        (_, false) => duration(age),
        (_, true) => format!("~{}", duration(age)),
    }
}

/// `0.62ms`, `12.4ms`, `1.2s`: the time of a question and its answer.
pub fn round_trip(microseconds: u64) -> String {
    match microseconds as f64 / 1e3 {
        small if small < 9.995 => format!("{small:.2}ms"),
        middle if middle < 999.5 => format!("{middle:.1}ms"),
        large => format!("{:.1}s", large / 1e3),
    }
}

/// How long ago something was said: `now`, `3s ago`, `2m05s ago`. Clocks may differ: the future is now.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let passed = since(at, now);
    if passed < Duration::from_secs(1) { "now".into() } else { format!("{} ago", duration(passed)) }
}

/// The time from one moment to another; zero when it would be negative.
pub fn since(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_operators_write_them() {
        let cases = [
            ("30", Some(30_000)),
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("1m30s", Some(90_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("s", None),
            ("5x", None),
            ("-5s", None),
            ("1.5h", None),
            ("99999999999999999999s", None),
            ("18446744073709551615", None),
            ("400d", None),
            ("5é", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text).ok(), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn rates_tell_decimal_from_binary_and_refuse_zero() {
        let cases = [
            ("50000", Some(50_000)),
            ("50MB", Some(50_000_000)),
            ("50MiB", Some(52_428_800)),
            ("50mb/s", Some(50_000_000)),
            ("1.5 GB", Some(1_500_000_000)),
            ("0", None),
            ("0MB", None),
            ("", None),
            ("MB", None),
            ("50XB", None),
            ("-5", None),
            ("1e3", None),
            ("..", None),
        ];
        for (text, rate) in cases {
            assert_eq!(parse_rate(text).ok(), rate, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_never_wider_than_a_column() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 KiB"),
            (1_023_900, "999.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (194_347_270_144, "181.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
        assert_eq!(bytes_of(138_412_032_000, 194_347_270_144), "128.9/181.0 GiB");
        assert_eq!(bytes_of(0, 0), "0/0 B");
        assert_eq!(byte_rate(432_013_312.0), "412.0 MiB/s");
        assert_eq!(byte_rate(f64::NAN), "");
        assert_eq!(row_rate(1_900_000.0), "1.9 Mrow/s");
        assert_eq!(row_rate(999_949.0), "999.9 krow/s");
        assert_eq!(row_rate(812.4), "812 row/s");
    }

    #[test]
    fn times_show_two_units_at_most() {
        let cases = [
            (0.0, "0ms"),
            (0.045, "45ms"),
            (0.43, "0.4s"),
            (58.0, "58s"),
            (512.0, "8m32s"),
            (11_520.0, "3h12m"),
            (446_400.0, "5d4h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!(clock(129), "02:09");
        assert_eq!(clock(3_729), "1:02:09");
    }

    #[test]
    fn nothing_is_a_hundred_percent_before_it_is() {
        assert_eq!(percent(99.99), "99.9%");
        assert_eq!(percent(100.0), "100.0%");
        assert_eq!(percent(-3.0), "0.0%");
        assert_eq!(percent(f64::NAN), "NaN%");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 12, 999, 1_000, 88_213_311].map(count), ["0", "12", "999", "1,000", "88,213,311"]);
        assert_eq!([counted(1, "table"), counted(2, "table")], ["1 table", "2 tables"]);
    }

    #[test]
    fn a_clock_that_runs_ahead_does_not_show_negative_ages() {
        let now = Timestamp::from_second(1_000).expect("a moment");
        let later = Timestamp::from_second(1_005).expect("a moment");
        assert_eq!(ago(later, now), "now");
        assert_eq!(ago(now, later), "5.0s ago");
        assert_eq!(rfc3339(now), "1970-01-01T00:16:40Z");
    }
}
