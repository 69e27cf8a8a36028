//! Rows of binary COPY without the blanks that fill a `char(n)` up.
//!
//! PostgreSQL stores every `char(n)` n characters long and fills it up again where a shorter one is loaded, so the
//! blanks need not travel; and in UTF-8 the loading server counts the characters of each, one by one. The source's server
//! cannot leave them out as cheaply: its cast to text, which does, costs more than all that is saved here. In every encoding
//! that a database can have, the byte of a blank is part of no other character.

use steep_protocol::failure::{Code, Failure};

use crate::postgres::tables::Column;

/// What every binary COPY begins with, before the length of more that may follow.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const FLAGS_BYTES: usize = 4;
/// In place of a row's number of columns: there are no more rows.
const NO_MORE_ROWS: i16 = -1;

/// Takes the blanks out of the rows of one COPY, block after block.
#[derive(Debug)]
pub(super) struct Unpadding {
    /// For each column that is read: it is a `char(n)`.
    is_padded: Vec<bool>,
    has_begun: bool,
}

impl Unpadding {
    /// For rows of these columns; `None` where none of them is filled up.
    pub(super) fn of(columns: &[&Column]) -> Option<Self> {
        let is_padded: Vec<_> = columns.iter().map(|column| column.is_padded()).collect();
        is_padded.contains(&true).then_some(Self { is_padded, has_begun: false })
    }

    /// Shortens `block`: whole rows, the first one of a COPY with its header.
    pub(super) fn shorten(&mut self, block: &mut Vec<u8>) -> Result<(), Failure> {
        self.shortened(block).ok_or_else(|| Failure::new(Code::CopyFailed, "the server's rows are no binary COPY"))
    }

    fn shortened(&mut self, block: &mut Vec<u8>) -> Option<()> {
        let mut read = 0;
        if !self.has_begun {
            read = SIGNATURE.len() + FLAGS_BYTES;
            block.starts_with(SIGNATURE).then_some(())?;
            read += size_of::<u32>() + u32::from_be_bytes(number(block, read)?) as usize;
            self.has_begun = true;
        }
        // Bytes from `kept` to `read` are still to be laid behind those before `written`.
        let (mut kept, mut written) = (0, 0);
        while read < block.len() {
            let columns = i16::from_be_bytes(number(block, read)?);
            read += size_of::<i16>();
            if columns == NO_MORE_ROWS {
                break;
            }
            for column in 0..usize::try_from(columns).ok()? {
                let length = i32::from_be_bytes(number(block, read)?);
                read += size_of::<i32>();
                // A null has the length -1.
                let Ok(length) = usize::try_from(length) else { continue };
                let value = block.get(read..read + length)?;
                if *self.is_padded.get(column)? {
                    let short = without_blanks(value).len();
                    if short < length {
                        let told = u32::try_from(short).ok()?.to_be_bytes();
                        block[read - told.len()..read].copy_from_slice(&told);
                        block.copy_within(kept..read + short, written);
                        written += read + short - kept;
                        kept = read + length;
                    }
                }
                read += length;
            }
        }
        (read <= block.len()).then_some(())?;
        block.copy_within(kept.., written);
        block.truncate(written + block.len() - kept);
        Some(())
    }
}

fn number<const N: usize>(block: &[u8], at: usize) -> Option<[u8; N]> {
    block.get(at..)?.first_chunk().copied()
}

/// Many at a time: most are blanks to the end, or have none.
fn without_blanks(mut value: &[u8]) -> &[u8] {
    while let Some((rest, b"                ")) = value.split_last_chunk() {
        value = rest;
    }
    let kept = value.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &value[..kept]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(type_name: &str) -> Column {
        Column {
            name: "c".into(),
            type_name: type_name.into(),
            not_null: false,
            generated: String::new(),
            identity: String::new(),
            has_default: false,
            binary_safe: true,
        }
    }

    fn row(values: &[Option<&str>]) -> Vec<u8> {
        let mut row = (values.len() as i16).to_be_bytes().to_vec();
        for value in values {
            row.extend(value.map_or(-1, |value| value.len() as i32).to_be_bytes());
            row.extend(value.unwrap_or_default().as_bytes());
        }
        row
    }

    fn header(more: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[0; FLAGS_BYTES], &(more.len() as u32).to_be_bytes(), more].concat()
    }

    fn unpadding() -> Unpadding {
        let (number, padded) = (column("integer"), column("character(40)"));
        Unpadding::of(&[&number, &padded, &padded]).expect("two are padded")
    }

    #[test]
    fn only_what_fills_a_value_up_is_left_out() {
        let blanks = " ".repeat(40);
        let long = format!("{}é x", " ".repeat(20));
        let padded = |text: &str| format!("{text}{blanks}");
        for more in [&b""[..], b"more"] {
            let (mut unpadding, mut given, mut expected) = (unpadding(), header(more), header(more));
            for (first, second) in [
                (None, None),
                (Some(""), Some("a")),
                (Some("a b"), None),
                (Some(&*long), Some("\t\n")),
                (Some("é"), Some("")),
            ] {
                let (wide, other) = (first.map(padded), second.map(padded));
                given.extend(row(&[Some("    "), wide.as_deref(), other.as_deref()]));
                expected.extend(row(&[Some("    "), first, second]));
            }
            given.extend(NO_MORE_ROWS.to_be_bytes());
            expected.extend(NO_MORE_ROWS.to_be_bytes());
            unpadding.shorten(&mut given).expect("well formed");
            assert!(given == expected, "{given:?}");
        }
    }

    #[test]
    fn each_number_of_blanks_is_found() {
        for blanks in 0..50 {
            for text in ["", "x", "a rather long text of more than sixteen"] {
                let value = format!("{text}{}", " ".repeat(blanks));
                assert_eq!(without_blanks(value.as_bytes()), text.as_bytes(), "{blanks} blanks behind {text:?}");
            }
        }
    }

    #[test]
    fn a_header_comes_once_and_blocks_are_shortened_one_by_one() {
        let mut unpadding = unpadding();
        let value = format!("x{}", " ".repeat(9));
        let (full, short) = (row(&[None, Some(&value), Some("y")]), row(&[None, Some("x"), Some("y")]));
        let mut first = [header(b""), full.clone()].concat();
        unpadding.shorten(&mut first).expect("well formed");
        assert_eq!(first, [header(b""), short.clone()].concat());
        let mut second = [full.clone(), full].concat();
        unpadding.shorten(&mut second).expect("well formed");
        assert_eq!(second, [short.clone(), short].concat());
        let mut last = NO_MORE_ROWS.to_be_bytes().to_vec();
        unpadding.shorten(&mut last).expect("well formed");
        assert_eq!(last, NO_MORE_ROWS.to_be_bytes());
    }

    #[test]
    fn what_is_no_binary_copy_is_refused_wherever_it_ends() {
        let whole = [header(b"more"), row(&[Some("1"), Some("a  "), Some("b")])].concat();
        for length in 0..whole.len() {
            if length == header(b"more").len() {
                continue;
            }
            let refused = unpadding().shorten(&mut whole[..length].to_vec());
            assert!(refused.is_err(), "{length} of {} bytes are taken", whole.len());
        }
        let too_many = row(&[None, None, None, Some("x ")]);
        assert!(unpadding().shorten(&mut [header(b""), too_many].concat()).is_err());
    }

    #[test]
    fn only_char_of_some_width_is_filled_up() {
        for (type_name, expected) in [
            ("character(16)", true),
            ("character(84)", true),
            ("character(1)", false),
            ("bpchar", false),
            ("character(40)[]", false),
            ("character varying(40)", false),
            ("text", false),
        ] {
            assert_eq!(column(type_name).is_padded(), expected, "{type_name}");
        }
        assert!(Unpadding::of(&[&column("text")]).is_none());
    }
}
