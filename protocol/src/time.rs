//! The time of day, as messages carry it.

use jiff::Timestamp;

/// A moment as a message carries it.
pub fn message(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// A moment from a message; none where it carries no sensible one.
pub fn moment(message: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(message.seconds, message.nanos).ok()
}

/// This moment as a message carries it.
pub fn now() -> prost_types::Timestamp {
    message(Timestamp::now())
}
