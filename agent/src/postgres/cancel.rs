//! Cancels what runs on a session, from another task.

use tokio::time::timeout;
use tokio_postgres::{CancelToken, NoTls};

use super::{
    connect::{CONNECT_TIMEOUT, Database},
    error::{Error, doing},
    replication::dial,
};

/// Cancels what runs on one session. Cheap to clone, outlives the session harmlessly.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    database: Database,
}

impl Canceller {
    pub(super) fn new(token: CancelToken, database: Database) -> Self {
        Self { token, database }
    }

    /// For a statement that may be given up: dropped before it is done, it is cancelled.
    pub fn on_drop(self) -> CancelOnDrop {
        CancelOnDrop(Some(self))
    }

    /// Asks the server to cancel the running statement, over a connection of its own.
    ///
    /// Racy by nature: the statement may have ended just before.
    pub async fn cancel(&self) -> Result<(), Error> {
        let asking = doing("cancel a statement");
        let cancelling = async {
            let stream = dial(self.database.config()).await.map_err(|source| self.database.unreachable(source))?;
            self.token.cancel_query_raw(stream, NoTls).await.map_err(|error| asking.failed(error))
        };
        match timeout(CONNECT_TIMEOUT, cancelling).await {
            Ok(asked) => asked,
            Err(elapsed) => Err(Error::Lost { doing: "cancel a statement".to_owned(), source: elapsed.into() }),
        }
    }
}

/// Cancels what runs on a session when it is dropped.
pub struct CancelOnDrop(Option<Canceller>);

impl CancelOnDrop {
    /// Nothing runs any more.
    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(canceller) = self.0.take() {
            tokio::spawn(async move {
                if let Err(error) = canceller.cancel().await {
                    tracing::debug!(%error, "a statement could not be cancelled; its connection ends anyway");
                }
            });
        }
    }
}
