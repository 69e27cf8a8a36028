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

/// Blocks before the first decision of [`Adaptive`], which a part of a table must not wait for long …
const FIRST_WINDOW: usize = 4;
/// … and between all later ones.
const WINDOW: usize = 32;
/// Windows without compression after it did not pay; twice as many each time that it does not again.
const FIRST_REST: u32 = 4;
const LONGEST_REST: u32 = 64;
/// What it costs two agents on one machine to hand a thousand bytes over, in nanoseconds of a processor: sockets on both
/// sides, encryption and decryption. About 1.2 µs where it was measured; less is said, so that compression pays for sure.
const HANDOVER_OF_1000_BYTES: u64 = 1_000;

/// Picks the codec from what the last blocks cost.
///
/// Over a network it begins with zstd 1; where the link keeps the sender waiting most of the time it presses harder,
/// where the compressor is the brake it presses less, and where blocks do not shrink it stops, trying again later.
/// Between two ends on one machine, which share its processors, LZ4 is taken where it costs less of them than the bytes
/// it saves would, and nothing else.
#[derive(Debug)]
pub struct Adaptive {
    codec: Codec,
    rule: Rule,
    window: usize,
    raw_bytes: u64,
    sent_bytes: u64,
    compressing: Vec<Duration>,
    waiting: Duration,
    /// Windows still to pass without compression.
    resting: u32,
    next_rest: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// As the operator said.
    Fixed,
    OverNetwork,
    OnOneMachine,
}

impl Adaptive {
    /// Begins for one stream; `is_local` says that both ends share a machine.
    pub fn new(wanted: Compression, is_local: bool) -> Self {
        let (codec, rule) = match wanted {
            Compression::Fixed(codec) => (codec, Rule::Fixed),
            Compression::Auto if is_local => (Codec::Lz4, Rule::OnOneMachine),
            Compression::Auto => (Codec::Zstd(1), Rule::OverNetwork),
        };
        Self {
            codec,
            rule,
            window: FIRST_WINDOW,
            raw_bytes: 0,
            sent_bytes: 0,
            compressing: Vec::new(),
            waiting: Duration::ZERO,
            resting: 0,
            next_rest: FIRST_REST,
        }
    }

    /// How to write the next block.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Tells what a block has cost: its sizes, the time its compression took and the time the link took it.
    pub fn learn(&mut self, raw_bytes: usize, sent_bytes: usize, compressing: Duration, waiting: Duration) {
        if self.rule == Rule::Fixed {
            return;
        }
        self.raw_bytes += raw_bytes as u64;
        self.sent_bytes += sent_bytes as u64;
        self.compressing.push(compressing);
        self.waiting += waiting;
        if self.compressing.len() >= self.window {
            self.codec = self.decide();
            self.window = WINDOW;
            (self.raw_bytes, self.sent_bytes, self.waiting) = (0, 0, Duration::ZERO);
            self.compressing.clear();
        }
    }

    fn decide(&mut self) -> Codec {
        if self.codec == Codec::Raw {
            self.resting = self.resting.saturating_sub(1);
            return if self.resting == 0 { Codec::Lz4 } else { Codec::Raw };
        }
        if !self.pays() {
            self.resting = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
            return Codec::Raw;
        }
        self.next_rest = FIRST_REST;
        let compressing: Duration = self.compressing.iter().sum();
        let link_is_slow = self.waiting > compressing * 4;
        let link_is_fast = self.waiting * 4 < compressing;
        match self.codec {
            same if self.rule == Rule::OnOneMachine => same,
            Codec::Lz4 if link_is_slow => Codec::Zstd(1),
            Codec::Zstd(1) if link_is_slow => Codec::Zstd(3),
            Codec::Zstd(level) if link_is_fast && level > 1 => Codec::Zstd(1),
            Codec::Zstd(_) if link_is_fast => Codec::Lz4,
            same => same,
        }
    }

    /// Whether the last window was worth compressing.
    fn pays(&mut self) -> bool {
        if self.rule == Rule::OverNetwork {
            return self.sent_bytes * 105 < self.raw_bytes * 100;
        }
        // One of the quicker: on a busy machine many wait for a processor meanwhile, and that costs it nothing.
        let blocks = self.compressing.len();
        let (_, typical, _) = self.compressing.select_nth_unstable(blocks / 4);
        // Expanding takes about half as long again.
        let costs = typical.as_nanos() * blocks as u128 * 3 / 2;
        let saved = u128::from(self.raw_bytes.saturating_sub(self.sent_bytes) * HANDOVER_OF_1000_BYTES / 1000);
        costs < saved
    }
}

/// Compresses `raw` to the beginning of `out`, which grows as it must, and says how and into how many bytes; it is
/// [`Codec::Raw`] where it does not shrink, and `out` means nothing then.
pub(super) fn compress(codec: Codec, raw: &[u8], out: &mut Vec<u8>) -> std::io::Result<(Codec, usize)> {
    let bound = match codec {
        Codec::Raw => return Ok((Codec::Raw, raw.len())),
        Codec::Lz4 => lz4_flex::block::get_maximum_output_size(raw.len()),
        Codec::Zstd(_) => zstd::zstd_safe::compress_bound(raw.len()),
    };
    if out.len() < bound {
        out.resize(bound, 0);
    }
    let length = match codec {
        Codec::Zstd(level) => zstd::bulk::compress_to_buffer(raw, &mut out[..], level)?,
        _ => lz4_flex::block::compress_into(raw, out).map_err(std::io::Error::other)?,
    };
    Ok(if length < raw.len() { (codec, length) } else { (Codec::Raw, raw.len()) })
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
            let (used, length) = compress(codec, &raw, &mut out).expect("compresses");
            let block = if used == Codec::Raw { &raw[..] } else { &out[..length] };
            assert_eq!(expand(used, block, raw.len()).expect("expands"), raw);
        }
    }

    /// The codec after windows of blocks of a kilobyte: what each was sent as, and what it cost in nanoseconds to compress
    /// and to send.
    fn after(is_local: bool, windows: &[(usize, u64, u64)]) -> Codec {
        let mut adaptive = Adaptive::new(Compression::Auto, is_local);
        for (sent, compressing, waiting) in windows {
            for _ in 0..adaptive.window {
                adaptive.learn(1000, *sent, Duration::from_nanos(*compressing), Duration::from_nanos(*waiting));
            }
        }
        adaptive.codec()
    }

    #[test]
    fn auto_presses_harder_on_a_slow_link_and_leaves_alone_what_does_not_shrink() {
        let after = |windows: &[(usize, u64, u64)]| after(false, windows);
        assert_eq!(after(&[]), Codec::Zstd(1));
        assert_eq!(after(&[(400, 2, 20)]), Codec::Zstd(3));
        assert_eq!(after(&[(400, 20, 1)]), Codec::Lz4);
        let (stubborn, as_it_is) = ((990, 2, 2), (1000, 0, 20));
        assert_eq!(after(&[stubborn]), Codec::Raw);
        let tried_again = [&[stubborn][..], &[as_it_is; FIRST_REST as usize]].concat();
        assert_eq!(after(&tried_again[..FIRST_REST as usize]), Codec::Raw);
        assert_eq!(after(&tried_again), Codec::Lz4);
        let rests_longer = [&tried_again[..], &[stubborn], &[as_it_is; FIRST_REST as usize]].concat();
        assert_eq!(after(&rests_longer), Codec::Raw);
    }

    #[test]
    fn on_one_machine_lz4_is_taken_where_it_costs_less_than_the_bytes_it_saves() {
        assert_eq!(after(true, &[]), Codec::Lz4);
        assert_eq!(after(true, &[(300, 200, 0)]), Codec::Lz4);
        assert_eq!(after(true, &[(300, 200, 9_000)]), Codec::Lz4, "there is no link to wait for");
        assert_eq!(after(true, &[(600, 1_500, 0)]), Codec::Raw, "it takes longer than handing all of it over");
        assert_eq!(after(true, &[(1000, 100, 0)]), Codec::Raw, "nothing is saved");
    }

    #[test]
    fn blocks_that_waited_for_a_processor_do_not_count() {
        let mut adaptive = Adaptive::new(Compression::Auto, true);
        for compressing in [90_000, 200, 90_000, 200] {
            adaptive.learn(1000, 300, Duration::from_nanos(compressing), Duration::ZERO);
        }
        assert_eq!(adaptive.codec(), Codec::Lz4);
    }
}
