//! What an operator sees while Steep copies: how old the progress is, how fast `status` answers, what it takes.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};

use super::{arena::Arena, contender::succeeded};
use crate::{
    cluster::{Node, OPERATORS},
    process,
};

/// Calls of `steepctl status` before a copy begins.
const IDLE_CALLS: usize = 40;

/// What was seen during one copy.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched {
    /// Of the source's and the target's agent, in bytes.
    pub(super) peak_memory: [u64; 2],
    /// The oldest that the newest thing known of the operation ever was.
    pub(super) oldest_progress: Duration,
    /// Processor time of both agents, from the command to the end.
    pub(super) cpu: [Duration; 2],
    /// How long `steepctl status` took before the copy, sorted.
    pub(super) idle_status: Vec<Duration>,
    /// How long `steepctl status` took during the copy, sorted.
    pub(super) busy_status: Vec<Duration>,
}

/// Runs `start`, which follows the operation to its end, and returns how long that took and what was seen.
pub(super) fn run(arena: &Arena, mut start: Command) -> Result<(Duration, Watched)> {
    start.args(["-o", "json", "--no-input"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = AtomicBool::new(false);
    let mut watched = Watched { idle_status: ask_often(arena)?, ..Watched::default() };
    let before = cpu_times(arena)?;
    let taken = std::thread::scope(|scope| {
        let asker = scope.spawn(|| ask_status(arena, &done));
        let followed = follow(&mut start, &mut watched.oldest_progress);
        done.store(true, Ordering::Relaxed);
        watched.busy_status = asker.join().expect("asking does not panic")?;
        followed
    });
    let taken = taken.map_err(|error| explained(arena, error))?;
    watched.busy_status.sort_unstable();
    for (cpu, (after, before)) in watched.cpu.iter_mut().zip(cpu_times(arena)?.into_iter().zip(before)) {
        *cpu = after.saturating_sub(before);
    }
    for (peak, node) in watched.peak_memory.iter_mut().zip(arena.nodes()) {
        *peak = process::peak_memory(pid(node)?).unwrap_or(0);
    }
    Ok((taken, watched))
}

fn pid(node: &Node) -> Result<u32> {
    node.agent.pid().with_context(|| format!("the agent of {} ended", node.node_id))
}

fn cpu_times(arena: &Arena) -> Result<[Duration; 2]> {
    let [a, b] = arena.nodes();
    let of = |node| Ok::<_, anyhow::Error>(process::cpu_time(pid(node)?).unwrap_or_default());
    Ok([of(a)?, of(b)?])
}

fn follow(start: &mut Command, oldest: &mut Duration) -> Result<Duration> {
    let started = Instant::now();
    let mut child = start.spawn().context("cannot run steepctl")?;
    let _foreground = process::Foreground::enter(child.id());
    let mut stderr = child.stderr.take().expect("it was piped");
    let stdout = BufReader::new(child.stdout.take().expect("it was piped"));
    let printed = Mutex::new(String::new());
    std::thread::scope(|scope| {
        scope.spawn(|| stderr.read_to_string(&mut printed.lock().expect("only we write to it")));
        let mut newest: Option<SystemTime> = None;
        for line in stdout.lines().map_while(Result::ok) {
            // What is new now was the oldest just before; lines that are no events say nothing about age.
            if let Some(at) = time_of(&line) {
                let age = newest.and_then(|newest| SystemTime::now().duration_since(newest).ok());
                *oldest = (*oldest).max(age.unwrap_or_default());
                newest = Some(at);
            }
        }
    });
    let status = child.wait().context("cannot wait for steepctl")?;
    let taken = started.elapsed();
    succeeded(start, status, &printed.into_inner().expect("nobody panicked"))?;
    Ok(taken)
}

/// The `at` of an operation's event.
fn time_of(line: &str) -> Option<SystemTime> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    moment(event["at"].as_str()?)
}

/// RFC 3339 in UTC, `2026-11-22T03:54:23.214Z`.
fn moment(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>());
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<f64>());
    let (hours, minutes, seconds) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    // Days since 1970 with years that begin in March, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    let seconds = days as f64 * 86_400.0 + hours * 3_600.0 + minutes * 60.0 + seconds;
    Some(SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(seconds).ok()?)
}

/// Asks agents that do nothing else for the status, and returns how long each answer took, sorted.
fn ask_often(arena: &Arena) -> Result<Vec<Duration>> {
    let mut taken = (0..IDLE_CALLS).map(|_| ask_once(arena)).collect::<Result<Vec<_>>>()?;
    taken.sort_unstable();
    Ok(taken)
}

fn ask_once(arena: &Arena) -> Result<Duration> {
    let started = Instant::now();
    process::output(arena.cluster.steepctl(arena.nodes()[0], OPERATORS[2].0).arg("status"))?;
    Ok(started.elapsed())
}

/// Asks for the status once a second until `done`, and returns how long each answer took.
fn ask_status(arena: &Arena, done: &AtomicBool) -> Result<Vec<Duration>> {
    let mut taken = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let started = Instant::now();
        taken.push(ask_once(arena)?);
        std::thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
    }
    if taken.is_empty() {
        bail!("the copy was over before steepctl status could be asked");
    }
    Ok(taken)
}

/// The error with what the agents said last.
fn explained(arena: &Arena, error: anyhow::Error) -> anyhow::Error {
    let logs = arena.nodes().map(|node| format!("{}:\n{}", node.node_id, process::tail(&node.agent.log, 10)));
    error.context(format!("Steep's copy failed; the agents' logs end:\n{}", logs.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2000-02-29T12:00:00.5Z", 951_825_600.5),
            ("2026-11-22T03:54:23.214Z", 1_795_319_663.214),
        ] {
            let since = moment(text).expect("a moment").duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            assert!((since.as_secs_f64() - seconds).abs() < 1e-3, "{text}: {since:?}");
        }
        assert_eq!(moment("yesterday"), None);
    }
}
