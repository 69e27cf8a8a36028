//! One writer: a loop of small transactions in its own range of keys.

use std::sync::{Arc, atomic::Ordering};

use tokio_postgres::{Client, Error, error::SqlState, types::ToSql};

use super::{Account, Orders, PAUSE, account::Entry};
use crate::node::Node;

/// Keys of the places a writer fills, empties and fills again.
const PLACES: u64 = 4;

pub(super) struct Writer {
    node: Node,
    name: String,
    orders: Arc<Orders>,
    known: Account,
    /// The next line of the journal.
    seq: i64,
    dice: u64,
}

/// One transaction: its statement, and how what is known changes when it is committed.
enum Change {
    Insert(String),
    /// A small column only: an existing large body stays where it is.
    Amount(String),
    Body(String),
    /// From one key to another.
    Rename(String, String),
    Delete(String),
    /// The same place emptied and filled in one transaction, with this generation.
    Reuse(String, i64),
}

impl Writer {
    pub(super) fn new(node: Node, number: usize, orders: Arc<Orders>) -> Self {
        let name = format!("{}/{number}", node.id());
        let dice = name.bytes().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, byte| sum.rotate_left(7) ^ u64::from(byte));
        Self { node, name, orders, known: Account::default(), seq: 1, dice }
    }

    /// Writes until told to stop, and returns what is known to be there.
    pub(super) async fn run(mut self) -> Account {
        let mut client = None;
        let mut in_doubt = None;
        while !self.is_told_to_stop() || in_doubt.is_some() {
            let Some(connected) = client.as_ref().filter(|client: &&Client| !client.is_closed()) else {
                client = self.node.try_connect("postgres").await.ok();
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let done = match in_doubt.take() {
                Some(change) => self.settle(connected, change).await,
                None => {
                    let change = self.thrown();
                    self.commit(connected, change).await
                }
            };
            if let Err(change) = done {
                in_doubt = Some(change);
                client = None;
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.known
    }

    fn is_told_to_stop(&self) -> bool {
        self.orders.stop.load(Ordering::Relaxed)
    }

    /// Runs `change` as one transaction. Gives it back when nobody can say whether it was committed.
    async fn commit(&mut self, client: &Client, change: Change) -> Result<(), Change> {
        match self.transaction(client, &change).await {
            Ok(entry) => self.acknowledged(change, entry),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
            Err(error) if error.as_db_error().is_some_and(|db| !ends_the_session(db.code())) => {
                // PostgreSQL refused it, as it would refuse an application's.
                let reason = error.as_db_error().map_or_else(String::new, |db| db.message().to_owned());
                *self.known.refusals.entry(reason).or_default() += 1;
                if client.batch_execute("rollback").await.is_err() {
                    return Err(change);
                }
            }
            Err(_) => return Err(change),
        }
        Ok(())
    }

    async fn transaction(&self, client: &Client, change: &Change) -> Result<Option<Entry>, Error> {
        client.batch_execute("begin").await?;
        let entry = self.statement(client, change).await;
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                // The first error is the one that counts.
                let _ = client.batch_execute("rollback").await;
                return Err(error);
            }
        };
        client.execute("insert into ledger.journal values ($1, $2)", &[&self.name, &self.seq]).await?;
        client.batch_execute("commit").await?;
        Ok(entry)
    }

    /// Runs the statement and returns the entry as it is now, if there is one.
    async fn statement(&self, client: &Client, change: &Change) -> Result<Option<Entry>, Error> {
        const LARGE: &str = "(select string_agg(md5($2::bigint || '/' || i), '') from generate_series(1, 250) i)";
        let entry = async |sql: &str, parameters: &[&(dyn ToSql + Sync)]| {
            let row = client.query_one(&format!("{sql} returning amount, md5(coalesce(body, ''))"), parameters).await?;
            Ok(Some((row.get(0), row.get(1))))
        };
        let seq = &self.seq;
        match change {
            Change::Insert(key) if self.seq % 8 == 0 => {
                entry(&format!("insert into ledger.entries values ($1, $2, {LARGE})"), &[key, seq]).await
            }
            Change::Insert(key) => entry("insert into ledger.entries values ($1, $2, 'small')", &[key, seq]).await,
            Change::Amount(key) => entry("update ledger.entries set amount = $2 where key = $1", &[key, seq]).await,
            Change::Body(key) => {
                entry(&format!("update ledger.entries set body = {LARGE} where key = $1"), &[key, seq]).await
            }
            Change::Rename(from, to) => entry("update ledger.entries set key = $2 where key = $1", &[from, to]).await,
            Change::Delete(key) => {
                client.execute("delete from ledger.entries where key = $1", &[key]).await?;
                Ok(None)
            }
            Change::Reuse(key, generation) => {
                client.execute("delete from ledger.places where key = $1", &[key]).await?;
                client.execute("insert into ledger.places values ($1, $2)", &[key, generation]).await?;
                Ok(None)
            }
        }
    }

    /// Finds out whether a change whose answer was lost was committed: its line in the journal says.
    async fn settle(&mut self, client: &Client, change: Change) -> Result<(), Change> {
        let line = "select 1 from ledger.journal where writer = $1 and seq = $2";
        let committed = match client.query_opt(line, &[&self.name, &self.seq]).await {
            Ok(found) => found.is_some(),
            Err(_) => return Err(change),
        };
        if committed {
            let key = match &change {
                Change::Insert(key) | Change::Amount(key) | Change::Body(key) => Some(key.clone()),
                Change::Rename(_, to) => Some(to.clone()),
                Change::Delete(_) | Change::Reuse(..) => None,
            };
            let query = "select amount, md5(coalesce(body, '')) from ledger.entries where key = $1";
            let entry = match client.query_opt(query, &[&key]).await {
                Ok(row) => row.map(|row| (row.get(0), row.get(1))),
                Err(_) => return Err(change),
            };
            self.acknowledged(change, entry);
        }
        Ok(())
    }

    fn acknowledged(&mut self, change: Change, entry: Option<Entry>) {
        let known = &mut self.known;
        match (change, entry) {
            (Change::Rename(from, to), Some(entry)) => {
                known.entries.remove(&from);
                known.entries.insert(to, entry);
            }
            (Change::Insert(key) | Change::Amount(key) | Change::Body(key), Some(entry)) => {
                known.entries.insert(key, entry);
            }
            (Change::Delete(key), _) => {
                known.entries.remove(&key);
            }
            (Change::Reuse(key, generation), _) => {
                known.places.insert(key, generation);
            }
            (_, None) => unreachable!("a written entry is returned"),
        }
        known.journal.insert((self.name.clone(), self.seq), 1);
        self.seq += 1;
        self.orders.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// The next change, by dice that fall the same way in every run.
    fn thrown(&mut self) -> Change {
        let throw = self.roll(100);
        let new = format!("{}/{:06}", self.name, self.seq);
        let Some(key) = self.any_key() else { return Change::Insert(new) };
        match throw {
            0..40 => Change::Insert(new),
            40..60 => Change::Amount(key),
            60..68 => Change::Body(key),
            68..78 => Change::Rename(key, new),
            78..88 => Change::Delete(key),
            _ => {
                let place = self.roll(PLACES);
                Change::Reuse(format!("{}/{place}", self.name), self.seq)
            }
        }
    }

    fn any_key(&mut self) -> Option<String> {
        let count = self.known.entries.len() as u64;
        let nth = if count == 0 { 0 } else { self.roll(count) };
        self.known.entries.keys().nth(usize::try_from(nth).expect("it is below a length")).cloned()
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }
}

/// After these the server may or may not have committed, and the session is gone.
fn ends_the_session(code: &SqlState) -> bool {
    [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::DATABASE_DROPPED,
        SqlState::IDLE_SESSION_TIMEOUT,
    ]
    .contains(code)
}
