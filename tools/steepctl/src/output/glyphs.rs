//! The marks and blocks a terminal can show, and bars made of them.

use std::env;

/// One set of marks.
#[derive(Debug, PartialEq, Eq)]
pub struct Glyphs {
    /// Went well.
    pub ok: &'static str,
    /// Went on, but look at it.
    pub warn: &'static str,
    /// Went wrong.
    pub bad: &'static str,
    /// Between facts of one line.
    pub dot: &'static str,
    /// From the source to the target, read backwards: `node_b <- node_a`.
    pub from: &'static str,
    /// A bar's cell, from nearly empty to full.
    blocks: &'static [char],
    /// A bar's edges.
    edges: [&'static str; 2],
}

/// For terminals that show Unicode.
pub const UNICODE: Glyphs = Glyphs {
    ok: "√",
    warn: "‼",
    bad: "×",
    dot: "·",
    from: "←",
    blocks: &['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'],
    edges: ["", ""],
};

/// For all others.
pub const ASCII: Glyphs =
    Glyphs { ok: "+", warn: "!", bad: "x", dot: "-", from: "<-", blocks: &['#'], edges: ["[", "]"] };

/// What the environment says this terminal can show.
pub fn of_this_terminal() -> &'static Glyphs {
    // The first of these that is set and not empty decides, as in POSIX.
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| env::var(name).ok().filter(|v| !v.is_empty()));
    choose(env::var("TERM").ok().as_deref(), locale.as_deref(), cfg!(windows))
}

fn choose(term: Option<&str>, locale: Option<&str>, windows: bool) -> &'static Glyphs {
    let utf8 = locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    });
    // The Linux console has no eighth blocks in its font.
    let capable = !matches!(term, Some("dumb" | "linux"));
    if capable && (utf8 || windows) { &UNICODE } else { &ASCII }
}

impl Glyphs {
    /// A bar `width` cells wide, filled to `percent`.
    pub fn bar(&self, percent: f64, width: usize) -> String {
        let inner = width.saturating_sub(self.edges[0].len() + self.edges[1].len());
        let steps = self.blocks.len();
        let percent = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
        let filled = (percent / 100.0 * (inner * steps) as f64) as usize;
        let full = self.blocks[steps - 1];
        let mut bar: String = std::iter::repeat_n(full, filled / steps).collect();
        let mut cells = filled / steps;
        if !filled.is_multiple_of(steps) {
            bar.push(self.blocks[filled % steps - 1]);
            cells += 1;
        }
        let empty = if self.edges[0].is_empty() { ' ' } else { '.' };
        bar.extend(std::iter::repeat_n(empty, inner - cells));
        format!("{}{bar}{}", self.edges[0], self.edges[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_width::UnicodeWidthStr as _;

    #[test]
    fn a_bar_is_always_as_wide_as_asked() {
        for glyphs in [&UNICODE, &ASCII] {
            for percent in [-1.0, 0.0, 0.1, 12.5, 33.3, 50.0, 99.9, 100.0, 250.0, f64::NAN] {
                for width in [2, 8, 21] {
                    assert_eq!(glyphs.bar(percent, width).width(), width, "{percent} {width}");
                }
            }
        }
    }

    #[test]
    fn a_bar_is_full_only_when_all_is_done() {
        assert_eq!(ASCII.bar(99.9, 10), "[#######.]");
        assert_eq!(ASCII.bar(100.0, 10), "[########]");
        assert_eq!(UNICODE.bar(50.0, 5), "██▌  ");
        assert_eq!(UNICODE.bar(0.0, 3), "   ");
    }

    #[test]
    fn unicode_needs_a_locale_and_a_terminal_that_show_it() {
        assert_eq!(choose(Some("xterm"), Some("en_GB.UTF-8"), false), &UNICODE);
        assert_eq!(choose(Some("xterm"), Some("C.utf8"), false), &UNICODE);
        assert_eq!(choose(Some("xterm"), Some("C"), false), &ASCII);
        assert_eq!(choose(Some("xterm"), None, false), &ASCII);
        assert_eq!(choose(Some("dumb"), Some("en_GB.UTF-8"), false), &ASCII);
        assert_eq!(choose(Some("linux"), Some("en_GB.UTF-8"), false), &ASCII);
        assert_eq!(choose(None, None, true), &UNICODE);
    }
}
