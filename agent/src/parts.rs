//! Cuts tables into parts (pure).
//!
//! A part is a range of heap pages, read by a TID range scan under the session's snapshot. Parts are even, and those at
//! the end a quarter of the others, so that no worker is left with a large rest; the last one has no end, since pages may
//! have been added since the size was read.

/// PostgreSQL's page size; agents refuse servers built with another.
pub const PAGE_BYTES: u64 = 8192;
/// More parts than this cost more than they bring.
const MOST_PARTS: u64 = 1024;
/// One in so many parts, the last ones, is cut once more …
const ONE_IN: u64 = 8;
/// … into so many; …
const PIECES: u64 = 4;
/// … but no more than these: enough for sixteen workers that end at different times.
const MOST_CUT: u64 = 8;

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

/// Cuts a table of `pages` into parts of about `part_bytes`.
pub fn cut(pages: u32, part_bytes: u64) -> TablePlan {
    let part_pages = (part_bytes / PAGE_BYTES).max(1);
    let count = u64::from(pages).div_ceil(part_pages).clamp(1, MOST_PARTS - MOST_CUT * (PIECES - 1));
    let whole = count - (count / ONE_IN).min(MOST_CUT);
    let pieces = (0..count * PIECES).filter(|piece| piece % PIECES == 0 || *piece >= whole * PIECES);
    let mut starts: Vec<_> = pieces.map(|piece| (u64::from(pages) * piece / (count * PIECES)) as u32).collect();
    // A part of a page or two has fewer pieces.
    starts.dedup();
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
    fn the_last_parts_are_small_where_there_are_many() {
        let sizes = |pages| {
            let plan = cut(pages, 64 << 20);
            (0..plan.starts.len()).map(|part| plan.bytes(part) >> 20).collect::<Vec<_>>()
        };
        assert_eq!(sizes(7 * 8192), [64; 7]);
        assert_eq!(sizes(16 * 8192), [&[64; 14][..], &[16; 8]].concat());
        assert_eq!(cut(500 * 8192, 64 << 20).starts.len(), 500 + 8 * 3);
    }

    #[test]
    fn a_small_table_is_one_part() {
        assert_eq!(cut(10, 64 << 20).starts, [0]);
        assert_eq!(cut(0, 64 << 20).starts, [0]);
    }
}
