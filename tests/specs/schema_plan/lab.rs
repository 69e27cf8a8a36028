//! A database with an agent's memory in it, and no agent: what plans are made of and tried on.

use steep_agent::{
    drift::{
        self,
        apply::{Applied, Limits, Order, apply},
        deparse, look,
    },
    postgres::{Database, PostgresConfig, Purpose},
    schema::{
        Catalog, Plan,
        compare::{Comparison, compare},
        plan::plan,
    },
    store::{Actor, Owner, Store},
};
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::OperationId,
};
use steep_tests::Node;
use tokio_postgres::Client;

/// One side: a database of its own on a node's server.
pub(super) struct Side {
    pub(super) store: Store,
    pub(super) client: Client,
    /// Its server runs as long.
    _node: Node,
}

impl Side {
    /// Makes database `name` on the server of `node`.
    pub(super) async fn new(node: &Node, name: &str) -> Self {
        node.sql(&format!("create database {name}")).await;
        let config = PostgresConfig {
            host: node.host().display().to_string(),
            port: node.port(),
            dbname: name.to_owned(),
            user: "postgres".to_owned(),
            passfile: None,
            bin_dir: None,
        };
        let owner = Owner { node: name.parse().expect("a node's name"), mesh: "spec".parse().expect("a mesh's name") };
        let store = Store::open(Database::new(config), owner).await.expect("the store opens");
        let client = node.try_connect(name).await.expect("it can be connected to");
        Self { store, client, _node: node.clone() }
    }

    pub(super) async fn sql(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            let reason = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
            panic!("{reason}\n  in: {sql}");
        }
    }

    pub(super) async fn text(&self, query: &str) -> String {
        let row = self.client.query_one(query, &[]).await.unwrap_or_else(|error| panic!("{error:?}\n  in: {query}"));
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// The database as it is.
    pub(super) async fn catalog(&self) -> Catalog {
        let session = self.store.database().session(Purpose::Watch).await.expect("a session");
        look::catalog(&session, None).await.expect("a catalog")
    }

    /// Applies `plan`, which was made of `source`.
    pub(super) async fn apply(&self, plan: &Plan, limits: &Limits) -> Result<Applied, drift::Error> {
        let order = Order {
            op: OperationId::generate(),
            source: "source".parse().expect("a name"),
            actor: Actor::agent(&self.store.owner().node),
        };
        apply(&self.store, plan, &order, limits).await
    }
}

/// Two sides as catalogs, the source's texts in the target's words, and how they compare: the source is on the left.
pub(super) async fn both(source: &Side, target: &Side) -> (Catalog, Catalog, Comparison) {
    let (mut theirs, ours) = (source.catalog().await, target.catalog().await);
    let mut compared = compare(&ours, &theirs);
    let session = target.store.database().session(Purpose::Watch).await.expect("a session");
    deparse::settle(&session, &mut compared, &ours, &mut theirs).await.expect("to settle texts");
    (theirs, ours, compared)
}

/// What would bring `target` to `source`.
pub(super) async fn planned(source: &Side, target: &Side) -> Plan {
    let (theirs, ours, _) = both(source, target).await;
    plan(&theirs, &ours)
}

/// Plans and applies, and says what failed in the words an operator would read.
pub(super) async fn sync(source: &Side, target: &Side) -> (Plan, Result<Applied, Failure>) {
    let plan = planned(source, target).await;
    let applied = target.apply(&plan, &Limits::default()).await;
    let applied = applied.map_err(|error| error.explain());
    (plan, applied)
}

/// Every verdict but MATCH, with what differs.
pub(super) fn told(compared: &Comparison) -> Vec<String> {
    use steep_agent::schema::{compare::Verdict::Match, diff::summary};
    let tables = compared.tables.iter().filter(|(_, table)| table.verdict != Match);
    let tables = tables.map(|(name, table)| {
        let (verdict, what) = (table.verdict.as_str(), summary(&table.differences, "target", "source"));
        format!("{name} {verdict} {:?} {what}", table.qualifier)
    });
    let objects = compared.objects.iter().filter(|(_, object)| object.verdict != Match);
    let objects =
        objects.map(|(key, object)| format!("{key} {} {:?} {:?}", object.verdict.as_str(), object.left, object.right));
    tables.chain(objects).collect()
}
