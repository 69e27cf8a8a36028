//! The result as a table, with the ratios that count.

use std::time::Duration;

use super::{
    arena::Size,
    contender::{Contender, Measured},
    watch::Watched,
};
use crate::say;

/// What the project asks of itself: ratios of ours to others, memory, freshness, answers.
const OF_NATIVE: f64 = 0.65;
const OF_PGCOPYDB: f64 = 1.0;
const MEMORY: u64 = 256 << 20;
const PROGRESS: Duration = Duration::from_secs(2);
const STATUS: Duration = Duration::from_millis(100);
/// Columns of ratios: what every contender is measured against.
const AGAINST: [(Contender, &str); 2] = [(Contender::Native, "of native"), (Contender::Floor, "of floor")];

pub(super) fn print(title: &str, size: Size, workers: u32, all: &[(Contender, Vec<Measured>)]) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "\n{title}: {}, {} rows, {} tables; fsync on, {workers} workers, {cores} cores",
        say::size(size.bytes),
        say::count(size.rows),
        size.tables
    );
    let against = AGAINST.map(|(other, _)| median_of(all, other));
    let [native, floor] = AGAINST.map(|(_, name)| name);
    println!("  {:<26} {:>8} {:>8} {:>7} {native:>10} {floor:>10}", "", "seconds", "spread", "MB/s");
    for (contender, runs) in all {
        let seconds = median(runs);
        let spread = spread(runs);
        let rate = size.bytes as f64 / 1e6 / seconds;
        let [native, floor] =
            against.map(|other| other.map_or_else(String::new, |other| format!("{:.2}", seconds / other)));
        println!("  {contender:<26} {seconds:>8.1} {spread:>8} {rate:>7.0} {native:>10} {floor:>10}");
    }
    for (contender, runs) in all {
        if let Some(watched) = worst(runs) {
            print_watched(*contender, &watched, size);
        }
    }
    goals(all);
}

fn print_watched(contender: Contender, watched: &Watched, size: Size) {
    let [source, target] = watched.peak_memory.map(mebibytes);
    let cpu = watched.cpu.map(|cpu| cpu.as_secs_f64());
    println!(
        "  {contender}: peak memory {source} MiB (source's agent), {target} MiB (target's); progress at most {} old",
        say::seconds(watched.oldest_progress),
    );
    println!(
        "    processor time {:.2} s (source's agent), {:.2} s (target's), {:.2} s for a GB by both",
        cpu[0],
        cpu[1],
        (cpu[0] + cpu[1]) / (size.bytes as f64 / 1e9),
    );
    for (when, status) in [("before", &watched.idle_status), ("during", &watched.busy_status)] {
        println!(
            "    steepctl status {when} the copy: {} ms at half, {} ms at 95 % of {} calls",
            percentile(status, 50).as_millis(),
            percentile(status, 95).as_millis(),
            status.len(),
        );
    }
}

fn goals(all: &[(Contender, Vec<Measured>)]) {
    let Some(ours) = median_of(all, Contender::Ours) else { return };
    let mut goals = Vec::new();
    if let Some(native) = median_of(all, Contender::Native) {
        goals.push((
            ours / native <= OF_NATIVE,
            format!("ours takes {:.2} of native, at most {OF_NATIVE}", ours / native),
        ));
    }
    let pgcopydb = Contender::PGCOPYDB.iter().filter_map(|it| median_of(all, *it)).min_by(f64::total_cmp);
    if let Some(best) = pgcopydb {
        goals.push((
            ours / best <= OF_PGCOPYDB,
            format!("ours takes {:.2} of pgcopydb's best, at most {OF_PGCOPYDB}", ours / best),
        ));
    }
    let runs = all.iter().filter(|(contender, _)| *contender == Contender::Ours).flat_map(|(_, runs)| runs);
    if let Some(watched) = worst(&runs.cloned().collect::<Vec<_>>()) {
        let peak = watched.peak_memory.into_iter().max().unwrap_or(0);
        goals.push((
            peak <= MEMORY,
            format!("an agent's peak memory is {} MiB, at most {}", mebibytes(peak), mebibytes(MEMORY)),
        ));
        let oldest = watched.oldest_progress;
        goals.push((oldest <= PROGRESS, format!("progress is at most {} old, at most 2 s", say::seconds(oldest))));
        let (idle, busy) = (percentile(&watched.idle_status, 95), percentile(&watched.busy_status, 50));
        goals.push((
            idle <= STATUS && busy <= STATUS,
            format!(
                "steepctl status takes {} ms at 95 % before the copy and {} ms at half during it, at most 100",
                idle.as_millis(),
                busy.as_millis()
            ),
        ));
    }
    for (is_met, goal) in goals {
        println!("  {} {goal}", if is_met { "✓" } else { "✗" });
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes >> 20
}

fn median_of(all: &[(Contender, Vec<Measured>)], wanted: Contender) -> Option<f64> {
    all.iter().find(|(contender, _)| *contender == wanted).map(|(_, runs)| median(runs))
}

/// The middle of the runs' seconds; there is at least one.
fn median(runs: &[Measured]) -> f64 {
    let seconds = sorted(runs);
    let middle = seconds.len() / 2;
    if seconds.len().is_multiple_of(2) { f64::midpoint(seconds[middle - 1], seconds[middle]) } else { seconds[middle] }
}

fn spread(runs: &[Measured]) -> String {
    let seconds = sorted(runs);
    if seconds.len() < 2 { String::new() } else { format!("{:.0}-{:.0}", seconds[0], seconds[seconds.len() - 1]) }
}

fn sorted(runs: &[Measured]) -> Vec<f64> {
    let mut seconds: Vec<f64> = runs.iter().map(|run| run.taken.as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

/// The worst of what was seen over all runs.
fn worst(runs: &[Measured]) -> Option<Watched> {
    let mut seen = runs.iter().filter_map(|run| run.watched.clone());
    let first = seen.next()?;
    Some(seen.fold(first, |mut worst, next| {
        for (peak, other) in worst.peak_memory.iter_mut().zip(next.peak_memory) {
            *peak = (*peak).max(other);
        }
        worst.oldest_progress = worst.oldest_progress.max(next.oldest_progress);
        for (cpu, other) in worst.cpu.iter_mut().zip(next.cpu) {
            *cpu = (*cpu).max(other);
        }
        for (all, more) in [(&mut worst.idle_status, next.idle_status), (&mut worst.busy_status, next.busy_status)] {
            all.extend(more);
            all.sort_unstable();
        }
        worst
    }))
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let runs = |seconds: &[u64]| -> Vec<Measured> {
            seconds.iter().map(|it| Measured { taken: Duration::from_secs(*it), watched: None }).collect()
        };
        for (seconds, middle) in [(&[3][..], 3.0), (&[1, 9, 2][..], 2.0), (&[4, 1, 2, 9][..], 3.0)] {
            assert!((median(&runs(seconds)) - middle).abs() < 1e-9);
        }
        assert_eq!(spread(&runs(&[1, 9, 2])), "1-9");
    }

    #[test]
    fn percentiles_of_few_values_are_values() {
        let values: Vec<Duration> = (1..=4).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 95), Duration::from_millis(4));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
