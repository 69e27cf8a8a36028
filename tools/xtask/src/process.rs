//! Other programs: run, watched, signalled and ended.
//!
//! A failure always says which program it was, with which arguments and what it printed. Signals go through
//! the shell's own `kill`, which every Unix has; nothing here needs unsafe code.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Runs to the end and returns what was printed on standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = finished(command.stdin(Stdio::null()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end; a failure carries the last lines of what was printed.
fn finished(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {}", described(command)))?;
    if !output.status.success() {
        bail!("{} failed ({}){}", described(command), output.status, printed(&output));
    }
    Ok(output)
}

/// Runs on our own terminal, for programs a person watches. Returns whether it succeeded.
pub fn on_our_terminal(command: &mut Command) -> Result<bool> {
    let child = command.spawn().with_context(|| format!("cannot run {}", described(command)))?;
    let _foreground = Foreground::enter(child.id());
    let mut child = child;
    Ok(child.wait().with_context(|| format!("cannot wait for {}", described(command)))?.success())
}

/// The last lines of both outputs, ready to stand behind an error's text.
pub fn printed(output: &Output) -> String {
    let both = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let lines: Vec<&str> = both.iter().flat_map(|text| last_lines(text, 12)).collect();
    if lines.is_empty() { String::new() } else { format!(":\n  {}", lines.join("\n  ")) }
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// The last `count` lines of a log file, or why there are none.
pub fn tail(log: &Path, count: usize) -> String {
    match std::fs::read(log) {
        Ok(bytes) if bytes.is_empty() => format!("({} is empty)", log.display()),
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes), count).join("\n"),
        Err(error) => format!("({}: {error})", log.display()),
    }
}

/// Program and arguments, as one would type them.
pub fn described(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Lets a program outlive us and our terminal: its own process group, nothing of ours open.
pub fn detach(command: &mut Command) -> &mut Command {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.stdin(Stdio::null())
}

/// The signals we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Kill,
    Stop,
    Continue,
    Interrupt,
    HangUp,
}

/// Sends `signal` to `pid`; false when there is no such process any more.
pub fn signal(pid: u32, signal: Signal) -> bool {
    let name = match signal {
        Signal::Terminate => "TERM",
        Signal::Kill => "KILL",
        Signal::Stop => "STOP",
        Signal::Continue => "CONT",
        Signal::Interrupt => "INT",
        Signal::HangUp => "HUP",
    };
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("kill -s {name} {pid}")]).stdin(Stdio::null()).stderr(Stdio::null());
    shell.status().is_ok_and(|status| status.success())
}

/// The command line of a process that is alive, a zombie not counted. None: there is none.
pub fn command_line(pid: u32) -> Option<String> {
    if !Path::new("/proc/self/cmdline").exists() {
        let output = Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]).output().ok()?;
        return output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // For a moment after its start a process has none yet; a zombie has none any more, a kernel thread never.
    for _ in 0..500 {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if !line.is_empty() {
            return Some(String::from_utf8_lossy(&line).replace('\0', " "));
        }
        if is_zombie(pid) {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn is_zombie(pid: u32) -> bool {
    // The state follows the program's name, which stands in parentheses and may hold anything.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_none_or(|state| state == 'Z' || state == 'X')
}

/// The most memory a process ever held, in bytes. None: gone, or this system does not tell.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Processor time a process has used itself, in programs and in the kernel. None: gone, or this system does not tell.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    // Clock ticks are a hundredth of a second on every Linux.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    // Of what proc(5) numbers from 1, `rest` begins with the third field; wanted are the 14th and the 15th.
    let mut fields = rest.split(' ').skip(11).map(|field| field.parse::<u32>().ok());
    Some(TICK * (fields.next()?? + fields.next()??))
}

/// Asks `look` again and again until it answers, at most `within`. Waits for a fact, never for a time.
///
/// `look` says `Ok(Some(answer))` when the fact is there, `Ok(None)` when not yet, and an error when it never
/// will be.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if started.elapsed() > within {
            bail!("{what}: not within {}", crate::say::seconds(within));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Waits at most `within` for a child to end by itself. True: it has.
pub fn ends(child: &mut Child, within: Duration) -> bool {
    wait_for("the end of a program", within, || Ok(child.try_wait()?)).is_ok()
}

static FOREGROUND: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// While it lives, an interrupt ends this program too.
pub struct Foreground(u32);

impl Foreground {
    pub fn enter(pid: u32) -> Self {
        FOREGROUND.lock().expect("nobody panics while holding the list").push(pid);
        Self(pid)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        FOREGROUND.lock().expect("nobody panics while holding the list").retain(|pid| *pid != self.0);
    }
}

/// Ends the programs that run in front of us.
pub(crate) fn end_foreground() {
    let pids = FOREGROUND.lock().expect("nobody panics while holding the list").clone();
    for pid in pids {
        signal(pid, Signal::Terminate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_run_and_what_it_printed() {
        let error = output(Command::new("sh").args(["-c", "echo about this >&2; exit 3"])).expect_err("it exits 3");
        let text = error.to_string();
        assert!(text.contains("sh -c") && text.contains("about this") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_process_that_ended_has_no_command_line() {
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep runs");
        assert!(command_line(child.id()).expect("it runs").contains("sleep 30"));
        assert!(signal(child.id(), Signal::Kill));
        wait_for("its end", Duration::from_secs(5), || Ok(command_line(child.id()).is_none().then_some(())))
            .expect("a killed process is gone, a zombie at most");
        child.wait().expect("it can be waited for");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_works_uses_processor_time() {
        let us = std::process::id();
        let before = cpu_time(us).expect("we are there");
        wait_for("processor time", Duration::from_secs(20), || Ok((cpu_time(us) > Some(before)).then_some(())))
            .expect("waiting is work too");
    }

    #[test]
    fn waiting_ends_with_a_reason() {
        let error = wait_for::<()>("the moon", Duration::from_millis(30), || Ok(None)).expect_err("it never comes");
        assert!(error.to_string().contains("the moon"));
    }
}
