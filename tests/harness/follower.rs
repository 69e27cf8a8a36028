//! A steepctl that goes on printing while the spec does other things.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use serde_json::Value;
use xtask::process::{self, Signal};

use crate::{
    steepctl::Steepctl,
    wait::{PATIENCE, until},
};

/// A command that runs, and what it has printed so far. Ended with this value.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Steepctl {
    /// Starts it, and lets it run.
    pub fn follows(self) -> Follower {
        let mut command = self.command();
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.expect("steepctl can be run");
        let (stdout, first) = read(child.stdout.take().expect("it was piped"));
        let (stderr, second) = read(child.stderr.take().expect("it was piped"));
        Follower { child, stdout, stderr, readers: vec![first, second] }
    }
}

fn read(from: impl Read + Send + 'static) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            kept.lock().expect("nobody panics while holding it").push(line);
        }
    });
    (lines, reader)
}

impl Follower {
    /// What it has printed so far, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.stdout.lock().expect("nobody panics while holding it").clone()
    }

    /// The same, of a command that prints JSON lines.
    pub fn json(&self) -> Vec<Value> {
        let value = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.lines().iter().map(value).collect()
    }

    /// What it has said on standard error so far.
    pub fn talk(&self) -> String {
        self.stderr.lock().expect("nobody panics while holding it").join("\n")
    }

    /// Waits until a line it printed satisfies `wanted`.
    pub async fn prints(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        until(what, PATIENCE * 2, async || {
            let lines = self.lines();
            if lines.iter().any(|line| wanted(line)) { Ok(()) } else { Err(format!("{lines:#?}\n{}", self.talk())) }
        })
        .await;
    }

    /// Waits until it has said `words` on standard error.
    pub async fn says(&self, words: &str) {
        until(&format!("it says {words:?}"), PATIENCE, async || {
            let talk = self.talk();
            if talk.contains(words) { Ok(()) } else { Err(talk) }
        })
        .await;
    }

    /// Waits for its end, and returns its exit status.
    pub async fn ends(&mut self) -> i32 {
        let status = until("the command ends", PATIENCE * 2, async || {
            let status = self.child.try_wait().expect("it can be waited for");
            status.ok_or_else(|| format!("it runs: {:?}", self.lines().last()))
        })
        .await;
        self.readers.drain(..).for_each(|reader| reader.join().expect("reading does not panic"));
        status.code().unwrap_or(-1)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::signal(self.child.id(), Signal::Kill);
        }
        let _ = self.child.wait();
        // Their pipes have ended with the process.
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}
