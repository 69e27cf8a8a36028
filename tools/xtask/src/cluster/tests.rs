//! Clusters without agents: servers, places, and that nothing stays behind.

use super::*;

/// Servers only: the programs of ours are not needed.
fn options(dir: &Path, versions: &[u32]) -> Options {
    let none = Binaries { agent: PathBuf::new(), steepctl: PathBuf::new() };
    let mut options = Options::new(dir, versions.len(), versions, none);
    options.agents = false;
    options
}

/// A folder of this test's own, with a name as long as `letters` says.
fn folder(name: &str, letters: usize) -> PathBuf {
    let own = format!("steep-xtask-{}-{name}{}", std::process::id(), "x".repeat(letters));
    std::env::temp_dir().join(own)
}

#[test]
fn servers_come_up_with_identifiers_of_their_own_and_leave_nothing() {
    let dir = folder("pair", 0);
    let cluster = Cluster::up(&options(&dir, &[18, 18])).expect("two servers come up");
    let identifier = "select system_identifier from pg_control_system()";
    let [a, b] = [0, 1].map(|index| cluster.nodes[index].server.sql(identifier).expect("it answers"));
    assert_ne!(a, b, "two nodes with one identifier would look like one database");
    let server = &cluster.nodes[1].server;
    assert_eq!(server.sql("show wal_level; select 1").expect("it answers"), "logical\n1");
    assert!(server.sql("select nonsense").is_err());
    server.stop(server::Stop::Fast).expect("it stops");
    assert!(!server.is_running());
    server.start().expect("it starts again");

    let opened = Cluster::open(&dir).expect("it is written down");
    assert_eq!(opened.description()["nodes"][1]["node_id"], "node_b");
    assert!(Cluster::up(&options(&dir, &[18])).is_err(), "a second cluster may not take the same folder");
    assert!(server.is_running(), "the refused second cluster ended the first");
    down(&dir).expect("it goes down");
    assert!(!server.is_running() && !dir.exists());
}

#[test]
fn a_folder_too_long_for_a_socket_gets_a_short_one_beside_it() {
    let dir = folder("long", 100);
    let cluster = Cluster::up(&options(&dir, &[18])).expect("it comes up all the same");
    let socket = cluster.nodes[0].server.socket.clone();
    assert!(!socket.starts_with(&dir) && cluster.nodes[0].server.data.starts_with(&dir));
    assert_eq!(cluster.nodes[0].server.sql("select 1").expect("it answers"), "1");
    cluster.take_down();
    assert!(!dir.exists() && !socket.exists());
}

#[cfg(unix)]
#[test]
fn a_folder_closed_to_the_servers_account_keeps_only_the_rest() {
    use std::os::unix::fs::PermissionsExt;
    let closed = folder("closed", 0);
    fs::create_dir(&closed).expect("a new folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let cluster = Cluster::up(&options(&closed.join("cluster"), &[18])).expect("it comes up all the same");
    assert_eq!(cluster.nodes[0].server.sql("select 1").expect("it answers"), "1");
    cluster.take_down();
    fs::remove_dir(&closed).expect("it is empty again");
}

#[test]
fn what_came_up_half_is_taken_down() {
    let dir = folder("half", 0);
    let broken = options(&dir, &[18]).set("no_such_setting", "1");
    let error = format!("{:#}", Cluster::up(&broken).expect_err("PostgreSQL refuses the setting"));
    assert!(error.contains("no_such_setting"), "the log says why: {error}");
    assert!(!dir.exists());
}

#[test]
fn files_of_others_stay() {
    let dir = folder("shared", 0);
    fs::create_dir(&dir).expect("a new folder");
    fs::write(dir.join("mine.txt"), "keep me").expect("it can be written");
    Cluster::up(&options(&dir, &[18])).expect("it comes up beside a stranger").take_down();
    assert_eq!(fs::read_dir(&dir).expect("it stays").count(), 1);
    fs::remove_dir_all(&dir).expect("it is ours");
}
