//! Asks other agents for their schemas, and answers them: only what has changed travels.
//!
//! Whoever asks says what it knows, by fingerprint; whoever answers captures its schema first. What was heard is kept in
//! the database, so that `steep_repl.compare_fingerprints` works there, also while the other node is down.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    names::TableName,
    v1,
    wire::rpc::{MAX_MESSAGE_BYTES, MAX_SCHEMA_BYTES, failure_of},
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};

use super::told::{self, PAGE_BYTES};
use crate::{
    mesh::Peers,
    store::{
        self, Store,
        fingerprints::{self, Captured, EnvironmentFingerprint, Hashes},
    },
};

/// How long a peer may take to tell its whole schema.
const LIMIT: Duration = Duration::from_secs(60);
/// Tables read from the store at once.
const ROWS: usize = 200;
/// How many things of a peer are believed, and how much they may come to; more would be an attack.
const MOST: (usize, usize) = (200_000, 512 << 20);

/// This node's schema and what it knows of others'. Clones share it.
#[derive(Debug, Clone)]
pub struct Drift {
    me: NodeId,
    store: Store,
    peers: Peers,
    /// The last capture, and when it began: who asks later wants a new one.
    last: Arc<Mutex<Option<(Instant, Captured)>>>,
    /// One fetch at a time from each node.
    turns: Arc<dashmap::DashMap<NodeId, Arc<Mutex<()>>>>,
    told: Arc<watch::Sender<Noticed>>,
}

/// What is known without asking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noticed {
    /// Digest of this node's schema; empty: not captured yet.
    pub digest: String,
    /// Tables that replicate with each node and do not fit, as last noticed.
    pub misfits: BTreeMap<NodeId, Vec<TableName>>,
}

/// The largest request; the other end takes a little more.
const MOST_ASKED: usize = MAX_MESSAGE_BYTES / 8 * 7;

fn explain(error: store::Error) -> Failure {
    error.explain()
}

impl Drift {
    /// Nothing is captured yet.
    pub fn new(me: NodeId, store: Store, peers: Peers) -> Self {
        let told = Arc::new(watch::Sender::new(Noticed::default()));
        Self { me, store, peers, last: Arc::default(), turns: Arc::default(), told }
    }

    /// This node.
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// What is known without asking.
    pub fn noticed(&self) -> Noticed {
        self.told.borrow().clone()
    }

    pub(super) fn notice(&self, change: impl FnOnce(&mut Noticed)) {
        self.told.send_modify(change);
    }

    /// Captures this node's schema as it is now, or a moment later; callers that come together share one capture.
    pub async fn capture(&self) -> Result<Captured, Failure> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((_, captured)) = last.as_ref().filter(|(began, _)| *began >= asked) {
            return Ok(captured.clone());
        }
        let began = Instant::now();
        let captured = fingerprints::capture(&self.store).await.map_err(explain)?;
        *last = Some((began, captured.clone()));
        self.told.send_if_modified(|noticed| {
            let is_new = noticed.digest != captured.digest;
            noticed.digest.clone_from(&captured.digest);
            is_new
        });
        Ok(captured)
    }

    /// The database of `node` as last heard; none: nothing was.
    pub async fn environment(&self, node: &NodeId) -> Result<Option<EnvironmentFingerprint>, Failure> {
        let known = fingerprints::environments(&self.store).await.map_err(explain)?;
        Ok(known.into_iter().find(|known| known.node_id == *node))
    }

    /// This node's schema, for somebody who knows `asked`; captured first.
    pub async fn answer(
        &self,
        asked: v1::FetchSchemaRequest,
    ) -> Result<impl Stream<Item = Result<v1::SchemaPage, Failure>> + Send + use<>, Failure> {
        self.capture().await?;
        let environment = self.environment(&self.me).await?;
        let environment =
            environment.ok_or_else(|| Failure::new(Code::Internal, "a capture has left no environment"))?;
        let end = v1::SchemaPage { environment: Some(told::environment(&environment)), ..v1::SchemaPage::default() };
        let (changed, gone) = if asked.digest == environment.digest {
            (Vec::new(), Vec::new())
        } else {
            let own = fingerprints::hashes(&self.store, &self.me).await.map_err(explain)?;
            difference(&own, &asked.known)
        };
        let (objects, tables): (Vec<Hashes>, Vec<Hashes>) =
            changed.into_iter().partition(|changed| changed.kind.is_some());
        let kinds = objects.into_iter().map(|object| (object.kind.unwrap_or_default(), object.name)).collect();
        let first = v1::SchemaPage { gone, objects: self.objects(kinds).await?, ..v1::SchemaPage::default() };
        let names: Vec<TableName> = tables.into_iter().map(|table| table.name).collect();
        let drift = self.clone();
        let chunks: Vec<Vec<TableName>> = names.chunks(ROWS).map(<[TableName]>::to_vec).collect();
        let tables = stream::iter(chunks).then(move |names| {
            let drift = drift.clone();
            async move {
                match fingerprints::find_tables(&drift.store, &drift.me, &names).await {
                    Ok(rows) => pages(rows.iter().map(told::table)).into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(explain(error))],
                }
            }
        });
        Ok(stream::iter([Ok(first)]).chain(tables.flat_map(stream::iter)).chain(stream::iter([Ok(end)])))
    }

    async fn objects(&self, wanted: Vec<(String, TableName)>) -> Result<Vec<v1::ObjectSchema>, Failure> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: std::collections::BTreeSet<_> = wanted.into_iter().collect();
        let objects = fingerprints::objects(&self.store, &self.me).await.map_err(explain)?;
        let is_wanted =
            |row: &&fingerprints::ObjectFingerprint| wanted.contains(&(row.kind.clone(), row.object.clone()));
        Ok(objects.iter().filter(is_wanted).map(told::object).collect())
    }

    /// Asks `node` for its schema and keeps what has changed of it.
    pub async fn fetch(&self, node: &NodeId) -> Result<EnvironmentFingerprint, Failure> {
        let turn = Arc::clone(self.turns.entry(node.clone()).or_default().value());
        let _turn = turn.lock().await;
        let silent = |_| {
            let text = format!("{node} did not tell its schema in {} s", LIMIT.as_secs());
            Failure::new(Code::PeerSilent, text)
        };
        timeout(LIMIT, self.fetch_from(node)).await.map_err(silent)?
    }

    async fn fetch_from(&self, node: &NodeId) -> Result<EnvironmentFingerprint, Failure> {
        let known = fingerprints::hashes(&self.store, node).await.map_err(explain)?;
        let digest = self.environment(node).await?.map(|known| known.digest).unwrap_or_default();
        let mut asked = v1::FetchSchemaRequest { digest, known: known.iter().map(told::hash).collect() };
        if asked.encoded_len() > MOST_ASKED {
            // What is known does not fit into a request any more: everything is told again.
            fingerprints::forget(&self.store, node).await.map_err(explain)?;
            asked = v1::FetchSchemaRequest::default();
        }
        let mut client = self.peers.client(node).await?.max_decoding_message_size(MAX_SCHEMA_BYTES);
        let mut pages = client.fetch_schema(asked).await.map_err(|status| failure_of(&status))?.into_inner();
        let (mut seen, mut bytes) = (0, 0);
        while let Some(page) = pages.message().await.map_err(|status| failure_of(&status))? {
            seen += page.tables.len() + page.objects.len() + page.gone.len();
            bytes += page.encoded_len();
            if seen > MOST.0 || bytes > MOST.1 {
                let text =
                    format!("{node} tells of more than {} tables and types, or of more than {} bytes", MOST.0, MOST.1);
                return Err(Failure::new(Code::SchemaUnreadable, text));
            }
            self.keep(node, &page).await?;
            if let Some(told) = &page.environment {
                let environment = told::read_environment(node, told)?;
                fingerprints::save_environment(&self.store, &environment).await.map_err(explain)?;
                return Ok(environment);
            }
        }
        Err(Failure::new(Code::StreamBroken, format!("{node} stopped before it had told its whole schema")))
    }

    async fn keep(&self, node: &NodeId, page: &v1::SchemaPage) -> Result<(), Failure> {
        let tables: Vec<_> = page.tables.iter().map(told::read_table).collect::<Result<_, _>>()?;
        let objects: Vec<_> = page.objects.iter().map(told::read_object).collect::<Result<_, _>>()?;
        let gone: Vec<_> = page.gone.iter().map(told::read_gone).collect::<Result<_, _>>()?;
        let (no_tables, no_objects): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(kind, _)| kind.is_empty());
        if !tables.is_empty() {
            fingerprints::save_tables(&self.store, node, &tables).await.map_err(explain)?;
        }
        if !objects.is_empty() {
            fingerprints::save_objects(&self.store, node, &objects).await.map_err(explain)?;
        }
        if !no_tables.is_empty() {
            let names: Vec<_> = no_tables.into_iter().map(|(_, name)| name).collect();
            fingerprints::delete_tables(&self.store, node, &names).await.map_err(explain)?;
        }
        if !no_objects.is_empty() {
            fingerprints::delete_objects(&self.store, node, &no_objects).await.map_err(explain)?;
        }
        Ok(())
    }
}

/// What of `own` is not `known` as it is, and what is known and gone.
fn difference(own: &[Hashes], known: &[v1::SchemaHash]) -> (Vec<Hashes>, Vec<v1::SchemaHash>) {
    type Key<'a> = (&'a str, &'a str, &'a str);
    let mut left: BTreeMap<Key<'_>, (&str, &str)> = BTreeMap::new();
    for hash in known {
        let Some(name) = &hash.name else { continue };
        left.insert((&hash.kind, &name.schema, &name.name), (&hash.fingerprint, &hash.shape));
    }
    let mut changed = Vec::new();
    for own in own {
        let key = (own.kind.as_deref().unwrap_or(""), own.name.schema.as_str(), own.name.name.as_str());
        let is = (own.fingerprint.as_str(), own.shape.as_deref().unwrap_or(""));
        if left.remove(&key) != Some(is) {
            changed.push(own.clone());
        }
    }
    let gone = left.into_keys().map(|(kind, schema, name)| v1::SchemaHash {
        kind: kind.to_owned(),
        name: Some(v1::TableName { schema: schema.to_owned(), name: name.to_owned() }),
        ..v1::SchemaHash::default()
    });
    (changed, gone.collect())
}

/// Tables in pages of a size that fits into a message.
fn pages(tables: impl Iterator<Item = v1::TableSchema>) -> Vec<v1::SchemaPage> {
    let mut pages = vec![v1::SchemaPage::default()];
    let mut bytes = 0;
    for table in tables {
        let size = table.columns.len() + table.definition.len();
        if bytes > 0 && bytes + size > PAGE_BYTES {
            pages.push(v1::SchemaPage::default());
            bytes = 0;
        }
        bytes += size;
        pages.last_mut().expect("there is one").tables.push(table);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(kind: Option<&str>, name: &str, fingerprint: &str) -> Hashes {
        let shape = kind.is_none().then(|| "s".to_owned());
        let (kind, fingerprint) = (kind.map(str::to_owned), fingerprint.to_owned());
        Hashes { kind, name: TableName::new("public", name), fingerprint, shape }
    }

    #[test]
    fn only_what_is_not_known_as_it_is_travels() {
        let before =
            [own(None, "same", "1"), own(None, "other", "1"), own(None, "gone", "1"), own(Some("enum"), "e", "1")];
        let known: Vec<_> = before.iter().map(told::hash).collect();
        let now = [own(None, "same", "1"), own(None, "other", "2"), own(None, "e", "1"), own(Some("enum"), "e", "1")];
        let (changed, gone) = difference(&now, &known);
        let names: Vec<_> = changed.iter().map(|hash| (hash.kind.as_deref(), hash.name.name.as_str())).collect();
        assert_eq!(names, [(None, "other"), (None, "e")]);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].name.as_ref().map(|name| name.name.as_str()), Some("gone"));
        assert_eq!(difference(&now, &[]).0.len(), 4);
    }

    #[test]
    fn a_page_stays_below_the_limit_and_no_table_is_left_out() {
        let table = |size: usize| v1::TableSchema { columns: "x".repeat(size), ..v1::TableSchema::default() };
        let made = pages([10, PAGE_BYTES, 5, 5].into_iter().map(table));
        assert_eq!(made.iter().map(|page| page.tables.len()).collect::<Vec<_>>(), [1, 1, 2]);
        assert_eq!(pages(std::iter::empty()).len(), 1);
    }
}
