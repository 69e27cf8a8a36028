//! Cuts tables into parts (pure).
//!
//! A part is a range of heap pages, read by a TID range scan under the session's snapshot. Parts are even, so
//! that no worker is left with a large rest; the last one has no end, since pages may have been added since
//! the size was read.

/// PostgreSQL's page size; agents refuse servers built with another.
pub const PAGE_BYTES: u64 = 8192;
/// More parts than this cost more than they bring.
const MOST_PARTS: u64 = 1024;

/// The parts of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePlan {
    /// First page of every part; the first is 0. One entry: the table is not split.
    pub starts: Vec<u32>,
    /// Pages when the plan was made.
    pub pages: u32,
}

impl TablePlan {
    /// First page and page behind the last of part `index`, `None` for "no end"; `None` when there is no such part.
    pub fn range(&self, index: usize) -> Option<(u32, Option<u32>)> {
        Some((*self.starts.get(index)?, self.starts.get(index + 1).copied()))
    }

    /// Heap bytes of part `index` by the plan.
    pub fn bytes(&self, index: usize) -> u64 {
        let (from, to) = self.range(index).unwrap_or((0, None));
        u64::from(to.unwrap_or(self.pages.max(from)).saturating_sub(from)) * PAGE_BYTES
    }
}

/// Cuts a table of `pages` into even parts of about `part_bytes`.
pub fn cut(pages: u32, part_bytes: u64) -> TablePlan {
    let part_pages = (part_bytes / PAGE_BYTES).max(1);
    let count = u64::from(pages).div_ceil(part_pages).clamp(1, MOST_PARTS);
    let starts = (0..count).map(|part| (u64::from(pages) * part / count) as u32).collect();
    TablePlan { starts, pages }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_page_once_and_the_last_has_no_end() {
        for pages in [0, 1, 2, 127, 128, 129, 1000, 100_000, u32::MAX - 1] {
            for part_bytes in [1, 8192, 1 << 20, 64 << 20, 1 << 40] {
                let plan = cut(pages, part_bytes);
                assert_eq!(plan.starts[0], 0);
                assert!(plan.starts.len() as u64 <= MOST_PARTS);
                assert!(plan.starts.is_sorted_by(|a, b| a < b), "{pages} pages: {:?}", plan.starts);
                assert_eq!(plan.range(plan.starts.len() - 1).expect("the last part").1, None);
                let all: u64 = (0..plan.starts.len()).map(|part| plan.bytes(part)).sum();
                assert_eq!(all, u64::from(pages) * PAGE_BYTES);
            }
        }
    }

    #[test]
    fn a_small_table_is_one_part() {
        assert_eq!(cut(10, 64 << 20).starts, [0]);
        assert_eq!(cut(0, 64 << 20).starts, [0]);
    }
}
