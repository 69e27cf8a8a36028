//! A wall clock of its own for an agent, which goes wrong when a spec says so.

use std::{
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use xtask::cluster::Host;

/// What is preloaded into the agent; made with the C compiler that Steep itself needs.
const SOURCE: &str = include_str!("clock.c");

/// A clock that can be moved while an agent reads it.
#[derive(Debug)]
pub struct Clock {
    dir: PathBuf,
    ahead: File,
}

impl Clock {
    /// It goes right.
    pub fn right() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("steep-clock-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder can be made");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o"]).arg(dir.join("clock.so"));
        let mut compiler = compile.stdin(Stdio::piped()).spawn().expect("there is a C compiler");
        let mut source = compiler.stdin.take().expect("it reads what we write");
        source.write_all(SOURCE.as_bytes()).expect("it reads");
        drop(source);
        assert!(compiler.wait().expect("it ends").success(), "the clock does not compile");
        let ahead = File::create_new(dir.join("ahead")).expect("a file can be made");
        let clock = Self { dir, ahead };
        clock.is_ahead(0);
        clock
    }

    /// From now on it is `seconds` ahead of all others; behind them, if negative.
    pub fn is_ahead(&self, seconds: i64) {
        self.ahead.write_all_at(&seconds.to_ne_bytes(), 0).expect("a file can be written");
    }

    /// A place on this machine where it is the time; for [`crate::Cluster::on`].
    pub fn host(&self) -> Host {
        let preload = format!("LD_PRELOAD={}", self.dir.join("clock.so").display());
        let ahead = format!("STEEP_SPEC_CLOCK={}", self.dir.join("ahead").display());
        Host { launcher: vec!["env".into(), preload, ahead], ip: Ipv4Addr::LOCALHOST.into() }
    }
}

/// A place on this machine with the machine's own time.
pub fn right_here() -> Host {
    Host { launcher: Vec::new(), ip: Ipv4Addr::LOCALHOST.into() }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // Agents that have it loaded keep it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}
