//! Counts the rows of CSV as PostgreSQL writes it: lines, but for those within quotes.

use memchr::memchr2_iter;

/// Counts as blocks come; they may be cut anywhere.
#[derive(Debug, Clone, Default)]
pub struct RowCount {
    is_quoted: bool,
    lines: u64,
}

impl RowCount {
    /// One more block.
    pub fn add(&mut self, block: &[u8]) {
        for at in memchr2_iter(b'"', b'\n', block) {
            match block[at] {
                // A quote within quotes stands there twice.
                b'"' => self.is_quoted = !self.is_quoted,
                _ if !self.is_quoted => self.lines += 1,
                _ => {}
            }
        }
    }

    /// Rows, without the header where there is one; none: what came ends amid a row.
    pub fn rows(&self, has_header: bool) -> Option<u64> {
        if self.is_quoted { None } else { self.lines.checked_sub(u64::from(has_header)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_within_values_are_no_rows_wherever_blocks_are_cut() {
        let text = b"id,note\n1,\"two\nlines\"\n2,\"he said \"\"no\"\"\n\"\n3,\n4,\"\"\n";
        for cut in 0..text.len() {
            let mut count = RowCount::default();
            count.add(&text[..cut]);
            count.add(&text[cut..]);
            assert_eq!(count.rows(true), Some(4), "cut at {cut}");
        }
        let mut count = RowCount::default();
        count.add(b"id\n\"1");
        assert_eq!(count.rows(true), None);
        assert_eq!(RowCount::default().rows(true), None, "not even the header");
        assert_eq!(RowCount::default().rows(false), Some(0));
    }
}
