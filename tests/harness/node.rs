//! One node of a spec's cluster: its database asked and told in SQL, its state waited for.

use std::{fmt, sync::Arc};

use steep_protocol::node::NodeState;
use tokio::sync::Mutex;
use tokio_postgres::{Client, Config, Error, NoTls, Row, types::FromSqlOwned};
use xtask::cluster::{
    self,
    server::{DATABASE, USER},
};

use crate::{
    background,
    cluster::Running,
    steepctl::Steepctl,
    wait::{PATIENCE, until},
};

/// A node: its PostgreSQL and its agent. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    pub(crate) running: Arc<Running>,
    index: usize,
    /// One connection for all questions of the spec; made anew when it broke.
    client: Arc<Mutex<Option<Arc<Client>>>>,
}

/// What a table holds, in a form that can be compared between nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub rows: i64,
    /// Of all rows, whatever their order.
    pub hash: String,
}

impl Node {
    pub(crate) fn new(running: Arc<Running>, index: usize) -> Self {
        Self { running, index, client: Arc::default() }
    }

    pub(crate) fn parts(&self) -> &cluster::Node {
        &self.running.cluster.nodes[self.index]
    }

    /// `node_a`, `node_b`, …
    pub fn id(&self) -> &str {
        &self.parts().node_id
    }

    /// The server's major version.
    pub fn major(&self) -> u32 {
        self.parts().server.major
    }

    /// The folder of the server's socket, which is its `host`.
    pub fn host(&self) -> &std::path::Path {
        &self.parts().server.socket
    }

    /// The port in the name of the server's socket.
    pub fn port(&self) -> u16 {
        self.parts().server.port
    }

    /// host:port of the agent.
    pub fn address(&self) -> &str {
        &self.parts().agent.address
    }

    /// The folder with the mesh's certificates and keys.
    pub fn pki(&self) -> std::path::PathBuf {
        self.running.cluster.pki()
    }

    /// An operator with admin's rights types `words` behind `steepctl`, asking this node's agent.
    pub fn steepctl(&self, words: &str) -> Steepctl {
        Steepctl::new(self, words)
    }

    /// psql of the server's own version, pointed at its database.
    pub fn psql(&self) -> std::process::Command {
        self.parts().server.client("psql")
    }

    /// What the agent has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.parts().agent.log).unwrap_or_default()
    }

    /// Status and body of one of the agent's HTTP pages.
    pub fn http(&self, path: &str) -> (u16, String) {
        self.parts().agent.get(path).unwrap_or_else(|error| panic!("{}: {path}: {error:#}", self.id()))
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Client {
        self.try_connect(DATABASE).await.unwrap_or_else(|error| panic!("{}: cannot connect: {error}", self.id()))
    }

    /// A connection to `database`, or why there is none.
    pub async fn try_connect(&self, database: &str) -> Result<Client, Error> {
        let server = &self.parts().server;
        let mut config = Config::new();
        config.host_path(&server.socket).port(server.port).user(USER).dbname(database).application_name("spec");
        let connecting = background::runtime().spawn(async move {
            let (client, connection) = config.connect(NoTls).await?;
            // Its errors come back through the client.
            tokio::spawn(connection);
            Ok(client)
        });
        connecting.await.expect("connecting does not panic")
    }

    async fn client(&self) -> Arc<Client> {
        let mut held = self.client.lock().await;
        match held.as_ref() {
            Some(client) if !client.is_closed() => Arc::clone(client),
            _ => Arc::clone(held.insert(Arc::new(self.connect().await))),
        }
    }

    /// Runs one or many statements.
    pub async fn sql(&self, statements: &str) {
        self.try_sql(statements).await.unwrap_or_else(|error| self.complain(statements, &error));
    }

    /// Runs one or many statements, or says why not.
    pub async fn try_sql(&self, statements: &str) -> Result<(), Error> {
        self.client().await.batch_execute(statements).await
    }

    /// The rows of a query.
    pub async fn rows(&self, query: &str) -> Vec<Row> {
        self.try_rows(query).await.unwrap_or_else(|error| self.complain(query, &error))
    }

    /// The rows of a query, or why there are none.
    pub async fn try_rows(&self, query: &str) -> Result<Vec<Row>, Error> {
        self.client().await.query(query, &[]).await
    }

    /// The one value of a query with one row and one column.
    pub async fn value<T: FromSqlOwned>(&self, query: &str) -> T {
        let rows = self.rows(query).await;
        assert_eq!(rows.len(), 1, "{}: one row expected of: {query}", self.id());
        rows[0].try_get(0).unwrap_or_else(|error| self.complain(query, &error))
    }

    /// The first column of every row, as text.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        let query = format!("select (select value from json_each_text(row_to_json(r)) limit 1) from ({query}) r");
        self.rows(&query).await.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()).collect()
    }

    fn complain(&self, statement: &str, error: &Error) -> ! {
        let reason = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
        panic!("{}: {reason}\n  in: {statement}", self.id())
    }

    /// The number of rows in `table`, named as SQL would.
    pub async fn count(&self, table: &str) -> i64 {
        self.value(&format!("select count(*) from {table}")).await
    }

    /// What `table` holds; equal on two nodes when every row is.
    pub async fn content(&self, table: &str) -> Content {
        let query =
            format!("select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text from {table} t");
        let rows = self.rows(&query).await;
        Content { rows: rows[0].get(0), hash: rows[0].get(1) }
    }

    /// Waits until this node's `table` holds the same as `other`'s.
    pub async fn holds_the_same_as(&self, other: &Self, table: &str) {
        let what = format!("{table} is the same on {} and {}", self.id(), other.id());
        until(&what, PATIENCE, async || {
            let (mine, theirs) = (self.content(table).await, other.content(table).await);
            if mine == theirs { Ok(()) } else { Err(format!("{mine:?} here, {theirs:?} there")) }
        })
        .await;
    }

    /// The names of all replication slots.
    pub async fn slots(&self) -> Vec<String> {
        self.texts("select slot_name from pg_replication_slots order by 1").await
    }

    /// The state the agent has stored for this node.
    pub async fn state(&self) -> Result<NodeState, String> {
        let query = "select init_state from steep_repl.nodes where node_id = $1";
        let client = self.try_connect(DATABASE).await.map_err(|error| error.to_string())?;
        let row = client.query_opt(query, &[&self.id()]).await.map_err(|error| error.to_string())?;
        let text: String = row.ok_or("no row in steep_repl.nodes")?.get(0);
        text.parse().map_err(|_| format!("{text:?}, which is no state"))
    }

    /// Waits until this node is in `state`.
    pub async fn becomes(&self, state: NodeState) {
        until(&format!("{} becomes {state}", self.id()), PATIENCE, async || match self.state().await {
            Ok(seen) if seen == state => Ok(()),
            Ok(seen) => Err(seen.to_string()),
            Err(reason) => Err(reason),
        })
        .await;
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}
