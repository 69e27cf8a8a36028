//! Waits for facts.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// How long a spec waits where it has no reason for another time. Generous: it is spent only by failures.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` until it has an answer, at most `within`, and returns it.
///
/// While there is none, `look` says what it sees instead; a failure shows what it saw last.
pub async fn until<T, S: Display>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Result<T, S>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(answer) => return answer,
            Err(seen) if started.elapsed() > within => {
                panic!("{what}: not within {}; last seen: {seen}", xtask::say::seconds(within));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
        }
    }
}
