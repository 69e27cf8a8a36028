//! Parts of a node broken on purpose, and mended.

use xtask::{
    cluster::{agent::Life, server::Stop},
    process::Signal,
};

use crate::{node::Node, wait::PATIENCE};

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

    /// The agent's process is alive.
    pub fn agent_runs(&self) -> bool {
        self.parts().agent.pid().is_some()
    }

    /// The agent stands still until [`Node::thaw_agent`].
    pub fn freeze_agent(&self) {
        self.parts().agent.signal(Signal::Stop).expect("the agent runs");
    }

    /// A frozen agent goes on.
    pub fn thaw_agent(&self) {
        self.parts().agent.signal(Signal::Continue).expect("the agent runs");
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
