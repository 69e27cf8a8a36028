//! An application at work on one node: small transactions, one after the other, until it is told to stop.
//!
//! A psql session is fed statement by statement and answers each, so that only acknowledged ones are counted.
//! Two nodes never touch the same row: new rows have random ids, and each node updates its own half of the
//! customers. Where the tables are not there yet, the application tries again.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::cluster::server::Server;

const PAUSE: Duration = Duration::from_millis(15);

/// Told to all writers, and by them.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    committed: AtomicU64,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Begins at once on `server`; `half` (0 or 1) says which customers are its own.
    pub(super) fn start(server: &Server, half: u8) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        // Errors do not end it: on a node that is being initialized there are no tables at first.
        let mut psql = server.client("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=0"]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let session = psql.spawn().context("cannot run psql")?;
        let told = Arc::clone(&shared);
        let thread = std::thread::spawn(move || write(session, &told, half));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Transactions committed so far.
    pub(super) fn committed(&self) -> u64 {
        self.shared.committed.load(Ordering::Relaxed)
    }

    /// Ends it after the transaction it is in; returns how many were committed.
    pub(super) fn stop(mut self) -> u64 {
        self.join();
        self.committed()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A writer whose server was taken away has nothing to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.join();
    }
}

fn write(mut session: Child, shared: &Shared, half: u8) {
    let mut stdin = session.stdin.take().expect("it was piped");
    let mut answers = BufReader::new(session.stdout.take().expect("it was piped")).lines();
    let mut number = 0u64;
    while !shared.stop.load(Ordering::Relaxed) {
        number += 1;
        let asked = writeln!(stdin, "{}", transaction(number, half)).and_then(|()| stdin.flush());
        let Some(Ok(answer)) = asked.ok().and_then(|()| answers.next()) else { break };
        if answer == "committed" {
            shared.committed.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(PAUSE);
    }
    drop(stdin);
    let _ = session.wait();
}

/// One transaction, which is one statement, and psql's word whether it was committed.
fn transaction(number: u64, half: u8) -> String {
    let customer = customer(number, half);
    let statement = match number % 4 {
        0 => format!("update customers set visits = visits + 1 where id = {customer};"),
        1 => format!(
            "insert into events (kind, payload)
             values ('login', jsonb_build_object('customer', {customer}, 'n', {number}));"
        ),
        _ => format!(
            "with o as (insert into orders (customer_id, status, total, note)
                        values ({customer}, 'paid', {number}, 'placed meanwhile') returning id, total),
                  i as (insert into order_items (order_id, line, product_id, quantity, price)
                        select id, line, 1 + {number} % 5000, 1, 9.99 from o, generate_series(1, 2) line)
             insert into payments (order_id, method, amount) select id, 'card', total from o;"
        ),
    };
    format!("{statement}\n\\if :ERROR\n\\echo refused\n\\else\n\\echo committed\n\\endif")
}

/// A customer of this half: the odd ids belong to one node, the even ones to the other.
fn customer(number: u64, half: u8) -> u64 {
    (number * 7_919) % 60_000 * 2 + 1 + u64::from(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_halves_share_no_customer() {
        for number in 0..60_000 {
            assert_eq!((customer(number, 0) % 2, customer(number, 1) % 2), (1, 0));
            assert!((1..=120_000).contains(&customer(number, 0)) && customer(number, 1) <= 120_000);
        }
    }
}
