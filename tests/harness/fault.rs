//! Parts of a node broken on purpose, and mended.

use xtask::{
    cluster::{agent::Life, server::Stop},
    process::Signal,
    test::EVERY_CRASH_POINT,
};

use crate::{
    node::Node,
    operation::Operation,
    wait::{PATIENCE, until},
};

/// The crash points that this run takes: with `cargo x test crash` all `points`, in any other run the `few` of them.
pub fn crash_points<'a>(points: &[&'a str], few: &[&str]) -> Vec<&'a str> {
    if let Some(stranger) = few.iter().find(|point| !points.contains(*point)) {
        panic!("{stranger:?} is none of the crash points {points:?}");
    }
    let every = std::env::var_os(EVERY_CRASH_POINT).is_some();
    points.iter().copied().filter(|point| every || few.contains(point)).collect()
}

impl Node {
    /// The agent dies as in a crash.
    pub fn kill_agent(&self) {
        self.parts().agent.kill().expect("the agent runs and can be killed");
    }

    /// The agent is asked to end, and drains.
    pub fn stop_agent(&self) {
        self.parts().agent.stop().expect("the agent runs and ends when asked");
    }

    /// The agent starts again and is ready.
    pub fn start_agent(&self) {
        let agent = &self.parts().agent;
        agent.start(Life::WithUs).expect("the agent is down and can be started");
        agent.becomes_ready(PATIENCE).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// The agent starts again; whether it gets ready is the spec's to see.
    pub fn start_agent_unready(&self) {
        self.parts().agent.start(Life::WithUs).expect("the agent is down and can be started");
    }

    /// The agent starts again, and dies as by `kill -9` at the crash point `at`: "NAME", or "NAME:TIMES".
    pub fn start_agent_to_die(&self, at: &str) {
        let agent = &self.parts().agent;
        agent.start_with(Life::WithUs, &[("STEEP_CRASH", at)]).expect("the agent is down and can be started");
    }

    /// Waits until the agent has died by itself.
    pub async fn agent_dies(&self, at: &str) {
        until(&format!("the agent of {} dies {at}", self.id()), PATIENCE * 2, async || match self.agent_runs() {
            true => Err("it runs"),
            false => Ok(()),
        })
        .await;
    }

    /// The agent takes the order `steepctl` is told, dies at each of the crash `points` in turn, and is started again each time;
    /// `between` is done while it is down. Its last run lives on.
    pub async fn dies_at_each(&self, points: &[&str], steepctl: &str, between: impl AsyncFn()) -> Operation {
        self.dies_at_each_for(self, points, steepctl, between).await
    }

    /// The same of an operation that `target` takes the order for: this node's agent is the one that dies.
    pub async fn dies_at_each_for(
        &self,
        target: &Node,
        points: &[&str],
        steepctl: &str,
        between: impl AsyncFn(),
    ) -> Operation {
        self.stop_agent();
        self.start_agent_to_die(points[0]);
        let op = until("the agent takes an order", PATIENCE, async || {
            let outcome = target.steepctl(steepctl).arg("--detach").arg("-o").arg("json").outcome();
            if outcome.status == 0 { Ok(Operation::known(target, &outcome)) } else { Err(outcome.to_string()) }
        })
        .await;
        for (index, point) in points.iter().enumerate() {
            self.agent_dies(point).await;
            eprintln!("died at {point:?}");
            between().await;
            match points.get(index + 1) {
                Some(next) => self.start_agent_to_die(next),
                None => self.start_agent(),
            }
        }
        op
    }

    /// The agent's process is alive.
    pub fn agent_runs(&self) -> bool {
        self.parts().agent.pid().is_some()
    }

    /// The processes that keep snapshots for this node's peers.
    pub fn keepers(&self) -> Vec<u32> {
        self.parts().agent.keepers()
    }

    /// What keeps snapshots for this node's peers dies as in a crash.
    pub fn kill_keepers(&self) {
        let keepers = self.keepers();
        assert!(!keepers.is_empty(), "{} keeps no snapshot", self.id());
        for pid in keepers {
            xtask::process::signal(pid, Signal::Kill);
        }
    }

    /// Waits until no process keeps a snapshot.
    pub async fn keeps_nothing(&self) {
        until(&format!("{} keeps no snapshot", self.id()), PATIENCE, async || match &self.keepers()[..] {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .await;
    }

    /// The agent stands still until [`Node::thaw_agent`].
    pub fn freeze_agent(&self) {
        self.parts().agent.signal(Signal::Stop).expect("the agent runs");
    }

    /// A frozen agent goes on.
    pub fn thaw_agent(&self) {
        self.parts().agent.signal(Signal::Continue).expect("the agent runs");
    }

    /// The agent is told to read its files again.
    pub fn hang_up_agent(&self) {
        self.parts().agent.signal(Signal::HangUp).expect("the agent runs");
    }

    /// The agent's program, to be run in another way than the cluster does.
    pub fn agent_program(&self) -> std::process::Command {
        std::process::Command::new(&self.parts().agent.program)
    }

    /// steepctl without an operator's certificate or an agent to ask.
    pub fn bare_steepctl(&self) -> std::process::Command {
        let mut command = self.running.cluster.steepctl(self.parts(), "nobody");
        for name in ["STEEPCTL_PEER", "STEEPCTL_CERT", "STEEPCTL_KEY", "STEEPCTL_CA"] {
            command.env_remove(name);
        }
        command
    }

    /// The agent's configuration file.
    pub fn agent_toml(&self) -> std::path::PathBuf {
        self.parts().agent.config.clone()
    }

    /// The agent stops, reads its configuration as `edit` changes it, and is ready again.
    pub fn reconfigure_agent(&self, edit: impl FnOnce(String) -> String) {
        let path = self.agent_toml();
        let toml = std::fs::read_to_string(&path).expect("the agent is configured");
        if self.agent_runs() {
            self.stop_agent();
        }
        std::fs::write(&path, edit(toml)).expect("a file can be written");
        self.start_agent();
    }

    /// The next operation on this node stands still after `step` has done its work; see [`Node::is_held`].
    pub fn hold_after(&self, step: &str) {
        let _ = std::fs::remove_file(self.state_file("held"));
        std::fs::write(self.state_file("hold"), step).expect("the state directory can be written");
    }

    /// Waits until the operation stands where [`Node::hold_after`] wants it.
    pub async fn is_held(&self) {
        until(&format!("{} stands still", self.id()), PATIENCE * 2, async || match self.state_file("held").exists() {
            true => Ok(()),
            false => Err(self.state().await.map_or_else(|reason| reason, |state| state.to_string())),
        })
        .await;
    }

    /// A held operation goes on.
    pub fn let_go(&self) {
        std::fs::remove_file(self.state_file("held")).expect("something is held");
    }

    /// The next operation on this node fails after `step` has done its work.
    pub fn fail_after(&self, step: &str) {
        std::fs::write(self.state_file("fail"), step).expect("the state directory can be written");
    }

    /// The next operation on this node meets a defect after `step` has done its work.
    pub fn panic_after(&self, step: &str) {
        std::fs::write(self.state_file("panic"), step).expect("the state directory can be written");
    }

    fn state_file(&self, name: &str) -> std::path::PathBuf {
        self.parts().agent.state_dir.join(name)
    }

    /// A client program of the server's version, pointed at the server.
    pub fn program(&self, name: &str) -> std::process::Command {
        self.parts().server.client(name)
    }

    /// The server's data directory.
    pub fn data_directory(&self) -> &std::path::Path {
        &self.parts().server.data
    }

    /// PostgreSQL's first process is alive.
    pub fn postgres_runs(&self) -> bool {
        self.parts().server.is_running()
    }

    /// PostgreSQL, which is down, writes its WAL into `directory` from its next start on.
    pub fn move_wal_to(&self, directory: &std::path::Path) {
        let (here, there) = (self.data_directory().join("pg_wal"), directory.join("pg_wal"));
        // With owner and mode.
        let copied = std::process::Command::new("cp").arg("-a").args([&here, &there]).status();
        assert!(copied.is_ok_and(|status| status.success()), "{} can be copied", here.display());
        std::fs::remove_dir_all(&here).expect("nobody uses it");
        std::os::unix::fs::symlink(there, here).expect("a link can be made");
    }

    /// PostgreSQL stops.
    pub fn stop_postgres(&self, how: Stop) {
        self.parts().server.stop(how).unwrap_or_else(|error| panic!("{}: {error:#}", self.id()));
    }

    /// PostgreSQL starts again.
    pub fn start_postgres(&self) {
        self.parts().server.start().unwrap_or_else(|error| panic!("{}: {error:#}", self.id()));
    }

    /// Ends the sessions that `condition` on `pg_stat_activity` selects, and says how many there were.
    pub async fn terminate_backends(&self, condition: &str) -> i64 {
        let query = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid() and ({condition})"
        );
        self.value(&query).await
    }
}
