//! Which PostgreSQL this is, and what it can do.

use std::{fmt, ops::RangeInclusive};

/// The major versions Steep is tried on.
pub const SUPPORTED: RangeInclusive<u16> = 15..=18;

/// A server's or a client program's version: PostgreSQL's `server_version_num`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u32);

impl Version {
    /// From `server_version_num`: 180004 is 18.4.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// From what `pg_dump --version` prints: `pg_dump (PostgreSQL) 18.4 (Debian 18.4-1)`, `… 19beta1`.
    pub fn from_program_output(text: &str) -> Option<Self> {
        let version = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok();
        let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
        Some(Self(digits(major)? * 10_000 + digits(minor).unwrap_or(0)))
    }

    /// `server_version_num` again, for the wire.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The major version: 18.
    pub fn major(self) -> u16 {
        u16::try_from(self.0 / 10_000).unwrap_or(u16::MAX)
    }

    /// Steep is tried on it.
    pub fn is_supported(self) -> bool {
        SUPPORTED.contains(&self.major())
    }

    /// A subscription can ask for `origin = none`: without it, two directions bounce every change for ever.
    pub fn has_origin_filter(self) -> bool {
        self.major() >= 16
    }

    /// The role `pg_create_subscription` exists; before, only a superuser may subscribe.
    pub fn has_create_subscription_role(self) -> bool {
        self.major() >= 16
    }

    /// The setting `transaction_timeout` exists, and would end a long snapshot.
    pub fn has_transaction_timeout(self) -> bool {
        self.major() >= 17
    }

    /// Origins have a limit of their own, `max_active_replication_origins`; before, it is `max_replication_slots`.
    pub fn has_origin_limit(self) -> bool {
        self.major() >= 18
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10_000, self.0 % 10_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_as_people_write_it() {
        assert_eq!(Version::from_number(180_004).to_string(), "18.4");
        assert_eq!(Version::from_number(150_018).major(), 15);
    }

    #[test]
    fn programs_say_their_version_in_many_ways() {
        let cases = [
            ("pg_dump (PostgreSQL) 18.4", Some(180_004)),
            ("pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n", Some(150_020)),
            ("pg_restore (PostgreSQL) 19beta1", Some(190_000)),
            ("pg_restore (PostgreSQL) 18devel", Some(180_000)),
            ("something else", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Version::from_program_output(text).map(Version::number), expected, "{text:?}");
        }
    }

    #[test]
    fn fifteen_to_eighteen_are_supported() {
        let supported: Vec<u16> =
            (14..20).filter(|major| Version::from_number(u32::from(*major) * 10_000).is_supported()).collect();
        assert_eq!(supported, [15, 16, 17, 18]);
    }
}
