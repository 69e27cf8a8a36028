//! Initialization in two phases: a snapshot in files that is whole or is none, and a node that begins where it ends.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;
use steep_agent::snapshot::files::manifest::Manifest;
use steep_tests::{Cluster, Ledger, Node, NodeState::*, PATIENCE, Stop, crash_points, guest, shop, until};

/// Some tables of several parts, and what CSV makes hard.
pub(crate) const ODD: &str = r#"
    create schema "Odd ""Names""";
    create type mood as enum ('sad', 'glad');
    create table "Odd ""Names""".".. / etc" ("a,b" int primary key, "line
break" text, m mood, b bytea, n numeric, f float8, at timestamptz, i interval, a text[], j jsonb,
      twice int generated always as ("a,b" * 2) stored);
    insert into "Odd ""Names""".".. / etc" values
      (1, '', 'sad', '\x00ff', 'NaN', 'Infinity', '2026-01-01 00:00:00+14', '1 mon -1 day', array['', null, '"x"', '{}'], '{"a": "\n"}'),
      (2, null, null, null, null, null, null, null, null, null),
      (3, '\.', 'glad', '', 1e-200, 0.1, 'infinity', '0', '{}', '[]'),
      (4, E'two\r\nlines, "quoted"\t\\N', 'sad', '\x0a', 0.10, -0.0, '0044-03-15 12:00:00+00 BC', '-1:00', null, 'null');
    create table single (t text);
    alter table single replica identity full;
    insert into single values ('\.'), (''), (null), ('"'), (E'\n'), ('NULL');
    create table nothing_in_it (id bigint primary key, t text);
    create table wide (id bigint primary key, text text not null);
    insert into wide select n, repeat(md5(n::text), 8) from generate_series(1, 24000) n;
    create table measured (at date not null, value int, primary key (at, value)) partition by range (at);
    create table measured_old partition of measured for values from (minvalue) to ('2026-01-01');
    create table measured_new partition of measured for values from ('2026-01-01') to (maxvalue);
    insert into measured select date '2025-12-01' + n, n from generate_series(1, 60) n;
    analyze;"#;

pub(crate) const ODD_TABLES: [&str; 5] =
    ["\"Odd \"\"Names\"\"\".\".. / etc\"", "single", "nothing_in_it", "wide", "measured"];

/// A directory on this machine, which is every agent's host; nothing is there yet.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("steep-snap-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("a plain name")
    }

    /// Another one with the same in it.
    fn copied(&self, name: &str) -> Self {
        let copy = Self::new(name);
        fs::create_dir_all(copy.0.join("data")).expect("it can be made");
        for file in self.files() {
            fs::copy(self.0.join(&file), copy.0.join(&file)).expect("it can be copied");
        }
        copy
    }

    /// Every file, by its name.
    pub(crate) fn files(&self) -> Vec<String> {
        fn walk(root: &Path, below: &str, names: &mut Vec<String>) {
            for entry in fs::read_dir(root.join(below)).into_iter().flatten().flatten() {
                let name = format!("{below}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    walk(root, &format!("{name}/"), names);
                } else {
                    names.push(name);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.0, "", &mut names);
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Writes a snapshot of `node` and returns its id.
pub(crate) async fn generated(node: &Node, folder: &Folder, words: &str) -> String {
    let line = format!("snapshot generate {} --dir {} {words}", node.id(), folder.path());
    let started = node.steepctl(&line).arg("--detach").arg("-o").arg("json").succeeds();
    let op = steep_tests::Operation::known(node, &started);
    op.completes().await;
    started.json()["snapshot_id"].as_str().expect("it has an id").to_owned()
}

pub(crate) fn manifest(folder: &Folder) -> Value {
    serde_json::from_slice(&fs::read(folder.0.join("manifest.json")).expect("it is there")).expect("it is JSON")
}

pub(crate) async fn alike(a: &Node, b: &Node, tables: &[&str]) {
    for table in tables {
        b.holds_the_same_as(a, table).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_a_snapshot_lies_about_reaches_every_target_once() {
    let [a, b, c] = Cluster::of(3).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(5_000)).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(3, &a);
    on_a.write(60).await;
    let folder = Folder::new("whole");
    let id = generated(&a, &folder, "--parallel 3").await;
    let slot = format!("steep_{id}");
    assert_eq!(a.slots().await, std::slice::from_ref(&slot));
    assert_eq!(a.state().await, Ok(Uninitialized), "a source is not changed by it");
    // What is in the directory.
    let written = manifest(&folder);
    let body = &written["manifest"];
    assert_eq!((&body["complete"], &body["node"]), (&Value::from(true), &Value::from("node_a")), "{body}");
    assert!(folder.files().iter().filter(|name| name.starts_with("data/")).count() > 6, "{:?}", folder.files());
    let verified = a.steepctl(&format!("snapshot verify {id} -o json")).succeeds().json();
    assert_eq!(verified["rows_counted"], verified["snapshot"]["rows"], "{verified}");
    // The slot is known for what it is.
    let listed = b.steepctl("slot list node_a -o json").succeeds().json();
    assert_eq!(listed["slots"][0]["use"], "snapshot", "{listed}");
    a.steepctl(&format!("slot drop node_a {slot} --confirm node_a")).fails_with("STP-4242");

    // Written to before, while and after it is applied, on both ends.
    on_a.write(60).await;
    let on_b = ledger.writers(2, &b);
    let op = b.steepctl(&format!("snapshot apply node_b --input {}", folder.path())).operation();
    op.completes().await;
    b.becomes(Synchronized).await;
    a.becomes(Synchronized).await;
    on_a.write(40).await;
    on_b.write(40).await;
    // The same snapshot once more: node_c follows one way, as the mesh is none of the snapshot's.
    c.steepctl(&format!("snapshot apply node_c --input {}", folder.path())).fails_with_later(&c, "STP-3411").await;
    let op = c.steepctl(&format!("snapshot apply node_c --one-way --input {}", folder.path())).operation();
    op.completes().await;
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    for node in [&b, &c] {
        alike(&a, node, &["orders", "customers"]).await;
        alike(&a, node, &ODD_TABLES).await;
        let left = "steep_repl.intents where state in ('planned', 'live')";
        assert_eq!(node.count(left).await, 0, "{}", node.id());
    }
    // Deleted, whoever began from it goes on.
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    assert!(!a.slots().await.contains(&slot), "{:?}", a.slots().await);
    assert!(!folder.0.exists());
    a.sql("insert into nothing_in_it values (1, 'later')").await;
    alike(&a, &b, &["nothing_in_it"]).await;
    alike(&a, &c, &["nothing_in_it"]).await;
}

pub(crate) trait Later {
    /// Refused at once, or by the operation it began.
    async fn fails_with_later(self, node: &Node, code: &str);
}

impl Later for steep_tests::Steepctl {
    async fn fails_with_later(self, node: &Node, code: &str) {
        let outcome = self.arg("--detach").arg("-o").arg("json").outcome();
        match outcome.status {
            0 => steep_tests::Operation::known(node, &outcome).fails_with(code).await,
            _ => assert_eq!(outcome.code().as_deref(), Some(code), "{outcome}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_an_older_server_is_applied_to_a_newer_one() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(&shop::orders(2_000)).await;
    a.sql(ODD).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(40).await;
    let folder = Folder::new("older");
    generated(&a, &folder, "--compress gzip").await;
    on_a.write(40).await;
    b.steepctl(&format!("snapshot apply node_b --input {}", folder.path())).succeeds();
    on_a.write(40).await;
    on_b.write(40).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &["orders", "customers"]).await;
    alike(&a, &b, &ODD_TABLES).await;
}

#[tokio::test]
async fn rows_alone_are_loaded_without_the_node_they_are_of() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(3_000)).await;
    a.sql(ODD).await;
    let folder = Folder::new("alone");
    generated(&a, &folder, "--compress lz4 --exclude single").await;
    a.stop_agent();
    let line = format!("snapshot apply node_b --no-subscribe --input {}", folder.path());
    b.steepctl(&line).succeeds();
    b.becomes(Uninitialized).await;
    alike(&a, &b, &["orders", "customers", "wide", "measured"]).await;
    assert_eq!(b.slots().await, Vec::<String>::new());
    assert_eq!(b.count("pg_subscription").await, 0);
    assert_eq!(b.count("pg_class where relname = 'single'").await, 0, "it was left out");
    assert!(b.value::<i64>("select last_value from orders_id_seq").await > 3_000, "sequences come along");
    a.start_agent();
    until("node_b is told that it holds them", PATIENCE, async || {
        let outcome = b.steepctl(&line).outcome();
        if outcome.code().as_deref() == Some("STP-2301") { Ok(()) } else { Err(outcome.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_agent_that_dies_while_it_applies_a_snapshot_goes_on_where_it_was() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(2, &a);
    let folder = Folder::new("dies");
    generated(&a, &folder, "").await;
    let points = [
        "session opened",
        "amid a part:3",
        "after a commit:2",
        "all copied",
        "before subscribe",
        "subscribed",
        "verified",
    ];
    let points = crash_points(&points, &["amid a part:3"]);
    b.stop_agent();
    b.start_agent_to_die(points[0]);
    let op = until("the agent takes an order", PATIENCE, async || {
        let line = format!("snapshot apply node_b --detach -o json --input {}", folder.path());
        let outcome = a.steepctl(&line).outcome();
        if outcome.status == 0 { Ok(steep_tests::Operation::known(&b, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await;
    for (index, point) in points.iter().enumerate() {
        b.agent_dies(point).await;
        on_a.write(10).await;
        match points.get(index + 1) {
            Some(next) => b.start_agent_to_die(next),
            None => b.start_agent(),
        }
    }
    op.completes().await;
    on_a.write(20).await;
    let accounts = [on_a.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &ODD_TABLES).await;
}

#[tokio::test]
async fn a_snapshot_that_is_cut_off_leaves_no_manifest_no_slot_and_no_files() {
    let [a, _b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(&shop::orders(2_000)).await;
    a.sql(ODD).await;
    let before = a.inventory().await;
    let is_clean = async |when: &str, folder: &Folder| {
        until(&format!("{when}: nothing is left"), PATIENCE, async || {
            let left = a.inventory().await.since(&before);
            if left.is_empty() && !folder.0.exists() { Ok(()) } else { Err(format!("{left:?} {:?}", folder.files())) }
        })
        .await;
    };
    for point in ["snapshot slot made", "amid a file", "a file written:3", "before the manifest", "manifest written"] {
        let folder = Folder::new("cut");
        a.stop_agent();
        a.start_agent_to_die(point);
        let line = format!("snapshot generate node_a --detach -o json --dir {}", folder.path());
        let op = until("the agent takes an order", PATIENCE, async || {
            let outcome = a.steepctl(&line).outcome();
            if outcome.status == 0 { Ok(steep_tests::Operation::known(&a, &outcome)) } else { Err(outcome.to_string()) }
        })
        .await;
        a.agent_dies(point).await;
        // With the snapshot all that could be gone on with is lost.
        a.kill_keepers();
        a.start_agent();
        op.fails_with("STP-4005").await;
        is_clean(point, &folder).await;
        let listed = a.steepctl("snapshot list -o json").succeeds().json();
        assert_eq!(listed["snapshots"].as_array().map(Vec::len), Some(0), "{point}: {listed}");
    }
    // And cancelled.
    for step in ["open session", "write schema", "write tables", "write sequences"] {
        let folder = Folder::new("cancelled");
        a.hold_after(step);
        let op = a.steepctl(&format!("snapshot generate node_a --dir {}", folder.path())).operation();
        a.is_held().await;
        if step == "write tables" {
            // All is written, compressed; what is told counts the rows' own bytes, as everywhere.
            let told = a.steepctl("node progress node_a -o json").succeeds().json()["operation"]["progress"].clone();
            let number = |name: &str| told[name].as_u64().or_else(|| told[name].as_str()?.parse().ok());
            let files = folder.files().into_iter().filter(|name| name.starts_with("data/"));
            let size: u64 = files.map(|name| fs::metadata(folder.0.join(name)).expect("it is there").len()).sum();
            assert!(number("bytes_copied") > Some(2 * size), "{size} bytes in files: {told}");
        }
        a.steepctl("node cancel node_a").succeeds();
        assert_eq!(op.ends().await, "cancelled", "after {step}");
        is_clean(step, &folder).await;
    }
    // The server dies, and the agent too before all is cleaned up.
    let folder = Folder::new("dead");
    a.hold_after("write schema");
    let op = a.steepctl(&format!("snapshot generate node_a --dir {}", folder.path())).operation();
    a.is_held().await;
    a.stop_postgres(Stop::Immediate);
    a.let_go();
    until("the agent gives up cleaning up", PATIENCE * 2, async || {
        if a.log().contains(r#""details":{"attempt":5}"#) { Ok(()) } else { Err("not yet") }
    })
    .await;
    a.start_postgres();
    assert_eq!(op.ends().await, "failed");
    a.kill_agent();
    a.start_agent();
    is_clean("after the server died", &folder).await;
    // A directory that was there before stays, empty as it was.
    let folder = Folder::new("mine");
    fs::create_dir_all(&folder.0).expect("it can be made");
    a.hold_after("write tables");
    let op = a.steepctl(&format!("snapshot generate node_a --dir {}", folder.path())).operation();
    a.is_held().await;
    assert!(!folder.files().is_empty());
    a.steepctl("node cancel node_a").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    assert!(fs::read_dir(&folder.0).is_ok_and(|mut entries| entries.next().is_none()), "{:?}", folder.files());
    // A directory that holds anything is not taken, and what it holds stays.
    let folder = Folder::new("taken");
    fs::create_dir_all(&folder.0).expect("it can be made");
    fs::write(folder.0.join("precious"), "x").expect("it can be written");
    a.steepctl(&format!("snapshot generate node_a --dir {}", folder.path())).fails_with("STP-3401");
    a.steepctl("snapshot generate node_a --dir snap").fails_with("STP-3401");
    a.steepctl("snapshot generate node_a --dir /tmp/../tmp/snap").fails_with("STP-3401");
    assert_eq!(folder.files(), ["precious"]);
    is_refused_inside_the_server(&a).await;
    let folder = Folder::new("otto");
    let line = format!("snapshot generate node_a --dir {}", folder.path());
    a.steepctl(&line).as_operator("vera").fails_with("STP-5003");
    let written = a.steepctl(&line).as_operator("otto").succeeds();
    for words in
        ["step=\"write tables\"", "Kept      until ", "then deleted: slot steep_snap_", "snapshot apply TARGET"]
    {
        assert!(format!("{written}").contains(words), "{words}: {written}");
    }
    let listed = a.steepctl("snapshot list -o json").as_operator("vera").succeeds().json();
    let id = listed["snapshots"][0]["snapshot_id"].as_str().expect("an id").to_owned();
    a.steepctl(&format!("snapshot verify {id}")).as_operator("vera").succeeds();
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).as_operator("otto").fails_with("STP-5003");
    assert_eq!(a.slots().await, [format!("steep_{id}")]);
}

/// No directory inside the server's own takes a snapshot, whichever way it is named.
async fn is_refused_inside_the_server(a: &Node) {
    let server: String = a.value("show data_directory").await;
    let link = Folder::new("link");
    symlink(&server, &link.0).expect("it can be made");
    for inside in [format!("{server}/snap"), format!("{server}/base/snap"), format!("{}/pg_wal/snap", link.path())] {
        let refused = a.steepctl(&format!("snapshot generate node_a --dir {inside}")).fails_with("STP-3401");
        assert!(
            refused.stderr.contains("PostgreSQL keeps its own files") && refused.stderr.contains(&server),
            "{refused}"
        );
        assert!(!Path::new(&inside).exists(), "{inside}");
    }
    fs::remove_file(&link.0).expect("it is a link");
}

/// The first file of rows with so many in it, and its entry in the manifest.
pub(crate) fn a_part(folder: &Folder, more_than: u64) -> (String, Value) {
    let written = manifest(folder);
    let tables = written["manifest"]["tables"].as_array().expect("tables").clone();
    let mut parts = tables.iter().flat_map(|table| table["parts"].as_array().expect("parts"));
    let part = parts.find(|part| part["rows"].as_u64() > Some(more_than)).expect("one has rows");
    (part["file"]["name"].as_str().expect("a name").to_owned(), part.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn nothing_is_loaded_from_a_snapshot_that_was_touched() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(&shop::orders(2_000)).await;
    a.sql(ODD).await;
    let whole = Folder::new("touched");
    generated(&a, &whole, "--compress none").await;
    let (file, _) = a_part(&whole, 100);
    let (other, _) = a_part(&whole, 1_000);
    let before = [a.inventory().await, b.inventory().await];
    type Touch<'a> = Box<dyn Fn(&Folder) + 'a>;
    let at = |folder: &Folder, name: &str| folder.0.join(name);
    let edited = |folder: &Folder, from: &str, to: &str| {
        let path = folder.0.join("manifest.json");
        let text = fs::read_to_string(&path).expect("it is there");
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replacen(from, to, 1)).expect("it can be written");
    };
    let cases: Vec<(&str, &str, Touch<'_>)> = vec![
        (
            "truncated",
            "STP-3404",
            Box::new(|f| {
                let bytes = fs::read(at(f, &file)).expect("it is there");
                fs::write(at(f, &file), &bytes[..bytes.len() - 7]).expect("it can be written");
            }),
        ),
        (
            "flipped",
            "STP-3404",
            Box::new(|f| {
                let mut bytes = fs::read(at(f, &file)).expect("it is there");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(at(f, &file), bytes).expect("it can be written");
            }),
        ),
        (
            "swapped",
            "STP-3404",
            Box::new(|f| {
                let third = f.files().into_iter().rfind(|name| name.starts_with("data/")).expect("there are files");
                let (one, two) = (fs::read(at(f, "data/000001.csv")).unwrap(), fs::read(at(f, &third)).unwrap());
                fs::write(at(f, "data/000001.csv"), two).expect("it can be written");
                fs::write(at(f, &third), one).expect("it can be written");
            }),
        ),
        ("missing", "STP-3404", Box::new(|f| fs::remove_file(at(f, &other)).expect("it is there"))),
        ("zero", "STP-3404", Box::new(|f| fs::write(at(f, &file), "").expect("it can be written"))),
        (
            "schema",
            "STP-3404",
            Box::new(|f| {
                let mut bytes = fs::read(at(f, "schema.dump")).expect("it is there");
                bytes[200] ^= 1;
                fs::write(at(f, "schema.dump"), bytes).expect("it can be written");
            }),
        ),
        ("extra", "STP-3405", Box::new(|f| fs::write(at(f, "data/000999.csv"), "x").expect("it can be written"))),
        ("stranger", "STP-3405", Box::new(|f| fs::write(at(f, "notes.txt"), "x").expect("it can be written"))),
        (
            "symlink",
            "STP-3405",
            Box::new(|f| {
                fs::remove_file(at(f, &file)).expect("it is there");
                symlink("/etc/passwd", at(f, &file)).expect("it can be made");
            }),
        ),
        (
            "linked folder",
            "STP-3405",
            Box::new(|f| {
                fs::remove_dir_all(at(f, "data")).expect("it is there");
                symlink(whole.0.join("data"), at(f, "data")).expect("it can be made");
            }),
        ),
        (
            "pipe",
            "STP-3405",
            Box::new(|f| {
                fs::remove_file(at(f, &file)).expect("it is there");
                let made = std::process::Command::new("mkfifo").arg(at(f, &file)).status().expect("mkfifo runs");
                assert!(made.success());
            }),
        ),
        ("no manifest", "STP-3402", Box::new(|f| fs::remove_file(at(f, "manifest.json")).expect("it is there"))),
        (
            "half a manifest",
            "STP-3403",
            Box::new(|f| {
                let text = fs::read(at(f, "manifest.json")).expect("it is there");
                fs::write(at(f, "manifest.json"), &text[..text.len() / 2]).expect("it can be written");
            }),
        ),
        ("edited", "STP-3403", Box::new(|f| edited(f, "\"rows\": ", "\"rows\": 1"))),
        ("renamed", "STP-3403", Box::new(|f| edited(f, &file, "data/../../etc/passwd"))),
        ("other node", "STP-3403", Box::new(|f| edited(f, "\"node\": \"node_a\"", "\"node\": \"node_b\""))),
        ("more fields", "STP-3403", Box::new(|f| edited(f, "\"complete\": true", "\"complete\": true, \"more\": 1"))),
    ];
    for (what, code, touch) in &cases {
        let folder = whole.copied("hostile");
        touch(&folder);
        let refused = b.steepctl(&format!("snapshot verify {} --node node_b", folder.path())).fails_with(code);
        assert!(!refused.stderr.contains("root:"), "{what}: {refused}");
        if *code == "STP-3404" {
            assert!(refused.stderr.contains("expected") && refused.stderr.contains("found"), "{what}: {refused}");
        }
        let line = format!("snapshot apply node_b --source node_a --input {}", folder.path());
        b.steepctl(&line).fails_with_later(&b, code).await;
        for (node, before) in [&a, &b].iter().zip(&before) {
            let left = node.inventory().await.since(before);
            assert!(left.is_empty(), "{what}: {} has {left:?}", node.id());
        }
    }
    // Untouched but laid out anew it is as good as before.
    let folder = whole.copied("hostile");
    fs::write(at(&folder, "manifest.json"), manifest(&folder).to_string()).expect("it can be written");
    b.steepctl(&format!("snapshot apply node_b --input {}", folder.path())).succeeds();
    alike(&a, &b, &["orders", "wide"]).await;
}

#[tokio::test]
async fn a_snapshot_that_begins_nothing_any_more_is_refused_before_anything_is_written() {
    let [a, b] = Cluster::of(2).agent_toml("[cleanup]\nevery = \"2s\"").start().await;
    a.sql(&shop::orders(500)).await;
    a.sql("create table changing (id int primary key, t text); insert into changing values (1, 'x')").await;
    let before = b.inventory().await;
    let refused = async |folder: &Folder, code: &str, when: &str| {
        let line = format!("snapshot apply node_b --input {}", folder.path());
        b.steepctl(&line).fails_with_later(&b, code).await;
        let left = b.inventory().await.since(&before);
        assert!(left.is_empty(), "{when}: {left:?}");
    };
    // Its slot is dropped.
    let folder = Folder::new("dropped");
    let id = generated(&a, &folder, "").await;
    a.sql(&format!("select pg_drop_replication_slot('steep_{id}')")).await;
    refused(&folder, "STP-3407", "the slot is gone").await;
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    // Once is enough, and nobody is asked again.
    let again = b.steepctl(&format!("snapshot delete {id}")).succeeds();
    assert!(again.stdout.contains("is deleted already"), "{again}");
    // Somebody has read on from it.
    let folder = Folder::new("passed");
    let id = generated(&a, &folder, "").await;
    a.sql("insert into changing values (2, 'y')").await;
    a.sql(&format!("select pg_replication_slot_advance('steep_{id}', pg_current_wal_lsn())")).await;
    refused(&folder, "STP-3407", "the slot is past it").await;
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    // A table has changed.
    let folder = Folder::new("changed");
    let id = generated(&a, &folder, "").await;
    a.sql("alter table changing add column u text").await;
    refused(&folder, "STP-3409", "a table has changed").await;
    let kept = folder.copied("kept");
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    refused(&kept, "STP-3407", "it was deleted").await;
    // It has expired: the janitor takes it away, and tells of one that will soon.
    let soon = Folder::new("soon");
    let kept = generated(&a, &soon, "--expires 1h").await;
    let folder = Folder::new("expired");
    let id = generated(&a, &folder, "--expires 1s").await;
    until("the janitor takes it away", PATIENCE * 3, async || {
        let listed = a.steepctl("snapshot list --all -o json").succeeds().json();
        let status = listed["snapshots"].as_array().and_then(|all| all.iter().find(|it| it["snapshot_id"] == *id));
        let status = status.map(|it| it["status"].clone());
        if status == Some("deleted".into()) && !folder.0.exists() { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    // Its files go first.
    until("its slot goes, and both are told", PATIENCE, async || {
        let (slots, log) = (a.slots().await, a.log());
        let told = ["snapshot.expired\"", "snapshot.expires_soon\""].map(|event| log.contains(event));
        if slots == [format!("steep_{kept}")] && told == [true, true] {
            Ok(())
        } else {
            Err(format!("{slots:?} {told:?}"))
        }
    })
    .await;
}

/// The manifest of `whole` with `change` made to it, signed by whoever has the files `name` in `pki`, for `folder`.
fn signed_anew(whole: &Folder, folder: &Folder, pki: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let mut body = manifest(whole)["manifest"].clone();
    change(&mut body);
    let changed: Manifest = serde_json::from_value(body).expect("it is a manifest still");
    let text = changed.sign(&guest::identity(pki, name)).expect("the key signs");
    fs::write(folder.0.join("manifest.json"), text).expect("it can be written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_does_not_make_everything_believed() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(2_000)).await;
    let whole = Folder::new("signed");
    let id = generated(&a, &whole, "--compress gzip").await;
    let refused = |folder: &Folder, code: &str, words: &str| {
        let outcome = b.steepctl(&format!("snapshot verify {} --node node_b", folder.path())).fails_with(code);
        assert!(outcome.stderr.contains(words), "{words}: {outcome}");
    };
    let (pki, (file, _)) = (a.pki(), a_part(&whole, 100));
    // Signed by another node, by an operator, and by a node of another mesh under the same name.
    let folder = whole.copied("another");
    signed_anew(&whole, &folder, &pki, "node_b", |_| {});
    refused(&folder, "STP-3403", "node node_b");
    signed_anew(&whole, &folder, &pki, "operator-alice", |_| {});
    refused(&folder, "STP-3403", "has signed it");
    let other = Folder::new("other-mesh");
    for words in [vec!["init", "--mesh", "other"], vec!["issue", "node", "node_a"]] {
        let made = a.bare_steepctl().arg("pki").args(words).arg("--dir").arg(&other.0).output().expect("it runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    signed_anew(&whole, &folder, &other.0, "node_a", |body| body["mesh"] = "other".into());
    refused(&folder, "STP-3403", "");
    signed_anew(&whole, &folder, &pki, "node_a", |body| body["mesh"] = "other".into());
    refused(&folder, "STP-3403", "other");
    // The node's own key signs what no snapshot is.
    signed_anew(&whole, &folder, &pki, "node_a", |body| body["complete"] = false.into());
    refused(&folder, "STP-3402", "not complete");
    signed_anew(&whole, &folder, &pki, "node_a", |body| body["format_version"] = 2.into());
    refused(&folder, "STP-3403", "format 2");
    let named = [
        "../../etc/passwd",
        "/etc/passwd",
        "data/../manifest.json",
        "data/1.csv.gz",
        "data/000001.csv.gz\u{0}",
        "data/\u{661}00001.csv.gz",
    ];
    for name in named {
        signed_anew(&whole, &folder, &pki, "node_a", |body| {
            body["tables"][0]["parts"][0]["file"]["name"] = name.into();
        });
        refused(&folder, "STP-3405", "names a file");
    }
    // A small file that becomes endless is not expanded past what the manifest says.
    let folder = whole.copied("bomb");
    let made = std::process::Command::new("sh")
        .args(["-c", "head -c 300000000 /dev/zero | gzip -1 > \"$0\"; sha256sum < \"$0\""])
        .arg(folder.0.join(&file))
        .output()
        .expect("it can be made");
    let sha256 = String::from_utf8_lossy(&made.stdout)[..64].to_owned();
    let bytes = fs::metadata(folder.0.join(&file)).expect("it is there").len();
    signed_anew(&whole, &folder, &pki, "node_a", |body| {
        for table in body["tables"].as_array_mut().expect("tables") {
            for part in table["parts"].as_array_mut().expect("parts") {
                if part["file"]["name"] == file.as_str() {
                    part["file"]["sha256"] = sha256.clone().into();
                    part["file"]["bytes"] = bytes.into();
                }
            }
        }
    });
    refused(&folder, "STP-3404", "found more");
    // An older manifest beside newer files.
    a.sql("update customers set name = 'renamed ' || id").await;
    let newer = Folder::new("newer");
    generated(&a, &newer, "--compress gzip").await;
    fs::copy(whole.0.join("manifest.json"), newer.0.join("manifest.json")).expect("it can be copied");
    refused(&newer, "STP-3404", "expected");
    a.steepctl(&format!("snapshot verify {id}")).succeeds();
}

/// A file system of its own, of so many KiB.
pub(crate) struct Small(Folder);

impl Small {
    pub(crate) fn mounted(name: &str, kib: u32) -> Self {
        let folder = Folder::new(name);
        fs::create_dir_all(&folder.0).expect("it can be made");
        let size = format!("size={kib}k");
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder.0).status();
        assert!(mounted.is_ok_and(|status| status.success()), "this spec needs the right to mount");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0.0
    }

    /// Somebody has made room.
    pub(crate) fn grows_to(&self, kib: u32) {
        let size = format!("remount,size={kib}k");
        let grown = std::process::Command::new("mount").args(["-o", &size]).arg(self.path()).status();
        assert!(grown.is_ok_and(|status| status.success()), "what was mounted can be enlarged");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(&self.0.0).status());
    }
}

#[tokio::test]
async fn a_full_disk_ends_a_snapshot_and_nothing_of_it_stays() {
    let [a, _b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(ODD).await;
    let before = a.inventory().await;
    let small = Small::mounted("full", 2_000);
    let inside = small.0.0.join("snap");
    let line = format!("snapshot generate node_a --compress none --dir {}", inside.display());
    let failed = a.steepctl(&line).fails_with("STP-3410");
    assert!(failed.stderr.contains("data/0"), "it names the file: {failed}");
    a.inventory().await.is_as(&before);
    assert!(!inside.exists(), "{:?}", small.0.files());
    a.steepctl(&line.replace("none", "zstd:9")).succeeds();
    // A mounted file system itself cannot be taken away: it is emptied, and then nothing is left to be done.
    fs::remove_dir_all(&inside).expect("it can be removed");
    a.steepctl(&line.replace("/snap", "")).fails_with("STP-3410");
    assert_eq!(small.0.files(), Vec::<String>::new());
    assert_eq!(a.count("steep_repl.intents where state in ('planned', 'live')").await, 0);
}
