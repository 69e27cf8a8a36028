//! The data that is copied.

use anyhow::Result;
use clap::ValueEnum;

use crate::{cluster::server::Server, process};

/// A kind of data, with its own difficulty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Set {
    /// pgbench's tables: one large one with narrow rows
    Pgbench,
    /// One table with twenty text columns
    Wide,
    /// Two hundred small tables with indexes and foreign keys
    Small,
    /// Each of them
    All,
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pgbench => "pgbench",
            Self::Wide => "a wide text table",
            Self::Small => "200 small tables",
            Self::All => "all",
        })
    }
}

impl Set {
    pub(super) fn parts(self) -> Vec<Self> {
        match self {
            Self::All => vec![Self::Pgbench, Self::Wide, Self::Small],
            one => vec![one],
        }
    }

    /// Makes the tables on `server` and fills them.
    pub(super) fn fill(self, server: &Server, scale: u32) -> Result<()> {
        match self {
            Self::Pgbench => {
                let mut pgbench = server.client("pgbench");
                process::output(pgbench.args(["-i", "-q", "-s", &scale.to_string()]))?;
                // The one table of pgbench without a primary key.
                server.sql("alter table pgbench_history replica identity full")?;
            }
            Self::Wide => {
                server.sql(&wide(u64::from(scale) * 4_000))?;
            }
            Self::Small => {
                server.sql(&small(u64::from(scale) * 50))?;
            }
            Self::All => {}
        }
        server.sql("vacuum analyze; checkpoint").map(|_| ())
    }
}

fn wide(rows: u64) -> String {
    let columns: Vec<String> = (1..=20).map(|n| format!("t{n:02} text not null")).collect();
    let values: Vec<String> =
        (1..=20).map(|n| format!("md5('{n}/' || n) || left(md5(n || '/{n}'), {})", n + 4)).collect();
    format!(
        "create table documents (id bigint primary key, {});
         insert into documents select n, {} from generate_series(1, {rows}) n;",
        columns.join(", "),
        values.join(", ")
    )
}

fn small(rows: u64) -> String {
    let tables: Vec<String> = (1..=200)
        .map(|table| {
            let parent = if table == 1 { String::new() } else { format!(" references small_{}", table - 1) };
            format!(
                "create table small_{table} (id bigint primary key, parent bigint{parent}, name text not null,
                                             amount numeric(12, 2), at timestamptz not null);
                 insert into small_{table}
                 select n, n, 'name ' || n, n / 7.0, timestamptz '2026-01-01' + n * interval '1 second'
                   from generate_series(1, {rows}) n;
                 create index on small_{table} (parent);
                 create index on small_{table} (at, name);"
            )
        })
        .collect();
    tables.join("\n")
}
