//! A snapshot in files is written whole, or there is none; and what specs of snapshots share.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use steep_tests::{Cluster, Node, PATIENCE, Stop, shop, until};

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
    pub(crate) fn copied(&self, name: &str) -> Self {
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
    std::os::unix::fs::symlink(&server, &link.0).expect("it can be made");
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
