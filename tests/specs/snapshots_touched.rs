//! Of a snapshot in files that is not what its node wrote, or begins nothing any more, nothing is loaded.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::Value;
use steep_agent::snapshot::files::manifest::Manifest;
use steep_tests::{Cluster, PATIENCE, guest, shop, until};

use crate::snapshots::{Folder, Later as _, ODD, a_part, alike, generated, manifest};

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
    signed_anew(&whole, &folder, &pki, "node_a", |body| body["format_version"] = 1.into());
    refused(&folder, "STP-3403", "format 1");
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
