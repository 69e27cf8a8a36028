//! What the agent's own process uses, as the system tells it.

/// What the process uses now; 0 where this system does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Memory held.
    pub resident_bytes: u64,
    /// Processor time so far.
    pub cpu_seconds: f64,
    /// Files and sockets open.
    pub open_files: u64,
    /// As many may be open.
    pub most_open_files: u64,
}

/// Looks at this process. Reads a few lines of `/proc`; nothing waits.
#[cfg(target_os = "linux")]
pub fn usage() -> Usage {
    use std::fs;

    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let pages = rustix::param::page_size() as u64;
    Usage {
        resident_bytes: number(read("statm").split_whitespace().nth(1)) * pages,
        cpu_seconds: ticks_used(&read("stat")) as f64 / ticks,
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |found| found.count() as u64),
        most_open_files: limit_in(&read("limits")),
    }
}

/// Looks at this process; nothing is known of it on this system.
#[cfg(not(target_os = "linux"))]
pub fn usage() -> Usage {
    Usage::default()
}

#[cfg(any(target_os = "linux", test))]
fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// User and system time; the program's name before them may hold blanks and brackets.
#[cfg(any(target_os = "linux", test))]
fn ticks_used(stat: &str) -> u64 {
    let fields: Vec<_> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    number(fields.get(11).copied()) + number(fields.get(12).copied())
}

#[cfg(any(target_os = "linux", test))]
fn limit_in(limits: &str) -> u64 {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    number(line.and_then(|rest| rest.split_whitespace().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_limits_are_read_as_the_kernel_writes_them() {
        let stat = "4711 (steep) agent) S 1 2 3 4 5 6 7 8 9 10 120 34 0 0 20 0 5 0";
        assert_eq!(ticks_used(stat), 154);
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(limit_in(limits), 1024);
        assert_eq!((ticks_used(""), limit_in("")), (0, 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_something() {
        let usage = usage();
        assert!(usage.resident_bytes > 0 && usage.open_files > 0 && usage.most_open_files > 0, "{usage:?}");
    }
}
