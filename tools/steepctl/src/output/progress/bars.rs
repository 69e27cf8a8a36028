//! Progress as live bars: one for the whole, one per worker, and a footer. What it looks like is pure text.
//!
//! ```text
//! Overall  ████████████████▏        71.2%  128.9/181.0 GiB  412.0 MiB/s  ETA 02:09
//!  w1 sales.orders      ██████████▊    83%  39.1/47.0 GiB  1.9 Mrow/s  120.1 MiB/s
//! copy · 14/23 tables · 3.1 GiB of WAL kept on node_a · Ctrl-C detaches
//! ```

use std::time::Duration;

use anstream::adapter::strip_str;
use console::Term;
use steep_protocol::v1::{self, operation_event::What};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{
    super::{Output, glyphs::Glyphs, safe, style::Tone},
    Subject,
};
use crate::units;

/// Rows and columns of a terminal that does not say.
const USUAL_SIZE: (u16, u16) = (24, 80);
const SHORTEST_BAR: usize = 6;
const LONGEST_BAR: usize = 24;

/// Live bars on stderr.
///
/// The cursor rests at the beginning of the line below them: the `^C` a terminal echoes then stands on a line of
/// its own, is wiped by the next drawing, and pushes nothing out of place.
#[derive(Debug)]
pub struct Bars {
    subject: Subject,
    glyphs: &'static Glyphs,
    colored: bool,
    term: Term,
    /// Lines on the screen now.
    drawn: usize,
    last: Option<v1::Progress>,
    is_paused: bool,
    /// Lines to print when the bars come back: meanwhile somebody is being asked.
    held: Vec<String>,
}

impl Bars {
    /// Bars about this operation; nothing is drawn before the first progress.
    pub fn new(out: &Output, subject: Subject) -> Self {
        Self {
            subject,
            glyphs: out.glyphs(),
            colored: out.is_colored(),
            term: Term::buffered_stderr(),
            drawn: 0,
            last: None,
            is_paused: false,
            held: Vec::new(),
        }
    }

    /// Takes in an event and redraws.
    pub fn show(&mut self, event: &v1::OperationEvent, out: &Output) {
        match &event.what {
            Some(What::Progress(progress)) => {
                self.last = Some(progress.clone());
                self.draw();
            }
            Some(What::Milestone(milestone)) => {
                if let Some(line) = lasting_line(milestone, self.glyphs) {
                    self.above(&line, out);
                }
            }
            Some(What::Ended(_)) => {
                self.pause();
                self.release(out);
            }
            None => {}
        }
    }

    /// Prints a line that stays, above the bars.
    pub fn above(&mut self, text: &str, out: &Output) {
        if self.is_paused {
            return self.held.push(text.to_owned());
        }
        self.rewind();
        self.flush();
        out.talk(text);
        self.draw();
    }

    /// Takes the bars away.
    pub fn pause(&mut self) {
        self.rewind();
        self.flush();
        self.is_paused = true;
    }

    /// Draws the bars again.
    pub fn resume(&mut self, out: &Output) {
        self.is_paused = false;
        self.release(out);
        self.draw();
    }

    fn release(&mut self, out: &Output) {
        self.held.drain(..).for_each(|line| out.talk(&line));
    }

    fn draw(&mut self) {
        let Some(progress) = self.last.clone().filter(|_| !self.is_paused) else { return };
        let (rows, columns) = self.term.size_checked().unwrap_or(USUAL_SIZE);
        // A full last column would wrap on some terminals.
        let mut lines = screen(&progress, &self.subject, self.glyphs, usize::from(columns).saturating_sub(1));
        // What has scrolled away cannot be drawn over: a low terminal shows the whole and the footer.
        if lines.len() >= usize::from(rows) {
            lines.drain(1..lines.len() - 1);
        }
        self.rewind();
        for line in &lines {
            let line = if self.colored { line.clone() } else { strip_str(line).to_string() };
            // A terminal that is gone shows no bars; the operation does not mind.
            let _ = self.term.write_line(&line);
        }
        self.drawn = lines.len();
        self.flush();
    }

    /// Moves back to where the bars begin and wipes them, as part of the next flush.
    fn rewind(&mut self) {
        if self.drawn == 0 {
            return;
        }
        let _ = self.term.move_cursor_up(self.drawn);
        let _ = self.term.write_str("\r");
        let _ = self.term.clear_to_end_of_screen();
        self.drawn = 0;
    }

    fn flush(&self) {
        let _ = self.term.flush();
    }
}

/// What a milestone leaves behind above the bars; most leave nothing.
fn lasting_line(milestone: &v1::Milestone, glyphs: &Glyphs) -> Option<String> {
    let took = milestone.duration_ms.map(|ms| units::duration(Duration::from_millis(ms))).unwrap_or_default();
    match milestone.event.as_str() {
        "init.phase_completed" => {
            let phase = format!("{:<12}", phase_title(&milestone.phase));
            Some(format!("{} {phase} {}", Tone::Good.paint(glyphs.ok), Tone::Faint.paint(&format!("{took:>8}"))))
        }
        "init.table_failed" => {
            let why = milestone.failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or_default();
            Some(format!("{} {}: {}", Tone::Bad.paint(glyphs.bad), safe(&milestone.table), safe(why)))
        }
        "init.interrupted" | "init.resumed" | "init.restarted" | "remove.pending" => {
            Some(format!("{} {}", Tone::Warn.paint(glyphs.warn), safe(&milestone.message)))
        }
        _ => None,
    }
}

/// A phase in an operator's words.
pub fn phase_title(phase: &str) -> String {
    match phase {
        "preflight" => "checks".into(),
        "catching_up" => "catching up".into(),
        other => safe(other),
    }
}

/// The bars as lines of text, none wider than `width`.
pub fn screen(progress: &v1::Progress, subject: &Subject, glyphs: &Glyphs, width: usize) -> Vec<String> {
    let mut lines = vec![overall(progress, glyphs, width)];
    let longest_name = progress.workers.iter().map(|worker| safe(&worker.table).width()).max().unwrap_or(0);
    if longest_name > 0 {
        lines.extend(progress.workers.iter().map(|one| worker(one, longest_name, glyphs, width)));
    }
    lines.push(footer(progress, subject, glyphs, width));
    lines
}

fn overall(progress: &v1::Progress, glyphs: &Glyphs, width: usize) -> String {
    let mut facts = format!("{:>6}", units::percent(progress.overall_percent));
    if progress.bytes_expected > 0 {
        facts.push_str(&format!("  {}", units::bytes_of(progress.bytes_copied, progress.bytes_expected)));
    }
    if progress.bytes_per_second > 0.0 {
        facts.push_str(&format!("  {}", units::byte_rate(progress.bytes_per_second)));
    }
    if let Some(seconds) = progress.eta_seconds {
        facts.push_str(&format!("  ETA {}", units::clock(seconds)));
    }
    let room = width.saturating_sub("Overall  ".len() + 2 + facts.width()).clamp(4, 40);
    let bar = Tone::Good.paint(&glyphs.bar(progress.overall_percent, room));
    format!("{}  {bar}  {facts}", Tone::Strong.paint("Overall"))
}

fn worker(worker: &v1::WorkerProgress, longest_name: usize, glyphs: &Glyphs, width: usize) -> String {
    let label = format!(" w{:<2} ", worker.worker);
    if worker.table.is_empty() {
        return format!("{label}{}", Tone::Faint.paint("idle"));
    }
    let facts = format!(
        "  {:>4}  {:>13}  {:>11}  {:>10}",
        // A worker's table is one of many: whole percents are enough, and 100% only when it is done.
        format!("{:.0}%", worker.table_percent.clamp(0.0, 100.0).floor()),
        units::bytes_of(worker.table_bytes, worker.table_bytes_expected.max(worker.table_bytes)),
        units::row_rate(worker.rows_per_second),
        units::byte_rate(worker.bytes_per_second),
    );
    // Names get what they need as long as a short bar fits beside them; the bar gets the rest.
    let room = width.saturating_sub(label.width() + facts.width() + 1);
    let name_width = longest_name.min(room.saturating_sub(SHORTEST_BAR));
    let bar_width = (room - name_width).min(LONGEST_BAR);
    let bar = Tone::Busy.paint(&glyphs.bar(worker.table_percent, bar_width));
    format!("{label}{} {bar}{facts}", fitted(&safe(&worker.table), name_width))
}

fn footer(progress: &v1::Progress, subject: &Subject, glyphs: &Glyphs, width: usize) -> String {
    let mut facts = vec![phase_title(&progress.phase)];
    facts.push(format!("{}/{} tables", progress.tables_done, progress.tables_total));
    if progress.indexes_total > 0 {
        facts.push(format!("{}/{} indexes", progress.indexes_done, progress.indexes_total));
    }
    if progress.retained_wal_bytes > 0 && !subject.source.is_empty() {
        let kept = units::bytes(progress.retained_wal_bytes);
        facts.push(format!("{kept} of WAL kept on {}", safe(&subject.source)));
    }
    facts.push("Ctrl-C detaches".into());
    facts.retain(|fact| !fact.is_empty());
    let separator = format!(" {} ", glyphs.dot);
    // On a narrow terminal the last facts go first.
    while facts.len() > 1 && facts.join(&separator).width() > width {
        facts.pop();
    }
    Tone::Faint.paint(&facts.join(&separator))
}

/// Exactly `width` cells: padded, or cut in the middle so that schema and ending stay visible.
fn fitted(text: &str, width: usize) -> String {
    let full = text.width();
    if full <= width {
        return format!("{text}{}", " ".repeat(width - full));
    }
    if width <= 3 {
        return " ".repeat(width);
    }
    let keep = width - 2;
    let head = take_width(text.chars(), keep.div_ceil(2));
    let tail: String = take_width(text.chars().rev(), keep / 2).chars().rev().collect();
    let cut = format!("{head}..{tail}");
    let padding = width.saturating_sub(cut.width());
    format!("{cut}{}", " ".repeat(padding))
}

fn take_width(chars: impl Iterator<Item = char>, width: usize) -> String {
    let mut taken = String::new();
    let mut used = 0;
    for c in chars {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        taken.push(c);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::{super::super::glyphs, *};

    fn progress() -> v1::Progress {
        let worker = |worker, table: &str, percent| v1::WorkerProgress {
            worker,
            table: table.into(),
            table_percent: percent,
            table_bytes: 41_983_000_000,
            table_bytes_expected: 50_465_000_000,
            rows_per_second: 1_900_000.0,
            bytes_per_second: 125_934_000.0,
        };
        v1::Progress {
            phase: "copy".into(),
            overall_percent: 71.24,
            tables_total: 23,
            tables_done: 14,
            bytes_copied: 138_412_032_000,
            bytes_expected: 194_347_270_144,
            bytes_per_second: 432_013_312.0,
            eta_seconds: Some(129),
            workers: vec![worker(1, "sales.orders", 83.9), worker(2, &"x".repeat(90), 29.0), worker(3, "", 0.0)],
            retained_wal_bytes: 3_328_599_654,
            indexes_total: 45,
            indexes_done: 3,
            ..Default::default()
        }
    }

    fn subject() -> Subject {
        Subject { op_id: "0192".into(), target: "node_b".into(), source: "node_a".into() }
    }

    fn plain(width: usize) -> Vec<String> {
        let lines = screen(&progress(), &subject(), &glyphs::ASCII, width);
        lines.iter().map(|line| strip_str(line).to_string()).collect()
    }

    #[test]
    fn the_screen_shows_the_whole_each_worker_and_a_footer() {
        let shown = [
            "Overall  [##############......]   71.2%  128.9/181.0 GiB  412.0 MiB/s  ETA 02:09",
            " w1  sales.orders          [###.]   83%  39.1/47.0 GiB   1.9 Mrow/s  120.1 MiB/s",
            " w2  xxxxxxxxxx..xxxxxxxxx [#...]   29%  39.1/47.0 GiB   1.9 Mrow/s  120.1 MiB/s",
            " w3  idle",
            "copy - 14/23 tables - 3/45 indexes - 3.1 GiB of WAL kept on node_a",
        ];
        assert_eq!(plain(80), shown);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for glyphs in [&glyphs::ASCII, &glyphs::UNICODE] {
            for width in [72, 80, 100, 132, 250] {
                for line in screen(&progress(), &subject(), glyphs, width) {
                    let shown = strip_str(&line).to_string();
                    assert!(shown.width() <= width, "{} > {width}: {shown}", shown.width());
                }
            }
        }
    }

    #[test]
    fn a_long_name_keeps_its_beginning_and_its_end() {
        assert_eq!(fitted("public.orders", 20), "public.orders       ");
        assert_eq!(fitted("public.orders_2024_partition_17", 18), "public.o..ition_17");
        assert_eq!(fitted("注文注文注文", 8).width(), 8);
    }

    #[test]
    fn idle_workers_are_not_shown_when_all_are_idle() {
        let quiet = v1::Progress { workers: vec![v1::WorkerProgress::default()], ..Default::default() };
        assert_eq!(screen(&quiet, &subject(), &glyphs::ASCII, 80).len(), 2);
    }

    #[test]
    fn a_finished_phase_and_a_failed_table_leave_a_line() {
        let phase = v1::Milestone {
            event: "init.phase_completed".into(),
            phase: "catching_up".into(),
            duration_ms: Some(11_200),
            ..Default::default()
        };
        let line = lasting_line(&phase, &glyphs::ASCII).expect("a phase leaves a line");
        assert_eq!(strip_str(&line).to_string(), "+ catching up       11s");
        let table = v1::Milestone { event: "init.table_complete".into(), ..Default::default() };
        assert_eq!(lasting_line(&table, &glyphs::ASCII), None);
    }
}
