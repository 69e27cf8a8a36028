//! Hosts of their own for agents: network namespaces on one bridge, whose connections can be cut in each direction.
//!
//! Only root can make them. Servers stay where they are: an agent reaches its own through a unix socket.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use xtask::{cluster::Host, process};

/// Nobody's hardware address: what is sent to it is lost.
const NOBODY: &str = "02:00:00:00:00:99";
const PREFIX: &str = "steep-";

/// Hosts that reach each other and are reached from here; taken away with this value, which has to outlive their agents.
#[derive(Debug)]
pub struct Hosts {
    /// The third number of their addresses, 10.231.N.1 and on; of the bridge's name too.
    network: u8,
    count: u8,
}

impl Hosts {
    /// Makes `count` hosts; none where this user cannot make any.
    pub fn new(count: u8) -> Option<Self> {
        if !is_root() {
            eprintln!("network namespaces are root's: there are none");
            return None;
        }
        sweep();
        // The first number nobody else has taken: the bridge comes first.
        let network = (1..=250).find(|network| try_ip(&["link", "add", &bridge(*network), "type", "bridge"]))?;
        let hosts = Self { network, count };
        ip(&["addr", "add", &format!("{}/24", hosts.address(254)), "dev", &bridge(network)]);
        ip(&["link", "set", &bridge(network), "up"]);
        for host in 1..=count {
            let (name, here) = (hosts.name(host), format!("{}-{host}", bridge(network)));
            ip(&["netns", "add", &name]);
            ip(&["link", "add", &here, "type", "veth", "peer", "name", "eth0", "netns", &name]);
            ip(&["link", "set", &here, "master", &bridge(network), "up"]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&["-n", &name, "addr", "add", &format!("{}/24", hosts.address(host)), "dev", "eth0"]);
            ip(&["-n", &name, "link", "set", "eth0", "up"]);
        }
        Some(hosts)
    }

    /// For [`crate::Cluster::on`].
    pub fn list(&self) -> Vec<Host> {
        let launcher = |host| ["ip", "netns", "exec", &self.name(host)].map(str::to_owned).to_vec();
        (1..=self.count).map(|host| Host { launcher: launcher(host), ip: self.address(host) }).collect()
    }

    fn address(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(10, 231, self.network, host).into()
    }

    fn name(&self, host: u8) -> String {
        format!("{PREFIX}{}-{}-{host}", std::process::id(), self.network)
    }

    /// Nothing that host `from` sends reaches host `to`; they count from 0, as nodes do.
    pub fn cut_from(&self, from: u8, to: u8) {
        let (name, to) = (self.name(from + 1), self.address(to + 1).to_string());
        ip(&["-n", &name, "neigh", "replace", &to, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0"]);
    }

    /// Nothing passes between the first two hosts, in either direction.
    pub fn cut(&self) {
        self.cut_from(0, 1);
        self.cut_from(1, 0);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        for from in 1..=self.count {
            for to in (1..=self.count).filter(|to| *to != from) {
                // Where nothing was cut the kernel's own entry goes, and comes back by itself.
                try_ip(&["-n", &self.name(from), "neigh", "del", &self.address(to).to_string(), "dev", "eth0"]);
            }
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in 1..=self.count {
            try_ip(&["netns", "del", &self.name(host)]);
        }
        try_ip(&["link", "del", &bridge(self.network)]);
    }
}

fn bridge(network: u8) -> String {
    format!("{PREFIX}{network}")
}

/// Takes away hosts whose spec was killed before it could.
fn sweep() {
    let Ok(listed) = process::output(Command::new("ip").args(["netns", "list"])) else { return };
    for name in listed.lines().filter_map(|line| line.split(' ').next()) {
        let mut parts = name.strip_prefix(PREFIX).into_iter().flat_map(|rest| rest.split('-'));
        let (Some(Ok(pid)), Some(Ok(network))) = (parts.next().map(str::parse), parts.next().map(str::parse)) else {
            continue;
        };
        if process::command_line(pid).is_none() {
            try_ip(&["netns", "del", name]);
            try_ip(&["link", "del", &bridge(network)]);
        }
    }
}

fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn ip(words: &[&str]) {
    process::output(Command::new("ip").args(words)).unwrap_or_else(|error| panic!("{error:#}"));
}

fn try_ip(words: &[&str]) -> bool {
    process::output(Command::new("ip").args(words)).is_ok()
}
