//! Writers that remember: what was acknowledged must be there in the end, once, on every node.
//!
//! [`Ledger::on`] makes the tables; [`Ledger::writers`] start tasks that insert, update, delete, change keys, reuse keys
//! and write values large enough for TOAST, each in its own range of keys. Every transaction also adds a line to a
//! journal without primary key, so that a doubled row shows and a transaction whose answer was lost can be judged.
//! [`Ledger::agrees`] compares nodes with what the writers know.

mod account;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub use self::account::Account;
use crate::{
    background,
    node::Node,
    wait::{PATIENCE, until},
};

const TABLES: &str = "
create schema ledger;
create table ledger.entries (
  key text primary key,
  amount bigint not null,
  body text
);
create table ledger.places (
  key text primary key,
  generation bigint not null
);
create table ledger.journal (
  writer text not null,
  seq bigint not null
);
alter table ledger.journal replica identity full;
";

/// Tables for writers, and what they held at first.
#[derive(Debug, Clone)]
pub struct Ledger {
    start: Account,
}

impl Ledger {
    /// Makes the tables on `node`, with `rows` entries in them that no writer touches.
    pub async fn on(node: &Node, rows: u64) -> Self {
        node.sql(TABLES).await;
        let fill = format!(
            "insert into ledger.entries
             select 'start/' || n, n, case when n % 20 = 0 then
                    (select string_agg(md5(n || '/' || i), '') from generate_series(1, 200) i) else md5(n::text) end
               from generate_series(1, {rows}) n"
        );
        node.sql(&fill).await;
        Self { start: Account::read(node).await.expect("the tables were just made") }
    }

    /// `count` writers that begin at once on `node`; where the tables are not there yet they wait for them.
    pub fn writers(&self, count: usize, node: &Node) -> Writers {
        self.more_writers(0, count, node)
    }

    /// Further writers, numbered from `first` on: no two of one node may have the same number, also one after the other.
    pub fn more_writers(&self, first: usize, count: usize, node: &Node) -> Writers {
        let orders = Arc::new(Orders::default());
        let tasks = (first..first + count).map(|number| {
            let writer = writer::Writer::new(node.clone(), number, Arc::clone(&orders));
            background::runtime().spawn(writer.run())
        });
        Writers { tasks: tasks.collect(), orders, node: node.clone() }
    }

    /// Waits until every node holds exactly what the writers of `accounts` were told is there.
    pub async fn agrees(&self, nodes: &[&Node], accounts: &[Account]) {
        let expected = accounts.iter().fold(self.start.clone(), |sum, account| sum.with(account));
        for node in nodes {
            until(&format!("{} holds what the writers know", node.id()), PATIENCE, async || {
                let found = Account::read(node).await?;
                let difference = expected.difference(&found);
                if difference.is_empty() { Ok(()) } else { Err(difference.join("\n  ")) }
            })
            .await;
        }
    }
}

/// What the writers are told, and tell, while they run.
#[derive(Debug, Default)]
struct Orders {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

/// Writers at work on one node.
#[derive(Debug)]
#[must_use = "writers are stopped to know what they wrote"]
pub struct Writers {
    tasks: Vec<tokio::task::JoinHandle<Account>>,
    orders: Arc<Orders>,
    node: Node,
}

impl Writers {
    /// Transactions acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.orders.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until they have done `more` transactions from now on.
    pub async fn write(&self, more: u64) {
        let goal = self.acknowledged() + more;
        until(&format!("{more} more transactions on {}", self.node.id()), PATIENCE, async || {
            let so_far = self.acknowledged();
            if so_far >= goal { Ok(()) } else { Err(format!("{so_far} of {goal}")) }
        })
        .await;
    }

    /// Stops them; what they know is exact, also of transactions whose answer was lost.
    pub async fn stop(mut self) -> Account {
        self.orders.stop.store(true, Ordering::Relaxed);
        let mut sum = Account::default();
        for task in std::mem::take(&mut self.tasks) {
            let stopped = tokio::time::timeout(PATIENCE, task).await;
            let account = stopped.expect("a writer stops when told").expect("a writer does not panic");
            sum = sum.with(&account);
        }
        sum
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        // A failed spec drops them running.
        self.orders.stop.store(true, Ordering::Relaxed);
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// A pause between two transactions of one writer: many small ones, and some of the machine left for the copy.
const PAUSE: Duration = Duration::from_millis(2);

/// How often each kind of error met the writers.
type Refusals = BTreeMap<String, u64>;
