//! Connection strings as libpq reads them: `host=db1 port=5432 options='-c a=b'`.
//!
//! Parsed and written back by its rules, so that no value can leave its quotes. Debug and Display differ: only
//! `Display` shows a password.

use std::fmt;

use super::{
    connect::{PINS, PostgresConfig},
    ddl::startup_options,
};

/// A libpq connection string, as keys and values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo {
    pairs: Vec<(String, String)>,
}

/// A text libpq would not take as key=value pairs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadConninfo {
    /// A key without "=" and a value.
    #[error("{0:?} has no \"=\" after it")]
    NoValue(String),
    /// A key that is no word.
    #[error("{0:?} is no connection parameter")]
    BadKey(String),
    /// A quote that is never closed.
    #[error("the value of {0} is never closed: a single quote is missing")]
    OpenQuote(String),
}

impl Conninfo {
    /// Parses key=value pairs; connection URIs are not taken.
    pub fn parse(text: &str) -> Result<Self, BadConninfo> {
        let mut pairs = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
            let key = &rest[..end];
            let Some(value) = rest[end..].trim_start().strip_prefix('=') else {
                return Err(BadConninfo::NoValue(key.to_owned()));
            };
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                return Err(BadConninfo::BadKey(key.to_owned()));
            }
            let (value, after) =
                parse_value(value.trim_start()).ok_or_else(|| BadConninfo::OpenQuote(key.to_owned()))?;
            pairs.push((key.to_owned(), value));
            rest = after.trim_start();
        }
        Ok(Self { pairs })
    }

    /// How the agent itself reaches its database, without password.
    pub fn of(config: &PostgresConfig) -> Self {
        Self { pairs: Vec::new() }
            .with("host", &config.host)
            .with("port", config.port.to_string())
            .with("user", &config.user)
            .with("dbname", &config.dbname)
    }

    /// With `key` set to `value`, in place of what it was.
    #[must_use]
    pub fn with(self, key: &str, value: impl Into<String>) -> Self {
        let mut changed = self.without(key);
        changed.pairs.push((key.to_owned(), value.into()));
        changed
    }

    /// Without `key`.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.pairs.retain(|(known, _)| known != key);
        self
    }

    /// With everything that `other` sets, in place of what it was.
    #[must_use]
    pub fn over(self, other: &Self) -> Self {
        other.pairs.iter().fold(self, |sum, (key, value)| sum.with(key, value))
    }

    /// Every key it sets.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(key, _)| key.as_str())
    }

    /// What `key` is set to; the last one counts, as in libpq.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// With the settings every connection of ours pins, so that a subscription's walsender has them too.
    #[must_use]
    pub fn pinned(self) -> Self {
        // libpq and the walsender say which encoding they want; a start-up option would contradict them.
        let pins: Vec<_> = PINS.iter().copied().filter(|(name, _)| *name != "client_encoding").collect();
        self.with("options", startup_options(&pins))
    }
}

fn parse_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut value = String::new();
    let mut chars = quoted.unwrap_or(text).chars();
    loop {
        let rest = chars.as_str();
        match (chars.next(), quoted.is_some()) {
            (Some('\\'), _) => value.extend(chars.next()),
            (Some('\''), true) => return Some((value, chars.as_str())),
            (Some(c), false) if c.is_whitespace() => return Some((value, rest)),
            (Some(c), _) => value.push(c),
            (None, true) => return None,
            (None, false) => return Some((value, "")),
        }
    }
}

fn quote_value(value: &str) -> String {
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b));
    if plain {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.pairs.iter().enumerate() {
            write!(f, "{}{key}={}", if at == 0 { "" } else { " " }, quote_value(value))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |key: &str| ["password", "sslpassword"].contains(&key);
        let mut map = f.debug_map();
        for (key, value) in &self.pairs {
            map.entry(key, if secret(key) { &"…" } else { value });
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_parse_as_libpq_would_read_them() {
        let cases: [(&str, &[(&str, &str)]); 6] = [
            ("", &[]),
            ("host=db1 port=5432", &[("host", "db1"), ("port", "5432")]),
            ("  host = db1\tport=5432 ", &[("host", "db1"), ("port", "5432")]),
            (r"password='it\'s \\ here' user=a\ b", &[("password", r"it's \ here"), ("user", "a b")]),
            ("options='-c search_path=' host=''", &[("options", "-c search_path="), ("host", "")]),
            ("dbname=a'b", &[("dbname", "a'b")]),
        ];
        for (text, expected) in cases {
            let parsed = Conninfo::parse(text).expect(text);
            let pairs: Vec<_> = parsed.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(pairs, expected, "{text:?}");
            assert_eq!(Conninfo::parse(&parsed.to_string()), Ok(parsed), "{text:?} does not read back");
        }
    }

    #[test]
    fn what_libpq_would_refuse_is_refused() {
        assert_eq!(Conninfo::parse("host"), Err(BadConninfo::NoValue("host".into())));
        assert_eq!(Conninfo::parse("host='db1"), Err(BadConninfo::OpenQuote("host".into())));
        assert_eq!(Conninfo::parse("=x"), Err(BadConninfo::BadKey("".into())));
        assert_eq!(Conninfo::parse("postgres://db1/x?a=b"), Err(BadConninfo::BadKey("postgres://db1/x?a".into())));
    }

    #[test]
    fn a_hostile_value_stays_one_value() {
        let hostile = r"x' host=evil password='\";
        let conninfo = Conninfo::parse("host=db1").expect("a conninfo").with("dbname", hostile);
        let back = Conninfo::parse(&conninfo.to_string()).expect("to read back");
        assert_eq!(back.get("dbname"), Some(hostile));
        assert_eq!(back.get("host"), Some("db1"));
    }

    #[test]
    fn a_later_value_takes_the_place_of_an_earlier_one() {
        let conninfo = Conninfo::parse("host=a port=1").expect("a conninfo").with("host", "b");
        assert_eq!(conninfo.to_string(), "port=1 host=b");
        let local = Conninfo::parse("host=c sslcert=x").expect("a conninfo");
        assert_eq!(conninfo.over(&local).to_string(), "port=1 host=c sslcert=x");
    }

    #[test]
    fn debug_shows_no_password() {
        let conninfo = Conninfo::parse("host=a password=canary").expect("a conninfo");
        assert!(!format!("{conninfo:?}").contains("canary"));
    }
}
