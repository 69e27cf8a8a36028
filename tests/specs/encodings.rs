//! Rows arrive byte by byte in databases of any encoding, by whatever way they are copied.

use steep_tests::{Cluster, Node, PATIENCE, until};
use tokio_postgres::Client;

use crate::snapshots::{Folder, generated};

/// An encoding, and bytes of it that do not come back from UTF-8 as they were, or have no form there.
const ENCODINGS: [(&str, &str); 3] =
    [("EUC_JP", r"\xadfa20adfb"), ("WIN1252", r"\x8120e9"), ("SQL_ASCII", r"\xe92020ff")];

/// Names that are not ASCII, for one table that travels in binary and one that travels as text.
const TABLES: [&str; 2] = [r#""Größe""#, "as_text"];

/// The node's database of this encoding.
struct Stored {
    client: Client,
    bytes: String,
}

impl Stored {
    /// Makes the database, and has the agent serve it.
    async fn of(node: &Node, encoding: &str, bytes: &str) -> Self {
        let locale = "template template0 lc_collate 'C' lc_ctype 'C'";
        node.sql(&format!("create database stored encoding '{encoding}' {locale}")).await;
        node.reconfigure_agent(|toml| {
            let toml = toml.replace("dbname = \"postgres\"", "dbname = \"stored\"");
            toml.replace("user=postgres", "user=postgres dbname=stored")
        });
        let client = node.try_connect("stored").await.expect("it is there");
        Self { client, bytes: format!("convert_from('{bytes}', '{encoding}')") }
    }

    async fn make_tables(&self) {
        self.run("create domain words as text").await;
        for (table, kind) in TABLES.into_iter().zip(["text", "words"]) {
            self.run(&format!(r#"create table {table} (id int primary key, "Käse" {kind}, padded char(20))"#)).await;
        }
    }

    /// Into both tables, the same row.
    async fn write(&self, id: i32) {
        for table in TABLES {
            self.run(&format!("insert into {table} values ({id}, {0}, {0})", self.bytes)).await;
        }
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// What is stored, byte by byte.
    async fn read(&self) -> Vec<String> {
        let mut all = Vec::new();
        for table in TABLES {
            let bytes = |column| format!("encode(convert_to({column}, getdatabaseencoding()), 'hex')");
            let (text, padded) = (bytes(r#""Käse""#), bytes("padded::bpchar || '|'"));
            let sql = format!("select id || ' ' || {text} || ' ' || {padded} from {table} order by id");
            all.extend(
                self.client.query(&sql, &[]).await.expect("it is read").iter().map(|row| row.get::<_, String>(0)),
            );
        }
        all
    }

    async fn becomes_as(&self, other: &Self, rows: usize, when: &str) {
        let expected = other.read().await;
        assert_eq!(expected.len(), rows * TABLES.len(), "{when}");
        until(when, PATIENCE, async || {
            let here = self.read().await;
            if here == expected { Ok(()) } else { Err(format!("{here:?}, and not {expected:?}")) }
        })
        .await;
    }
}

/// Two nodes whose databases have this encoding, with a row in each table of the first.
async fn furnished(encoding: &str, bytes: &str) -> ([Node; 2], [Stored; 2]) {
    eprintln!("{encoding}");
    let [a, b] = Cluster::of(2).start().await;
    let stored = [Stored::of(&a, encoding, bytes).await, Stored::of(&b, encoding, bytes).await];
    stored[0].make_tables().await;
    stored[0].write(1).await;
    ([a, b], stored)
}

#[tokio::test]
async fn rows_arrive_byte_by_byte_in_databases_that_are_not_utf8() {
    for (encoding, bytes) in ENCODINGS {
        let ([_a, b], [on_a, on_b]) = furnished(encoding, bytes).await;
        let op = b.steepctl("node start node_b --from node_a").operation();
        op.completes().await;
        on_b.becomes_as(&on_a, 1, "copied").await;
        on_a.write(2).await;
        on_b.becomes_as(&on_a, 2, "replicated").await;
        on_b.write(3).await;
        on_a.becomes_as(&on_b, 3, "replicated back").await;
        let again = "node reinit node_b --schema public --source node_a --confirm node_b";
        b.steepctl(again).operation().completes().await;
        on_b.becomes_as(&on_a, 3, "copied again").await;
    }
}

#[tokio::test]
async fn rows_arrive_byte_by_byte_by_way_of_files_in_databases_that_are_not_utf8() {
    for (encoding, bytes) in ENCODINGS {
        let ([a, b], [on_a, on_b]) = furnished(encoding, bytes).await;
        let folder = Folder::new(encoding);
        generated(&a, &folder, "").await;
        on_a.write(2).await;
        b.steepctl(&format!("snapshot apply node_b --input {}", folder.path())).operation().completes().await;
        on_b.becomes_as(&on_a, 2, "applied").await;
    }
}
