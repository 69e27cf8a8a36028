//! How blocks are compressed, and when not.

use std::{fmt, str::FromStr, time::Duration};

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Decide by what is measured; see [`Adaptive`].
    Auto,
    /// Always the same.
    Fixed(Codec),
}

/// How one block is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// LZ4 block format.
    Lz4,
    /// Zstandard at this level.
    Zstd(i32),
}

/// A text that names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression: auto, none, lz4, zstd or zstd:LEVEL (-7 to 19) is expected")]
pub struct BadCompression(String);

impl FromStr for Compression {
    type Err = BadCompression;
    fn from_str(text: &str) -> Result<Self, BadCompression> {
        let bad = || BadCompression(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "" | "auto" => Ok(Self::Auto),
                "none" => Ok(Self::Fixed(Codec::Raw)),
                "lz4" => Ok(Self::Fixed(Codec::Lz4)),
                "zstd" => Ok(Self::Fixed(Codec::Zstd(1))),
                _ => Err(bad()),
            },
            Some(("zstd", level)) => match level.parse() {
                Ok(level) if (-7..=19).contains(&level) => Ok(Self::Fixed(Codec::Zstd(level))),
                _ => Err(bad()),
            },
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(Codec::Raw) => f.write_str("none"),
            Self::Fixed(Codec::Lz4) => f.write_str("lz4"),
            Self::Fixed(Codec::Zstd(level)) => write!(f, "zstd:{level}"),
        }
    }
}

/// Blocks between two decisions of [`Adaptive`].
const WINDOW: u32 = 32;

/// Picks the codec from what the last blocks cost.
///
/// Between two ends on one machine nothing is compressed. Otherwise it begins with zstd 1; where the link keeps
/// the sender waiting most of the time it presses harder, where the compressor is the brake it presses less, and
/// where blocks do not shrink it stops, trying again later.
#[derive(Debug)]
pub struct Adaptive {
    codec: Codec,
    may_change: bool,
    blocks: u32,
    raw_bytes: u64,
    sent_bytes: u64,
    compressing: Duration,
    waiting: Duration,
}

impl Adaptive {
    /// Begins for one stream; `is_local` says that both ends share a machine.
    pub fn new(wanted: Compression, is_local: bool) -> Self {
        let (codec, may_change) = match wanted {
            Compression::Fixed(codec) => (codec, false),
            Compression::Auto if is_local => (Codec::Raw, false),
            Compression::Auto => (Codec::Zstd(1), true),
        };
        Self {
            codec,
            may_change,
            blocks: 0,
            raw_bytes: 0,
            sent_bytes: 0,
            compressing: Duration::ZERO,
            waiting: Duration::ZERO,
        }
    }

    /// How to write the next block.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Tells what a block has cost: its sizes, the time its compression took and the time the link took it.
    pub fn learn(&mut self, raw_bytes: usize, sent_bytes: usize, compressing: Duration, waiting: Duration) {
        if !self.may_change {
            return;
        }
        self.blocks += 1;
        self.raw_bytes += raw_bytes as u64;
        self.sent_bytes += sent_bytes as u64;
        self.compressing += compressing;
        self.waiting += waiting;
        if self.blocks == WINDOW {
            self.codec = self.decide();
            (self.blocks, self.raw_bytes, self.sent_bytes) = (0, 0, 0);
            (self.compressing, self.waiting) = (Duration::ZERO, Duration::ZERO);
        }
    }

    fn decide(&self) -> Codec {
        let shrinks = self.sent_bytes * 105 < self.raw_bytes * 100;
        let link_is_slow = self.waiting > self.compressing * 4;
        let link_is_fast = self.waiting * 4 < self.compressing;
        match self.codec {
            Codec::Raw if link_is_slow || !self.waiting.is_zero() => Codec::Lz4,
            Codec::Raw => Codec::Raw,
            _ if !shrinks => Codec::Raw,
            Codec::Lz4 if link_is_slow => Codec::Zstd(1),
            Codec::Zstd(1) if link_is_slow => Codec::Zstd(3),
            Codec::Zstd(level) if link_is_fast && level > 1 => Codec::Zstd(1),
            Codec::Zstd(_) if link_is_fast => Codec::Lz4,
            same => same,
        }
    }
}

/// Compresses `raw` into `out` (emptied first) and says how; falls back to [`Codec::Raw`] where it does not shrink.
pub(super) fn compress(codec: Codec, raw: &[u8], out: &mut Vec<u8>) -> std::io::Result<Codec> {
    out.clear();
    match codec {
        Codec::Raw => return Ok(Codec::Raw),
        Codec::Lz4 => {
            out.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
            let length = lz4_flex::block::compress_into(raw, out).map_err(std::io::Error::other)?;
            out.truncate(length);
        }
        Codec::Zstd(level) => {
            out.resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
            let length = zstd::bulk::compress_to_buffer(raw, out, level)?;
            out.truncate(length);
        }
    }
    Ok(if out.len() < raw.len() { codec } else { Codec::Raw })
}

/// Expands `block` to exactly `raw_length` bytes, or says that it does not.
pub(super) fn expand(codec: Codec, block: &[u8], raw_length: usize) -> std::io::Result<Vec<u8>> {
    let raw = match codec {
        Codec::Raw => block.to_vec(),
        Codec::Lz4 => lz4_flex::block::decompress(block, raw_length).map_err(std::io::Error::other)?,
        Codec::Zstd(_) => zstd::bulk::decompress(block, raw_length)?,
    };
    if raw.len() == raw_length { Ok(raw) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_reads_back_as_it_is_written() {
        for text in ["auto", "none", "lz4", "zstd:1", "zstd:-3", "zstd:19"] {
            assert_eq!(text.parse::<Compression>().expect("a compression").to_string(), text);
        }
        for bad in ["gzip", "zstd:", "zstd:99", "lz4:1", "none:1"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_compressed_expands_to_itself() {
        let raw = b"steep ".repeat(1000);
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(-3)] {
            let mut out = Vec::new();
            let used = compress(codec, &raw, &mut out).expect("compresses");
            let block = if used == Codec::Raw { &raw[..] } else { &out[..] };
            assert_eq!(expand(used, block, raw.len()).expect("expands"), raw);
        }
    }

    #[test]
    fn auto_presses_harder_on_a_slow_link_and_not_at_all_on_one_machine() {
        let ms = Duration::from_millis;
        let after = |steps: &[(usize, u64, u64)]| {
            let mut adaptive = Adaptive::new(Compression::Auto, false);
            for (sent, compressing, waiting) in steps {
                for _ in 0..WINDOW {
                    adaptive.learn(1000, *sent, ms(*compressing), ms(*waiting));
                }
            }
            adaptive.codec()
        };
        assert_eq!(Adaptive::new(Compression::Auto, true).codec(), Codec::Raw);
        assert_eq!(after(&[]), Codec::Zstd(1));
        assert_eq!(after(&[(400, 2, 20)]), Codec::Zstd(3));
        assert_eq!(after(&[(400, 20, 1)]), Codec::Lz4);
        assert_eq!(after(&[(990, 2, 2)]), Codec::Raw, "blocks that do not shrink are left alone");
        assert_eq!(after(&[(990, 2, 2), (1000, 0, 20)]), Codec::Lz4, "and tried again");
    }
}
