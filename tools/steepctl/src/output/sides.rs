//! Two versions of something side by side, in as many columns as a terminal has: what is too long goes on below.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{safe, style::Tone};

/// No column is made narrower, however narrow the terminal is.
const NARROWEST: usize = 8;

/// One thing and what it is on either side.
#[derive(Debug)]
struct Line {
    mark: String,
    tone: Tone,
    texts: [String; 3],
}

/// Lines under the names of the two sides. All texts are escaped as they come in.
#[derive(Debug)]
pub struct Sides {
    lines: Vec<Line>,
}

impl Sides {
    /// Nothing yet, under a title and the names of the sides.
    pub fn new(title: &str, left: &str, right: &str) -> Self {
        let texts = [title, left, right].map(safe);
        Self { lines: vec![Line { mark: String::new(), tone: Tone::Strong, texts }] }
    }

    /// Adds what `name` is on either side, behind a mark of one character.
    pub fn line(&mut self, mark: &str, tone: Tone, name: &str, left: &str, right: &str) {
        let mark = safe(mark).chars().take(1).collect();
        self.lines.push(Line { mark, tone, texts: [name, left, right].map(safe) });
    }

    /// The lines as text, without a line break at the end.
    pub fn render(&self, width: usize) -> String {
        let longest = |at: usize| self.lines.iter().map(|line| line.texts[at].width()).max().unwrap_or(0);
        let gaps = "~ ".len() + 2 * "  ".len();
        let room = (width / 3).min(width.saturating_sub(gaps + 2 * NARROWEST));
        let name = longest(0).min(room.max(NARROWEST));
        let rest = width.saturating_sub(gaps + name);
        // What one side does not need the other may have.
        let left = longest(1).min((rest / 2).max(rest.saturating_sub(longest(2))).max(NARROWEST));
        let right = longest(2).min(rest.saturating_sub(left).max(NARROWEST));
        let lines = self.lines.iter().flat_map(|line| line.render([name, left, right]));
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Line {
    fn render(&self, widths: [usize; 3]) -> Vec<String> {
        let mut cells = [0, 1, 2].map(|at| wrapped(&self.texts[at], widths[at]).into_iter());
        let mut mark = if self.mark.is_empty() { " " } else { self.mark.as_str() };
        let mut lines = Vec::new();
        loop {
            let pieces = cells.each_mut().map(Iterator::next);
            if !lines.is_empty() && pieces.iter().all(Option::is_none) {
                return lines;
            }
            let mut line = mark.to_owned();
            let mut owed = 1;
            for (piece, width) in pieces.into_iter().zip(widths) {
                let piece = piece.unwrap_or_default();
                if !piece.is_empty() {
                    line.push_str(&" ".repeat(owed));
                    line.push_str(&piece);
                    owed = 0;
                }
                owed += width.saturating_sub(piece.width()) + 2;
            }
            lines.push(self.tone.paint(line.trim_end()));
            mark = " ";
        }
    }
}

/// `text` in pieces of at most `width` cells, parted between words where there are any.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for word in text.split(' ') {
        if !piece.is_empty() && piece.width() + 1 + word.width() > width {
            pieces.push(std::mem::take(&mut piece));
        } else if !piece.is_empty() {
            piece.push(' ');
        }
        for c in word.chars() {
            if !piece.is_empty() && piece.width() + c.width().unwrap_or(0) > width {
                pieces.push(std::mem::take(&mut piece));
            }
            piece.push(c);
        }
    }
    pieces.push(piece);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;

    fn customers() -> Sides {
        let mut sides = Sides::new("public.customers", "node_a", "node_b");
        sides.line("", Tone::Plain, "id", "bigint not null", "=");
        sides.line("+", Tone::Good, "loyalty_tier", "text", "(missing)");
        let now = "timestamp with time zone default CURRENT_TIMESTAMP";
        sides.line("~", Tone::Warn, "created_at", "timestamp with time zone default now()", now);
        sides
    }

    #[test]
    fn sides_stand_in_columns_where_there_is_room() {
        let text = strip_str(&customers().render(200)).to_string();
        let expected = "
  public.customers  node_a                                  node_b
  id                bigint not null                         =
+ loyalty_tier      text                                    (missing)
~ created_at        timestamp with time zone default now()  timestamp with time zone default CURRENT_TIMESTAMP";
        assert_eq!(format!("\n{text}"), expected);
    }

    #[test]
    fn what_is_too_long_for_a_terminal_goes_on_below_and_nothing_is_lost() {
        let text = strip_str(&customers().render(60)).to_string();
        let expected = "
  public.customers  node_a               node_b
  id                bigint not null      =
+ loyalty_tier      text                 (missing)
~ created_at        timestamp with time  timestamp with time
                    zone default now()   zone default
                                         CURRENT_TIMESTAMP";
        assert_eq!(format!("\n{text}"), expected);
        for width in 0..120 {
            let text = strip_str(&customers().render(width)).to_string();
            let widest = text.lines().map(unicode_width::UnicodeWidthStr::width).max().unwrap_or(0);
            assert!(widest <= width.max(2 + 3 * NARROWEST + 4), "{widest} of {width}:\n{text}");
            let squeezed: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            assert!(width < 60 || squeezed.contains("CURRENT_TIMESTAMP"), "{text}");
        }
    }

    #[test]
    fn a_hostile_text_cannot_redraw_the_terminal() {
        let mut sides = Sides::new("public.\u{1b}[2J", "node_a", "node_b");
        sides.line("\u{7}", Tone::Bad, "a\nb", "\u{202e}", "x\r");
        let text = strip_str(&sides.render(80)).to_string();
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\r', '\u{7}']), "{text:?}");
        assert_eq!(text.lines().count(), 2);
    }
}
