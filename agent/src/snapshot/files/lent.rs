//! What another agent may read of this node's snapshots: the files of the one an operator has signed for its operation,
//! until that is closed.
//!
//! The order was claimed when the files were lent. It stands in the database, so that reading goes on after this agent's
//! restart, and a node's key alone reads nothing.

use std::io::{Seek as _, SeekFrom};

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent,
};
use tokio::fs::File;

use super::read::blocking;
use crate::{
    storage::{Directory, Error},
    store::{Store, signed_intents, snapshots},
};

/// Opens the file `name` of the snapshot that was lent to `caller` for `op`, behind its first `offset` bytes.
///
/// Fails with [`Code::IntentMissing`] where none was lent, with [`Code::SnapshotGone`] and [`Code::SnapshotFilesMissing`]
/// where it is there no longer.
pub async fn open(store: &Store, caller: &NodeId, op: OperationId, name: &str, offset: u64) -> Result<File, Failure> {
    let id = lent_to(store, caller, op).await?;
    let place = snapshots::place_of(store, &id).await.map_err(|error| error.explain())?;
    let gone = |word: &str| Failure::new(Code::SnapshotGone, format!("{id} of {}: {word}", store.owner().node));
    let place = place.ok_or_else(|| gone("there is no such snapshot"))?;
    if place.status != "complete" {
        return Err(gone(&place.status));
    }
    if place.expires_at.is_some_and(|at| at <= Timestamp::now()) {
        return Err(gone("it has expired"));
    }
    let name = name.to_owned();
    let file = blocking(move || {
        let directory = Directory::named(&place.storage).map_err(|error| error.explain())?;
        let mut file = directory.open(&name).map_err(|error| missing(&id, &error))?;
        let path = directory.path().join(&name);
        let sought = file.seek(SeekFrom::Start(offset));
        sought.map_err(|source| Error::Io { doing: "read", path, source }.explain())?;
        Ok(file)
    });
    Ok(File::from_std(file.await?))
}

/// The snapshot that `op` may read; nobody but its target has it.
async fn lent_to(store: &Store, caller: &NodeId, op: OperationId) -> Result<String, Failure> {
    let used = signed_intents::find(store, op).await.map_err(|error| error.explain())?;
    let used = used.filter(|used| used.target == *caller && !used.has_ended);
    let order = used.and_then(|used| intent::read(&used.signed));
    let order = order.filter(|order| order.source.as_ref() == Some(&store.owner().node));
    order.and_then(|order| order.lent_snapshot().map(str::to_owned)).ok_or_else(|| {
        let text = format!("no operator has signed that {caller} reads files of {} for {op}", store.owner().node);
        Failure::new(Code::IntentMissing, text)
    })
}

fn missing(id: &str, error: &Error) -> Failure {
    let failure = error.explain();
    match error {
        Error::Missing(_) => Failure::new(Code::SnapshotFilesMissing, format!("{id}: {}", failure.message)),
        _ => failure,
    }
}
