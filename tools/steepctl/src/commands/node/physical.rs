//! What comes after `steepctl node prepare --for pg_basebackup` or `--for storage-snapshot`: commands to be run as they are.

use std::path::{Component, Path, PathBuf};

use steep_protocol::v1;

use crate::output::{safe, shell_word};

/// Stands for the copy's data directory.
const PLACEHOLDER: &str = "DATADIR";

/// `path` without detours, as it is written; where links lead is not known here.
fn straight(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut so_far, part| {
        match part {
            Component::ParentDir => drop(so_far.pop()),
            Component::CurDir => {}
            part => so_far.push(part),
        }
        so_far
    })
}

/// From the copy of the source's files to a node that replicates. `into`: where the copy is to have its data.
pub(super) fn next(prepared: &v1::Preparation, into: Option<&Path>) -> String {
    let (node, id) = (safe(&prepared.node_id), safe(&prepared.prepare_id));
    let name = match prepared.target.as_str() {
        "" => "TARGET".to_owned(),
        name => safe(name),
    };
    let own = Path::new(&prepared.data_directory);
    // What is printed may be run on any host: never anything that would change the source's own directory.
    let into = into.filter(|into| own.as_os_str().is_empty() || !straight(into).starts_with(straight(own)));
    let data = into.map_or_else(|| PLACEHOLDER.to_owned(), |into| shell_word(&safe(&into.display().to_string())));
    let from_here = shell_word(&safe(&prepared.conninfo));
    let there = format!("on the host of {name}, whose PostgreSQL and agent are stopped");
    let mut steps = match prepared.purpose.as_str() {
        "pg_basebackup" => vec![(
            format!("{there}, copy {node} (host= must lead there):"),
            vec![format!("pg_basebackup -d {from_here} -D {data} -X stream --checkpoint=fast")],
        )],
        _ => vec![
            (
                format!(
                    "while {node} runs, snapshot its storage: data ({}), pg_wal and tablespaces, all at one moment",
                    safe(&prepared.data_directory)
                ),
                Vec::new(),
            ),
            (format!("{there}, make that {data}; then:"), vec![format!("rm -f {data}/postmaster.pid")]),
        ],
    };
    steps.extend([
        (
            format!("addresses, port and archive_command in {data}/postgresql.conf came from {node}: set its own"),
            Vec::new(),
        ),
        (
            format!("start it once: its recovery ends at one point, and no subscription that came from {node} runs:"),
            vec![format!("touch {data}/recovery.signal"), first_start(&data)],
        ),
        (
            format!("let {name} take the copy over:"),
            vec![format!("steep-agent adopt-copy --prepare-id {id}"), format!("pg_ctl -D {data} -w stop")],
        ),
        (
            format!("start it and its agent as always; before anybody writes on {name}, make it replicate:"),
            vec![format!("steepctl node complete {name} --source {node} --prepare-id {id}")],
        ),
    ]);
    let mut lines = vec!["Next".to_owned()];
    if into.is_none() {
        let mut told = format!(
            "  {PLACEHOLDER} stands for where {name}'s copy is to have its data: --into DIR puts it in its place"
        );
        if !own.as_os_str().is_empty() {
            told.push_str(&format!(
                "; on the host of {node} never {}, which is its own",
                safe(&prepared.data_directory)
            ));
        }
        lines.push(told);
    }
    for (number, (text, commands)) in steps.iter().enumerate() {
        lines.push(format!("  {}. {text}", number + 1));
        lines.extend(commands.iter().map(|command| format!("     {command}")));
    }
    lines.join("\n")
}

/// Started so that recovery ends where the copied WAL does, on a timeline of its own.
fn first_start(data: &str) -> String {
    let settings = "-c max_logical_replication_workers=0 -c restore_command=false -c recovery_target_timeline=current \
                    -c archive_mode=off";
    format!("pg_ctl -D {data} -w -l {data}/first_start.log -o '{settings}' start")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_physical_copy_is_started_without_workers_and_ends_its_recovery() {
        let prepared = v1::Preparation {
            prepare_id: "0192f3ac7d21".into(),
            node_id: "node_a".into(),
            target: "node_b".into(),
            purpose: "pg_basebackup".into(),
            conninfo: "host=/run port=5432 user=steep_agent dbname=shop".into(),
            data_directory: "/srv/pg".into(),
            ..v1::Preparation::default()
        };
        let told = next(&prepared, Some(Path::new("/srv/b")));
        for line in [
            "pg_basebackup -d 'host=/run port=5432 user=steep_agent dbname=shop' -D /srv/b -X stream --checkpoint=fast",
            "touch /srv/b/recovery.signal",
            "-c max_logical_replication_workers=0 -c restore_command=false -c recovery_target_timeline=current \
             -c archive_mode=off' start",
            "steep-agent adopt-copy --prepare-id 0192f3ac7d21",
            "steepctl node complete node_b --source node_a --prepare-id 0192f3ac7d21",
        ] {
            assert!(told.contains(line), "{line} is not in:\n{told}");
        }
        let snapshot = v1::Preparation { purpose: "storage-snapshot".into(), ..prepared };
        let told = next(&snapshot, Some(Path::new("/srv/b")));
        assert!(told.contains("rm -f /srv/b/postmaster.pid") && !told.contains("pg_basebackup"), "{told}");
        // The source's own directory is in no command, whoever names it, and however.
        for into in [None, Some("/srv/pg"), Some("/srv/./pg/"), Some("/srv/b/../pg"), Some("/srv/pg/sub")] {
            for purpose in ["pg_basebackup", "storage-snapshot"] {
                let prepared = v1::Preparation { purpose: purpose.into(), ..snapshot.clone() };
                let told = next(&prepared, into.map(Path::new));
                let mut commands = told.lines().filter_map(|line| line.strip_prefix("     "));
                assert!(!commands.any(|command| command.contains("pg/") || command.contains("/srv/pg")), "{told}");
                assert!(told.contains("touch DATADIR/recovery.signal") && told.contains("--into DIR"), "{told}");
            }
        }
        assert!(next(&snapshot, Some(Path::new("/srv/pg-2"))).contains("touch /srv/pg-2/recovery.signal"));
    }
}
