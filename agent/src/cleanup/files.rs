//! The files of a snapshot, as they are taken away.

use std::time::Duration;

use steep_protocol::failure::{Code, Explain as _, Failure};
use tokio::time::{sleep, timeout};

use super::Cleanup;
use crate::storage::Place;

/// How often the files of a snapshot are looked for until none is found, and how long between.
const REMOVAL_LOOKS: u32 = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);
/// How long that may take at a time: a store may name ever more files, and others have to be cleaned up after too.
const REMOVAL_LIMIT: Duration = Duration::from_secs(600);

impl Cleanup {
    pub(super) async fn remove_files(&self, address: &str, keeps_itself: bool) -> Result<(), Failure> {
        let place = Place::named(address, &self.places).map_err(|error| error.explain())?;
        let removed = async {
            for _ in 0..REMOVAL_LOOKS {
                if !place.remove(keeps_itself).await.map_err(|error| error.explain())? {
                    break;
                }
                sleep(REMOVAL_PAUSE).await;
            }
            Ok(())
        };
        timeout(REMOVAL_LIMIT, removed).await.unwrap_or_else(|_| {
            let text = format!("taking away what is in {address} took longer than {} s", REMOVAL_LIMIT.as_secs());
            Err(Failure::new(Code::StoreUnreachable, text))
        })
    }
}
