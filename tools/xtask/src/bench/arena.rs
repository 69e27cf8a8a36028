//! Two servers and their agents, put back to the same start before every run.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, bail};

use super::data::Set;
use crate::{
    cluster::{Cluster, Node, Options, agent::Life, server::Server},
    interrupt::Cleanup,
    say,
    workspace::{Binaries, Profile},
};

pub(super) struct Arena {
    pub(super) cluster: Cluster,
    settings: Vec<(String, String)>,
    pub(super) manner: Manner,
    _guard: Cleanup,
}

/// How Steep copies.
#[derive(Debug, Clone)]
pub(super) struct Manner {
    /// Streams at once.
    pub(super) workers: u32,
    /// What carries the agents' connections.
    pub(super) transport: String,
    /// How rows are compressed on the way.
    pub(super) compress: String,
}

impl Manner {
    /// So many streams; all else as agents do it themselves.
    fn usual(workers: u32) -> Self {
        Self { workers, transport: "auto".to_owned(), compress: "auto".to_owned() }
    }
}

/// The data to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Tables with their TOAST, without indexes.
    pub(super) bytes: u64,
    pub(super) tables: u64,
    pub(super) rows: u64,
}

/// What an earlier run left on the source. Subscriptions first: they hold slots on the target, which is gone.
const CLEAN: &str = r"
select format('alter subscription %1$I disable', subname),
       format('alter subscription %1$I set (slot_name = none)', subname),
       format('drop subscription %1$I', subname)
  from pg_subscription \gexec
select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null;
select format('drop publication %I', pubname) from pg_publication \gexec
drop schema if exists steep_repl cascade;
select pg_replication_origin_drop(roname) from pg_replication_origin;
";

impl Arena {
    /// The same for a bench of its own: in `dir` or a temporary folder, with release binaries built first unless `no_build`.
    pub(super) fn of_its_own(dir: Option<&Path>, no_build: bool, version: u32, workers: u32) -> Result<Self> {
        let profile = Profile::Release;
        let binaries = if no_build { Binaries::left_by_build(profile)? } else { Binaries::built(profile)? };
        let fallback = || std::env::temp_dir().join(format!("steep-bench-{}", std::process::id()));
        let dir = dir.map_or_else(fallback, Path::to_owned);
        Self::open(&dir, version, Manner::usual(workers), binaries)
    }

    /// Two servers of `version` with settings for bulk work, fsync on, and their agents.
    pub(super) fn open(dir: &Path, version: u32, manner: Manner, binaries: Binaries) -> Result<Self> {
        let mut options = Options::new(dir, 2, &[version], binaries)
            .set("fsync", "on")
            .set("shared_buffers", "256MB")
            .set("maintenance_work_mem", "256MB")
            .set("max_wal_size", "4GB")
            .set("max_sync_workers_per_subscription", &manner.workers.to_string());
        options.mesh_toml = format!("transport = {:?}\n", manner.transport);
        let (cluster, guard) = Cluster::guarded(&options)?;
        let arena = Self { cluster, settings: options.settings, manner, _guard: guard };
        arena.stop_agents();
        Ok(arena)
    }

    pub(super) fn nodes(&self) -> [&Node; 2] {
        [&self.cluster.nodes[0], &self.cluster.nodes[1]]
    }

    pub(super) fn source(&self) -> &Server {
        &self.cluster.nodes[0].server
    }

    pub(super) fn target(&self) -> &Server {
        &self.cluster.nodes[1].server
    }

    /// Fills the source and measures it.
    pub(super) fn fill(&self, set: Set, scale: u32) -> Result<Size> {
        self.clean_source()?;
        say::step(format!("filling the source with {set}"));
        set.fill(self.source(), scale)?;
        let number = |sql: &str| -> Result<u64> { Ok(self.source().sql(sql)?.parse()?) };
        let size = Size {
            bytes: number(
                "select sum(pg_table_size(relid))::bigint from pg_stat_user_tables where schemaname = 'public'",
            )?,
            tables: number("select count(*) from pg_stat_user_tables where schemaname = 'public'")?,
            rows: number("select sum(n_live_tup)::bigint from pg_stat_user_tables where schemaname = 'public'")?,
        };
        say::good(format!("{}, {} rows, {} tables", say::size(size.bytes), say::count(size.rows), size.tables));
        Ok(size)
    }

    /// An empty target, a clean source that was just read, no agents.
    pub(super) fn reset(&self) -> Result<()> {
        self.stop_agents();
        let target = self.target();
        target.end();
        fs::remove_dir_all(&target.data)?;
        target.create(&self.nodes()[1].node_id, &self.settings)?;
        self.clean_source()?;
        target.start()?;
        for node in self.nodes() {
            let _ = fs::remove_dir_all(&node.agent.state_dir);
            fs::create_dir_all(&node.agent.state_dir)?;
        }
        // Everybody finds the source's files in memory, as far as they fit.
        self.counts(self.source())?;
        self.source().sql("checkpoint")?;
        target.sql("checkpoint")?;
        Ok(())
    }

    fn clean_source(&self) -> Result<()> {
        self.source().sql(CLEAN)?;
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active";
        crate::process::wait_for("the source's slots being dropped", Duration::from_secs(30), || {
            self.source().sql(drop)?;
            Ok((self.source().sql("select count(*) from pg_replication_slots")? == "0").then_some(()))
        })
    }

    /// Starts both agents anew, so that their peak memory is this run's.
    pub(super) fn start_agents(&self) -> Result<()> {
        self.cluster.start_agents(Life::OfItsOwn)
    }

    fn stop_agents(&self) {
        for node in self.nodes() {
            node.agent.end(Duration::from_secs(20));
        }
    }

    /// Every table has as many rows on the target as on the source.
    pub(super) fn is_complete(&self) -> Result<()> {
        let (source, target) = (self.counts(self.source())?, self.counts(self.target())?);
        if source != target {
            bail!("the copy is not complete; rows on the source:\n{source}\non the target:\n{target}");
        }
        let indexes = "select count(*) from pg_indexes where schemaname = 'public'";
        let (on_source, on_target) = (self.source().sql(indexes)?, self.target().sql(indexes)?);
        if on_source != on_target {
            bail!("{on_source} indexes on the source, {on_target} on the target");
        }
        Ok(())
    }

    fn counts(&self, server: &Server) -> Result<String> {
        server.sql(
            "select format('select %L, count(*) from %I', tablename, tablename) from pg_tables
              where schemaname = 'public' order by tablename \\gexec",
        )
    }
}
