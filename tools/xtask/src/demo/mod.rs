//! `cargo x demo`: see it work. Two nodes, a shop, applications writing on both, one node made from the other.

mod proof;
mod writer;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use self::writer::Writer;
use crate::{
    cluster::{self, Cluster, Node, OPERATORS, Options},
    process, say,
    workspace::{Binaries, Profile},
};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Leave the nodes running at the end, and say how to reach them
    #[arg(long)]
    keep: bool,
    /// Development build: compiled sooner, slower copy
    #[arg(long, conflicts_with = "release")]
    dev: bool,
    /// Release build (the default)
    #[arg(long)]
    release: bool,
    /// Take the binaries as an earlier build left them
    #[arg(long)]
    no_build: bool,
    /// PostgreSQL major versions of the two nodes
    #[arg(long, value_delimiter = ',', default_value = "18")]
    pg: Vec<u32>,
    /// Where the nodes' files go [default: a temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
}

const SHOP: &str = include_str!("shop.sql");

/// Runs the demo from beginning to end; takes everything down again however it ends.
pub fn run(arguments: &Arguments) -> Result<()> {
    say::heading("Steep: one command makes a node from another, while applications write on both");
    let profile = Profile::from_flag(!arguments.dev);
    let binaries = if arguments.no_build { Binaries::left_by_build(profile)? } else { Binaries::built(profile)? };
    let fallback = || std::env::temp_dir().join(format!("steep-demo-{}", std::process::id()));
    let dir = arguments.dir.clone().unwrap_or_else(fallback);
    let options = Options::new(&dir, 2, &arguments.pg, binaries);

    say::heading("1  Two nodes, each a PostgreSQL with its agent");
    let (cluster, guard) = Cluster::guarded(&options)?;
    let (a, b) = (&cluster.nodes[0], &cluster.nodes[1]);
    for node in [a, b] {
        say::good(format!("{}: PostgreSQL {}, agent at {}", node.node_id, node.server.version, node.agent.address));
    }
    fill(a)?;
    let written = initialize(&cluster, a, b)?;
    prove(a, b, &written)?;

    if arguments.keep {
        guard.keep();
        say::heading("The nodes keep running");
        cluster::commands::explain(&cluster);
        return Ok(());
    }
    drop(guard);
    say::heading("Everything is taken down again. What to try next");
    say::detail("cargo x demo --keep                        the same, and look around in it afterwards");
    say::detail("cargo x cluster up --nodes 2 --dir /tmp/s  two empty nodes of your own");
    say::detail("cargo x test                               every promise, tried on real PostgreSQL");
    say::detail("deploy/README.md                           put it in service");
    Ok(())
}

fn fill(a: &Node) -> Result<()> {
    say::heading("2  A shop on node_a");
    let started = Instant::now();
    a.server.sql(SHOP)?;
    let size = a.server.sql("select pg_database_size(current_database())")?.parse()?;
    let rows = a.server.sql("select sum(n_live_tup)::bigint from pg_stat_user_tables")?.parse()?;
    let taken = say::seconds(started.elapsed());
    say::good(format!("{}, {} rows, made in {taken}; node_b is empty", say::size(size), say::count(rows)));
    Ok(())
}

/// What the applications got done meanwhile.
struct Written {
    on_a: u64,
    on_b: u64,
}

/// Initializes node_b from node_a with applications at work on both.
fn initialize(cluster: &Cluster, a: &Node, b: &Node) -> Result<Written> {
    say::heading("3  Applications write on both nodes from now on");
    let on_a = Writer::start(&a.server, 0)?;
    let on_b = Writer::start(&b.server, 1)?;
    process::wait_for("the first transactions on node_a", Duration::from_secs(30), || {
        Ok((on_a.committed() > 20).then_some(()))
    })?;
    say::good("node_a is written to; on node_b the application tries until there are tables");

    say::heading("4  $ steepctl node start node_b --from node_a");
    eprintln!();
    let mut start = cluster.steepctl(b, OPERATORS[0].0);
    start.args(["node", "start", "node_b", "--from", "node_a"]);
    let started = Instant::now();
    if !process::on_our_terminal(&mut start)? {
        let logs = [a, b].map(|node| format!("{}:\n{}", node.node_id, process::tail(&node.agent.log, 8)));
        bail!("node_b was not initialized; the agents' logs end:\n{}", logs.join("\n"));
    }
    let taken = started.elapsed();
    let before = on_b.committed();
    process::wait_for("transactions on node_b", Duration::from_secs(30), || {
        Ok((on_b.committed() > before + 50).then_some(()))
    })?;
    let written = Written { on_a: on_a.stop(), on_b: on_b.stop() };
    say::good(format!("node_b is synchronized after {}", say::seconds(taken)));
    Ok(written)
}

fn prove(a: &Node, b: &Node, written: &Written) -> Result<()> {
    say::heading("5  The proof");
    let [on_a, on_b] = [written.on_a, written.on_b].map(say::count);
    say::good(format!("meanwhile {on_a} transactions were committed on node_a and {on_b} on node_b"));
    proof::same_on_both(a, b)?;
    say::good("every row is on both nodes, once, with the same content");
    for (from, to) in [(a, b), (b, a)] {
        let taken = proof::seen_on_the_other(from, to)?;
        let (from, to) = (&from.node_id, &to.node_id);
        say::good(format!("a row written on {from} is on {to} after {} ms", taken.as_millis()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shop_has_its_size_and_applications_write_to_it() {
        let dir = std::env::temp_dir().join(format!("steep-xtask-{}-shop", std::process::id()));
        let none = Binaries { agent: PathBuf::new(), steepctl: PathBuf::new() };
        let mut options = Options::new(&dir, 1, &[18], none);
        options.agents = false;
        let (cluster, _guard) = Cluster::guarded(&options).expect("a server comes up");
        let node = &cluster.nodes[0];
        let early = Writer::start(&node.server, 0).expect("psql runs");
        fill(node).expect("the shop is made");
        let size: u64 = node.server.sql("select pg_database_size(current_database())").unwrap().parse().unwrap();
        assert!((180_000_000..260_000_000).contains(&size), "{}", say::size(size));
        let writers = [early, Writer::start(&node.server, 1).expect("psql runs")];
        process::wait_for("transactions", Duration::from_secs(30), || {
            Ok(writers.iter().all(|writer| writer.committed() > 40).then_some(()))
        })
        .expect("the one that began before there were tables writes too");
        let committed: u64 = writers.into_iter().map(Writer::stop).sum();
        let written = "select count(*) from orders where note = 'placed meanwhile'";
        let orders: u64 = node.server.sql(written).unwrap().parse().unwrap();
        assert!(orders > committed / 3 && orders < committed, "{orders} orders of {committed} transactions");
        proof::same_on_both(node, node).expect("a node equals itself");
        proof::seen_on_the_other(node, node).expect("what is written is seen");
    }
}
