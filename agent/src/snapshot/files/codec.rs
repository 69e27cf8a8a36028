//! How the files of the rows are compressed: formats that everybody's own programs read.

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
};

use flate2::{read::MultiGzDecoder, write::GzEncoder};
use lz4_flex::frame::{FrameDecoder, FrameEncoder};

/// A compression of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    None,
    /// What gzip writes.
    Gzip,
    /// What lz4 writes.
    Lz4,
    /// What zstd writes, at this level.
    Zstd(i32),
}

/// A text that names no compression of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression of files: none, gzip, lz4, zstd or zstd:LEVEL (1 to 19) is expected")]
pub struct BadCodec(String);

impl FromStr for Codec {
    type Err = BadCodec;
    fn from_str(text: &str) -> Result<Self, BadCodec> {
        let bad = || BadCodec(text.to_owned());
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "lz4" => Ok(Self::Lz4),
            "" | "zstd" => Ok(Self::Zstd(3)),
            _ => match text.strip_prefix("zstd:").map(str::parse) {
                Some(Ok(level)) if (1..=19).contains(&level) => Ok(Self::Zstd(level)),
                _ => Err(bad()),
            },
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd(_) => "zstd",
        })
    }
}

impl Codec {
    /// How names of files end.
    pub fn end(self) -> &'static str {
        match self {
            Self::None => ".csv",
            Self::Gzip => ".csv.gz",
            Self::Lz4 => ".csv.lz4",
            Self::Zstd(_) => ".csv.zst",
        }
    }

    /// Compresses into `to`.
    pub fn writer<W: Write>(self, to: W) -> io::Result<Encoder<W>> {
        Ok(match self {
            Self::None => Encoder::None(to),
            Self::Gzip => Encoder::Gzip(GzEncoder::new(to, flate2::Compression::default())),
            Self::Lz4 => Encoder::Lz4(Box::new(FrameEncoder::new(to))),
            Self::Zstd(level) => Encoder::Zstd(zstd::Encoder::new(to, level)?),
        })
    }

    /// Expands what `from` holds. Whoever reads says when it is enough: a small file may become endless.
    pub fn reader<'a, R: Read + Send + 'a>(self, from: R) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(from),
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Lz4 => Box::new(FrameDecoder::new(from)),
            Self::Zstd(_) => Box::new(zstd::Decoder::new(from)?),
        })
    }
}

/// Compresses what is written to it; whole only once it is finished.
pub enum Encoder<W: Write> {
    /// As it is.
    None(W),
    /// gzip.
    Gzip(GzEncoder<W>),
    /// lz4.
    Lz4(Box<FrameEncoder<W>>),
    /// zstd.
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Writes what is left, and gives back what it wrote to.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(to) => Ok(to),
            Self::Gzip(encoder) => encoder.finish(),
            // What its sink said comes out as it was.
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::from),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(to) => to.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(to) => to.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Lz4(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_in_every_compression() {
        let rows = "1,some text,2026-01-01\n".repeat(50_000);
        for word in ["none", "gzip", "lz4", "zstd", "zstd:1", "zstd:19"] {
            let codec: Codec = word.parse().expect("a compression");
            let mut encoder = codec.writer(Vec::new()).expect("it begins");
            encoder.write_all(rows.as_bytes()).expect("it takes rows");
            let written = encoder.finish().expect("it ends");
            let mut back = String::new();
            codec.reader(&written[..]).expect("it opens").read_to_string(&mut back).expect("it reads");
            assert!(back == rows, "{word}");
            // What is cut short says so, and is never taken for less.
            if codec != Codec::None {
                let mut cut = Vec::new();
                let read = codec.reader(&written[..written.len() - 3]).and_then(|mut from| from.read_to_end(&mut cut));
                assert!(read.is_err() || cut.len() == rows.len(), "{word}");
            }
        }
        for word in ["zip", "zstd:0", "zstd:20", "auto"] {
            assert!(word.parse::<Codec>().is_err(), "{word}");
        }
    }
}
