//! Columns without borders: two spaces between them, as wide as their content, nothing cut off.

use unicode_width::UnicodeWidthStr as _;

use super::{safe, style::Tone};

/// Which side a column's text stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One piece of text in a table. Escaped when it is made, so no name can redraw the terminal.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell; nothing is shown as `-`.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = safe(text.as_ref());
        Self { text: if text.is_empty() { "-".into() } else { text }, tone: Tone::Plain }
    }

    fn title(text: &str) -> Self {
        Self { text: safe(text), tone: Tone::Strong }
    }

    /// The same in `tone`.
    #[must_use]
    pub fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// Rows under a header.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, Side)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns and no rows yet.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self::named(columns.iter().map(|(title, side)| (safe(title), *side)).collect())
    }

    /// The same, with titles that are only known now.
    pub fn named(columns: Vec<(String, Side)>) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row; it has as many cells as the table has columns.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len(), "a row has a cell for every column");
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, without a line break at its end.
    pub fn render(&self) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (title, _))| {
                let widest = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.text.width()).max();
                title.width().max(widest.unwrap_or(0))
            })
            .collect();
        let header: Vec<Cell> = self.columns.iter().map(|(title, _)| Cell::title(title)).collect();
        let lines = std::iter::once(&header).chain(&self.rows).map(|row| self.line(row, &widths));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn line(&self, row: &[Cell], widths: &[usize]) -> String {
        let mut line = String::new();
        // Spaces owed before the next visible text, so that none trail.
        let mut owed = 0;
        for ((cell, width), (_, side)) in row.iter().zip(widths).zip(&self.columns) {
            let padding = width.saturating_sub(cell.text.width());
            if *side == Side::Right {
                owed += padding;
            }
            line.push_str(&" ".repeat(owed));
            line.push_str(&cell.tone.paint(&cell.text));
            owed = 2 + if *side == Side::Left { padding } else { 0 };
        }
        line
    }
}

/// Facts about one thing: names on the left, values beside them. Values are escaped.
#[derive(Debug, Default)]
pub struct Facts(Vec<(&'static str, Cell)>);

impl Facts {
    /// Adds a fact.
    pub fn add(&mut self, name: &'static str, value: impl Into<Cell>) {
        self.0.push((name, value.into()));
    }

    /// The facts as text, without a line break at the end.
    pub fn render(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
        let lines = self.0.iter().map(|(name, value)| {
            let padding = " ".repeat(width - name.width());
            format!("{}{padding}  {}", Tone::Faint.paint(name), value.tone.paint(&value.text))
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;

    #[test]
    fn columns_align_whatever_their_colours_and_no_line_ends_in_spaces() {
        let mut table = Table::new(&[("NODE", Side::Left), ("ROWS", Side::Right), ("STATE", Side::Left)]);
        table.row([Cell::new("node_a"), Cell::new("7"), Cell::new("SYNCHRONIZED").tone(Tone::Good)]);
        table.row([Cell::new("b"), Cell::new("1,204,332"), Cell::new("")]);
        assert_eq!(
            strip_str(&table.render()).to_string(),
            "NODE         ROWS  STATE\n\
             node_a          7  SYNCHRONIZED\n\
             b       1,204,332  -"
        );
    }

    #[test]
    fn a_hostile_name_cannot_redraw_the_terminal_and_a_wide_one_keeps_the_columns() {
        let mut table = Table::new(&[("TABLE", Side::Left), ("ROWS", Side::Right)]);
        table.row([Cell::new("\u{1b}[2Jx\ny\u{202e}"), Cell::new("1")]);
        table.row([Cell::new("注文"), Cell::new("22")]);
        let text = strip_str(&table.render()).to_string();
        assert_eq!(
            text,
            "TABLE                     ROWS\n\
             \\u{1b}[2Jx\\u{a}y\\u{202e}     1\n\
             注文                        22"
        );
    }

    #[test]
    fn facts_align_their_values() {
        let mut facts = Facts::default();
        facts.add("state", Cell::new("COPYING").tone(Tone::Busy));
        facts.add("source node", "node_a");
        facts.add("lag", "");
        assert_eq!(strip_str(&facts.render()).to_string(), "state        COPYING\nsource node  node_a\nlag          -");
    }
}
