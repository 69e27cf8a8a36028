//! One agent: its configuration, its process, whether it is ready.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::server::{DATABASE, Server, USER};
use crate::process::{self, Signal};

/// An agent and its place on disk and network.
#[derive(Debug, Serialize, Deserialize)]
pub struct Agent {
    pub node_id: String,
    /// The steep-agent program.
    pub program: PathBuf,
    pub config: PathBuf,
    pub state_dir: PathBuf,
    /// Where its replication links have their sockets, unless in the state directory.
    #[serde(default)]
    pub socket_dir: Option<PathBuf>,
    /// Where it writes its log; a restart appends.
    pub log: PathBuf,
    /// Words before the program's own on its command line: how it comes into another network or time.
    #[serde(default)]
    pub launcher: Vec<String>,
    /// host:port for its peers and steepctl.
    pub address: String,
    /// host:port of /livez, /readyz and /healthz.
    pub http: String,
    /// Held when we are its parent, so that its end is noticed.
    #[serde(skip)]
    child: Mutex<Option<Child>>,
}

/// Whether an agent shall outlive the process that starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// In its own process group: it lives on when we and our terminal are gone.
    OfItsOwn,
    /// Ends with a signal to our process group.
    WithUs,
}

impl Agent {
    /// An agent of `node_id` that keeps everything in `home`. Makes nothing.
    pub fn new(node_id: &str, program: &Path, home: &Path, port: u16, http_port: u16) -> Self {
        Self {
            node_id: node_id.to_owned(),
            program: program.to_owned(),
            config: home.join("agent.toml"),
            state_dir: home.join("state"),
            socket_dir: None,
            log: home.join("agent.log"),
            launcher: Vec::new(),
            address: format!("127.0.0.1:{port}"),
            http: format!("127.0.0.1:{http_port}"),
            child: Mutex::new(None),
        }
    }

    /// Writes agent.toml: this node, its certificates in `pki`, its server, the `seeds` it joins by, and more lines: for
    /// `[mesh]`, and for the end.
    pub fn configure(&self, pki: &Path, server: &Server, seeds: &[&str], more: [&str; 2]) -> Result<()> {
        let [in_mesh, extra] = more;
        let Self { node_id, address, http, .. } = self;
        let state_dir = text(&self.state_dir);
        let [cert, key, ca] =
            [format!("{node_id}.pem"), format!("{node_id}.key"), "ca.pem".into()].map(|name| text(&pki.join(name)));
        let (host, bin_dir) = (text(&server.socket), text(&server.bin_dir));
        let (port, conninfo) = (server.port, quoted(&server.conninfo()));
        let socket_dir =
            self.socket_dir.as_ref().map(|dir| format!("socket_dir = {}\n", text(dir))).unwrap_or_default();
        let toml = format!(
            "[node]\nid = {node_id:?}\nstate_dir = {state_dir}\n\n\
             [mesh]\nlisten = {address:?}\nseeds = {seeds:?}\n{in_mesh}\n\
             [pki]\ncert = {cert}\nkey = {key}\nca = {ca}\n\n\
             [postgres]\nhost = {host}\nport = {port}\ndbname = {DATABASE:?}\nuser = {USER:?}\nbin_dir = {bin_dir}\n\n\
             [replication]\nconninfo = {conninfo}\n{socket_dir}\n\
             [http]\nlisten = {http:?}\n{extra}\n"
        );
        fs::create_dir_all(&self.state_dir)?;
        fs::write(&self.config, toml).with_context(|| format!("cannot write {}", self.config.display()))
    }

    /// Starts the process; [`Agent::becomes_ready`] says when it serves.
    pub fn start(&self, life: Life) -> Result<()> {
        self.start_with(life, &[])
    }

    /// As [`Agent::start`], with more variables in its environment.
    pub fn start_with(&self, life: Life, environment: &[(&str, &str)]) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("the agent of {} runs already (pid {pid})", self.node_id);
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command(&self.program.to_string_lossy());
        command.args(["run", "--config"]).arg(&self.config).current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).envs(environment.iter().copied());
        if life == Life::OfItsOwn {
            process::detach(&mut command);
        }
        let child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
        fs::write(self.pid_file(), child.id().to_string())?;
        *self.child.lock().expect("nobody panics while holding it") = Some(child);
        Ok(())
    }

    /// Waits until the agent says that it is ready.
    pub fn becomes_ready(&self, within: Duration) -> Result<()> {
        let mut last = String::from("nothing");
        let ready = process::wait_for("it is not ready", within, || {
            if self.pid().is_none() {
                bail!("it ended");
            }
            match self.get("/readyz") {
                Ok((200, _)) => Ok(Some(())),
                Ok((status, body)) => {
                    last = format!("{status} {}", body.trim());
                    Ok(None)
                }
                Err(error) => {
                    last = error.to_string();
                    Ok(None)
                }
            }
        });
        ready.with_context(|| {
            let log = process::tail(&self.log, 15);
            format!("the agent of {}: /readyz said last: {last}; its log ends:\n{log}", self.node_id)
        })
    }

    /// Waits until the agent hears from `others` other nodes.
    pub fn hears_of(&self, others: usize, within: Duration) -> Result<()> {
        let mut last = String::from("nothing");
        let heard = process::wait_for("the mesh is not complete", within, || {
            let Ok((_, body)) = self.get("/healthz") else { return Ok(None) };
            let known = serde_json::from_str::<serde_json::Value>(&body).unwrap_or_default();
            let heard = known["peers"].as_array().into_iter().flatten().filter(|peer| peer["health"] != "unknown");
            let is_complete = heard.count() >= others;
            last = body;
            Ok(is_complete.then_some(()))
        });
        heard.with_context(|| format!("the agent of {} knows of: {last}", self.node_id))
    }

    /// A program where the agent is: on its host, in its time.
    fn command(&self, program: &str) -> Command {
        let mut words = self.launcher.iter().map(String::as_str).chain([program]);
        let mut command = Command::new(words.next().expect("the program is one"));
        command.args(words);
        command
    }

    /// Status and body of one of its HTTP pages.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let address: SocketAddr = self.http.parse().context("the agent's HTTP address")?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        let mut answer = String::new();
        if self.launcher.is_empty() {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_string(&mut answer)?;
        } else {
            // The page is on a loopback address, which may be another host's.
            let script = r#"exec 3<>"/dev/tcp/$0/$1" && printf %s "$2" >&3 && cat <&3"#;
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let mut bash = self.command("timeout");
            answer = process::output(bash.args(["5", "bash", "-c", script, &ip, &port, &request]))?;
        }
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no HTTP answer")?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        Ok((status, body))
    }

    /// The agent's process, if it is alive and really ours.
    pub fn pid(&self) -> Option<u32> {
        if let Some(child) = self.child.lock().expect("nobody panics while holding it").as_mut() {
            // Takes its exit status, so that no zombie stays. A killed process has no command line any more while
            // its threads still end and hold its ports.
            if let Ok(None) = child.try_wait() {
                return Some(child.id());
            }
        }
        let pid = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        process::command_line(pid)?.contains(&*self.config.to_string_lossy()).then_some(pid)
    }

    fn pid_file(&self) -> PathBuf {
        self.config.with_file_name("agent.pid")
    }

    /// Sends `signal` to the agent; fails when it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("the agent of {} does not run", self.node_id))?;
        process::signal(pid, signal);
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::Kill)?;
        self.is_gone(Duration::from_secs(10))
    }

    /// SIGTERM, and waits for it to drain.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::Terminate)?;
        self.is_gone(Duration::from_secs(60))
    }

    fn is_gone(&self, within: Duration) -> Result<()> {
        let what = format!("the end of the agent of {}", self.node_id);
        process::wait_for(&what, within, || Ok(self.pid().is_none().then_some(())))
    }

    /// Makes sure that it does not run any more: asks first, then insists. Its keepers end too, which outlive agents.
    pub fn end(&self, patience: Duration) {
        if self.signal(Signal::Terminate).is_ok() && self.is_gone(patience).is_err() {
            let _ = self.kill();
        }
        for pid in self.keepers() {
            process::signal(pid, Signal::Kill);
        }
    }

    /// The processes that keep snapshots for it.
    pub fn keepers(&self) -> Vec<u32> {
        let files = fs::read_dir(self.state_dir.join("keepers")).into_iter().flatten().flatten();
        let files = files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "pid"));
        let pids = files.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
        let is_one = |line: String| line.contains(" keep ") && line.contains(&*self.config.to_string_lossy());
        pids.filter(|pid| process::command_line(*pid).is_some_and(is_one)).collect()
    }
}

/// A path as a TOML string.
fn text(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A TOML basic string; JSON's escapes are a part of TOML's.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}
