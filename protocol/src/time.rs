//! The time of day, as messages carry it.

use jiff::Timestamp;

/// A moment as a message carries it.
pub fn message(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// This moment as a message carries it.
pub fn now() -> prost_types::Timestamp {
    message(Timestamp::now())
}
