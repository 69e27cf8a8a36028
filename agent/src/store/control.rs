//! The one session through which the agent reads and writes its memory.
//!
//! It holds the lock that keeps a second agent out of the database, so all of the store goes through it, one call
//! at a time: calls are short, and a call that waits for its turn waits on purpose. A session that is lost is
//! opened anew by the next call, with all checks of the first time.

use std::{fmt, sync::Arc, time::Duration};

use steep_protocol::failure::Code;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::Row;
use tracing::{info, warn};

use super::{
    Error,
    error::Holder,
    identity::{self, Identity, Owner},
    migrate, nodes,
};
use crate::postgres::{
    self, Database, Purpose, Session,
    connect::{Params, field},
    error::Doing,
    sql,
};

/// First key of all our advisory locks: "step" in ASCII.
pub(super) const LOCK_CLASS: i32 = 1_937_007_984;
/// Second key of the lock the database's one agent holds.
const AGENT_LOCK: i32 = 1;
/// How long the session of an agent that just died may keep the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// A server that answers nothing for so long is lost. Its own waits for locks end earlier.
const CALL_LIMIT: Duration = Duration::from_secs(40);

/// Says what is tried, in the store's name.
pub(super) fn doing(what: impl Into<std::borrow::Cow<'static, str>>) -> Doing {
    let code = Code::StoreFailed;
    postgres::error::doing(what).or(code).privilege(code).limit(code)
}

/// The agent's memory. Clones share one session.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    owner: Owner,
    identity: Identity,
    control: Mutex<Control>,
}

struct Control {
    session: Option<Session>,
    /// A transaction was begun and not ended: its future was dropped.
    in_transaction: bool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({} in {})", self.inner.owner.node, self.inner.identity)
    }
}

impl Store {
    /// Connects, takes the agent's lock, brings the schema up to date and makes sure the database is `owner`'s.
    ///
    /// Fails with [`Error::Foreign`] or [`Error::Moved`] on another node's database, with [`Error::Taken`] while
    /// another agent holds it, with [`Error::TooNew`] on the schema of a newer agent; and with an error that
    /// [is a connection loss](Error::is_connection_loss) where another try may succeed.
    pub async fn open(database: Database, owner: Owner) -> Result<Self, Error> {
        let (session, identity) = establish(&database, &owner, None).await?;
        let control = Mutex::new(Control { session: Some(session), in_transaction: false });
        Ok(Self { inner: Arc::new(Inner { database, owner, identity, control }) })
    }

    /// Whose memory it is.
    pub fn owner(&self) -> &Owner {
        &self.inner.owner
    }

    /// The database it is in.
    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    /// Which database on which server that is.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// Makes sure the database answers and the agent's lock is held; connects again where it must.
    pub async fn check(&self) -> Result<(), Error> {
        match self.ping().await {
            Err(error) if error.is_connection_loss() => self.ping().await,
            checked => checked,
        }
    }

    async fn ping(&self) -> Result<(), Error> {
        self.one("check the control session", "select true as alive", &[]).await.map(drop)
    }

    pub(super) async fn rows(&self, what: &'static str, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.hold().await?.rows(what, sql, params).await
    }

    pub(super) async fn one(&self, what: &'static str, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        let rows = self.rows(what, sql, params).await?;
        rows.into_iter().next().ok_or_else(|| Error::Missing(format!("the answer to {what:?}")))
    }

    pub(super) async fn maybe(&self, what: &'static str, sql: &str, params: Params<'_>) -> Result<Option<Row>, Error> {
        Ok(self.rows(what, sql, params).await?.into_iter().next())
    }

    pub(super) async fn execute(&self, what: &'static str, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        self.hold().await?.execute(what, sql, params).await
    }

    /// Begins a transaction; [`Held::end`] ends it. Dropped without, it is rolled back by the next call.
    pub(super) async fn transaction(&self) -> Result<Held<'_>, Error> {
        let mut held = self.hold().await?;
        held.control.in_transaction = true;
        let begun = limited("begin a transaction", held.session()?.begin()).await;
        held.noted(begun)?;
        Ok(held)
    }

    async fn hold(&self) -> Result<Held<'_>, Error> {
        let mut held = Held { control: self.inner.control.lock().await };
        if held.control.session.as_ref().is_none_or(Session::is_closed) {
            *held.control = Control { session: None, in_transaction: false };
            let Inner { database, owner, identity, .. } = &*self.inner;
            let (session, _) = establish(database, owner, Some(identity)).await?;
            info!(event = "agent.database", details.database = %identity.database, "connected to the database again");
            held.control.session = Some(session);
        }
        if held.control.in_transaction {
            held.roll_back().await?;
        }
        Ok(held)
    }
}

/// The control session, held for one call or one transaction.
pub(super) struct Held<'a> {
    control: MutexGuard<'a, Control>,
}

impl Held<'_> {
    pub(super) async fn rows(&mut self, what: &'static str, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let answer = limited(what, self.session()?.rows(doing(what), sql, params)).await;
        self.noted(answer)
    }

    pub(super) async fn execute(&mut self, what: &'static str, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        let answer = limited(what, self.session()?.execute(doing(what), sql, params)).await;
        self.noted(answer)
    }

    /// Commits what went well and takes back what did not.
    pub(super) async fn end<T>(mut self, outcome: Result<T, Error>) -> Result<T, Error> {
        match outcome {
            Ok(value) => {
                let committed = limited("commit", self.session()?.commit()).await;
                self.noted(committed)?;
                self.control.in_transaction = false;
                Ok(value)
            }
            Err(error) => {
                if let Err(rollback) = self.roll_back().await {
                    warn!(reason = %rollback, "a transaction of the store could not be rolled back");
                }
                Err(error)
            }
        }
    }

    async fn roll_back(&mut self) -> Result<(), Error> {
        // A session that is gone has rolled back.
        let Some(session) = &self.control.session else { return Ok(()) };
        let rolled_back = limited("roll back", session.rollback()).await;
        self.noted(rolled_back)?;
        self.control.in_transaction = false;
        Ok(())
    }

    fn session(&self) -> Result<&Session, Error> {
        let lost =
            || postgres::Error::Lost { doing: "use the control session".to_owned(), source: "it is gone".into() };
        Ok(self.control.session.as_ref().ok_or_else(lost)?)
    }

    /// Lets go of a session that was lost, so that the next call opens another.
    fn noted<T>(&mut self, answer: Result<T, postgres::Error>) -> Result<T, Error> {
        if let Err(error) = &answer
            && error.is_connection_loss()
        {
            *self.control = Control { session: None, in_transaction: false };
        }
        Ok(answer?)
    }
}

async fn limited<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, postgres::Error>>,
) -> Result<T, postgres::Error> {
    timeout(CALL_LIMIT, call)
        .await
        .unwrap_or_else(|elapsed| Err(postgres::Error::Lost { doing: what.to_owned(), source: elapsed.into() }))
}

/// A session that holds the agent's lock on a database that is `owner`'s and up to date.
async fn establish(
    database: &Database,
    owner: &Owner,
    expected: Option<&Identity>,
) -> Result<(Session, Identity), Error> {
    let session = database.session(Purpose::Control).await?;
    identity::look(&session, owner, expected).await?;
    take_lock(&session, owner, expected.is_some()).await?;
    let applied = migrate::migrate(&session).await?;
    let identity = identity::claim(&session, owner).await?;
    nodes::ensure_own(&session, owner).await?;
    if applied > 0 {
        info!(event = "agent.database", details.migrations = applied, "schema steep_repl brought up to date");
    }
    Ok((session, identity))
}

/// Takes the lock of the database's one agent for as long as `session` lives, whoever the database says it belongs to.
///
/// Fails with [`Error::Taken`] while an agent serves the database.
pub async fn keep_agents_out(session: &Session, owner: &Owner) -> Result<(), Error> {
    take_lock(session, owner, false).await
}

async fn take_lock(session: &Session, owner: &Owner, held_before: bool) -> Result<(), Error> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        let taking = doing("take the agent's lock");
        let row = session.one(taking, sql!("store/take_agent_lock.sql"), &[&LOCK_CLASS, &AGENT_LOCK]).await?;
        if field(&row, "taken")? {
            return Ok(());
        }
        // A holder that is gone by now has let go of the lock.
        if Instant::now() >= until
            && let Some(holder) = holder(session).await?
        {
            return Err(Error::Taken { node: owner.node.clone(), holder: Box::new(holder), held_before });
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn holder(session: &Session) -> Result<Option<Holder>, Error> {
    let looking = doing("look who holds the agent's lock");
    let row = session.maybe(looking, sql!("store/find_agent_lock_holder.sql"), &[&LOCK_CLASS, &AGENT_LOCK]).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Holder {
        pid: field(&row, "pid")?,
        application_name: field(&row, "application_name")?,
        client: field(&row, "client")?,
        user_name: field(&row, "user_name")?,
        since: field(&row, "backend_start")?,
    }))
}
