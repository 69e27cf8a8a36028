//! What is held open here for peers, as it stands in their intent rows.

use serde_json::Value;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::OperationId,
};

use super::{Cleanup, Effect};
use crate::{
    postgres::{self, Purpose},
    store::intents,
};

/// The kind of a session's intent.
pub(super) const SESSION: &str = "session";

impl Cleanup {
    /// Writes down all that the agent's next run needs to go on with the session of `op`.
    pub async fn note_session(&self, op: OperationId, slot: &str, record: Value) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        let effect = Effect::Session { slot: slot.to_owned(), record };
        let detail = serde_json::to_value(&effect).expect("an effect is plain data");
        let session = self.database.session(Purpose::Watch).await.map_err(explain)?;
        intents::revise(&session, op, SESSION, slot, &detail).await.map_err(explain)
    }

    /// The sessions that were open when the run before ended, or about to be: their operations and what was written down.
    pub async fn left_sessions(&self) -> Result<Vec<(OperationId, Value)>, Failure> {
        let mut left = Vec::new();
        for op in intents::open_operations(&self.store).await.map_err(|error| error.explain())? {
            for effect in self.pending(op, SESSION).await? {
                if let Effect::Session { record, .. } = effect {
                    left.push((op, record));
                }
            }
        }
        Ok(left)
    }

    /// Marks `sessions` as gone which were kept with everything else their operation made: they end with it.
    pub(super) async fn settle_sessions(&self, sessions: &[Effect]) -> Result<(), Failure> {
        for session in sessions {
            let (kind, slot) = session.kind_and_name();
            intents::settle(&self.store, kind, &slot).await.map_err(|error| error.explain())?;
        }
        Ok(())
    }
}
