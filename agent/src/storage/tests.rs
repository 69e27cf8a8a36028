//! Names and paths of a snapshot's directory.

use super::*;

#[test]
fn only_ordinal_names_are_names_of_parts() {
    for name in ["data/000001.csv", "data/000001.csv.gz", "data/123456789.csv.zst", "data/000002.csv.lz4"] {
        assert!(is_part_name(name), "{name}");
    }
    for name in [
        "data/../../etc/passwd",
        "/etc/passwd",
        "data/1.csv",
        "data/00000a.csv",
        "data/000001.csv/../x",
        "data/000001.csv\0",
        "data/000001.CSV",
        "data//000001.csv",
        "data/000001",
        "data/000001.csv.tmp",
        "000001.csv",
        "data\u{2024}/000001.csv",
        "data/\u{0661}00001.csv",
        "manifest.json",
        "",
    ] {
        assert!(!is_part_name(name), "{name:?}");
    }
    assert!(is_part_name(&part_name(1, ".csv")) && is_part_name(&part_name(12_345_678, ".csv.zst")));
}

#[test]
fn a_path_that_leads_elsewhere_is_no_directory_of_a_snapshot() {
    for path in ["snap", "./snap", "/srv/../etc", "/srv/snap/..", "/", "", "/srv/a\0b"] {
        assert!(Directory::named(path).is_err(), "{path:?}");
    }
    assert!(Directory::named("/srv/steep/snap").is_ok());
}

#[test]
fn a_directory_is_inside_a_servers_whichever_link_leads_there() {
    let root = std::env::temp_dir().join(format!("steep-outside-{}", std::process::id()));
    drop(fs::remove_dir_all(&root));
    let at = |name: &str| root.join(name);
    for folder in ["server", "server/base", "elsewhere", "server-2"] {
        fs::create_dir_all(at(folder)).expect("it can be made");
    }
    #[cfg(unix)]
    for (from, to) in [("server/base", "elsewhere/link"), ("elsewhere", "server/wal"), ("server", "main")] {
        std::os::unix::fs::symlink(at(from), at(to)).expect("it can be made");
    }
    let is_outside = |path: &str, server: &str| {
        let directory = Directory::named(&at(path).to_string_lossy()).expect("it is absolute");
        directory.check_outside(&[at("absent"), at(server)]).is_ok()
    };
    let mut inside = vec![("server", "server"), ("server/snap", "server"), ("server/base/snap", "server")];
    #[cfg(unix)]
    inside.extend([("elsewhere/link", "server"), ("elsewhere/link/snap", "server"), ("server/snap", "main")]);
    for (path, server) in inside {
        assert!(!is_outside(path, server), "{path} in {server}");
    }
    for path in ["server-2", "server-2/snap", "elsewhere/snap", "no/such/snap"] {
        assert!(is_outside(path, "server"), "{path}");
    }
    #[cfg(unix)]
    assert!(is_outside("server/wal/snap", "server") && !is_outside("server/wal/snap", "server/wal"));
    drop(fs::remove_dir_all(&root));
}
