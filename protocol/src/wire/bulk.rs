//! One stream of blocks: a header, checked bytes, and a trailer that says how it ended.
//!
//! The opener writes one [`BulkRequest`]; the other end answers with blocks and closes with a [`BulkTrailer`].
//! A block is `length, raw length, codec, checksum of the raw bytes, bytes` and stands alone. There is no queue
//! here: the flow control of QUIC or TCP holds the sender back, and dropping the stream ends the sender's work.
//!
//! Wire format 1, all numbers little-endian: `u32 length, u32 raw length, u8 codec (0 raw, 1 lz4, 2 zstd,
//! 255 trailer), u64 xxh3-64`.

use std::{io, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    compress::{self, Adaptive, Codec, Compression},
    io::Io,
    limits::MAX_BULK_REQUEST_BYTES,
};
use crate::{
    failure::{Code, Explain, Failure},
    v1::{BulkRequest, BulkTrailer},
};

/// The largest block, before and after compression: one row may fill one alone.
pub const MAX_BLOCK_BYTES: usize = 1 << 30;
/// What senders aim at.
pub const BLOCK_BYTES: usize = 512 << 10;
const HEADER_BYTES: usize = 17;
const TRAILER: u8 = 255;

/// Why a stream of blocks ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke, or the other end let go.
    #[error("the stream broke")]
    Broken(#[from] io::Error),
    /// A block is not what its sender checksummed.
    #[error("block {number} is damaged: {reason}")]
    Damaged {
        /// Counted from 0.
        number: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// The sender failed and says why.
    #[error("the sender failed: {}", .0.message)]
    Sender(Failure),
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Broken(_) => Code::StreamBroken,
            Self::Damaged { .. } => Code::ChunkDamaged,
            Self::Sender(failure) => failure.code,
        }
    }

    fn explain(&self) -> Failure {
        match self {
            Self::Sender(failure) => failure.clone(),
            Self::Broken(source) => Failure::new(self.code(), self.to_string()).caused_by(source),
            Self::Damaged { .. } => Failure::new(self.code(), self.to_string()),
        }
    }
}

/// Sends blocks to whoever opened the stream.
pub struct BlockSink {
    io: Io,
    adaptive: Adaptive,
    packed: Vec<u8>,
    hash: Box<Xxh3>,
    sent: u64,
    /// A block was begun and given up: nothing that follows could be understood.
    is_torn: bool,
}

impl BlockSink {
    /// Reads what the opener of `io` wants, waiting at most `limit`.
    pub async fn accept(mut io: Io, limit: Duration) -> Result<(BulkRequest, Io), Error> {
        let read = async {
            let length = io.read_u32_le().await?;
            if length > MAX_BULK_REQUEST_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut request = vec![0; length as usize];
            io.read_exact(&mut request).await?;
            BulkRequest::decode(&request[..]).map_err(io::Error::other)
        };
        let request = tokio::time::timeout(limit, read).await.map_err(io::Error::from)??;
        Ok((request, io))
    }

    /// Begins to send on `io`. `is_local`: both ends share a machine.
    pub fn new(io: Io, compression: Compression, is_local: bool) -> Self {
        let adaptive = Adaptive::new(compression, is_local);
        Self { io, adaptive, packed: Vec::new(), hash: Box::default(), sent: 0, is_torn: false }
    }

    /// Sends one block; waits while the receiver is behind. At most [`MAX_BLOCK_BYTES`].
    pub async fn send(&mut self, raw: impl Into<Bytes>) -> Result<(), Error> {
        let raw = raw.into();
        if raw.len() > MAX_BLOCK_BYTES {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let began = Instant::now();
        let (codec, length) = compress::compress(self.adaptive.codec(), &raw, &mut self.packed)?;
        let compressed = Instant::now();
        let (raw_length, checksum) = (raw.len(), xxh3_64(&raw));
        let mark = match codec {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
            Codec::Zstd(_) => 2,
        };
        self.is_torn = true;
        self.io.write_all(&header(length, raw_length, mark, checksum)).await?;
        match codec {
            Codec::Raw => self.io.write_bytes(raw).await?,
            _ => self.io.write_all(&self.packed[..length]).await?,
        }
        self.io.flush().await?;
        self.is_torn = false;
        self.hash.update(&checksum.to_le_bytes());
        self.sent += raw_length as u64;
        self.adaptive.learn(raw_length, length, compressed - began, compressed.elapsed());
        Ok(())
    }

    /// Says that all is sent, `rows` of it, closes the stream, and waits until the reader has let go of it.
    pub async fn finish(self, rows: u64) -> Result<(), Error> {
        let trailer = BulkTrailer { rows, bytes: self.sent, hash: self.hash.digest(), failure: None };
        self.close(trailer).await
    }

    /// Says why no more will come, and closes the stream; where a block was begun and given up, the stream just breaks.
    pub async fn fail(self, failure: &Failure) -> Result<(), Error> {
        let trailer =
            BulkTrailer { rows: 0, bytes: self.sent, hash: self.hash.digest(), failure: Some(failure.into()) };
        self.close(trailer).await
    }

    async fn close(mut self, trailer: BulkTrailer) -> Result<(), Error> {
        if self.is_torn {
            return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
        }
        let trailer = trailer.encode_to_vec();
        self.io.write_all(&header(trailer.len(), trailer.len(), TRAILER, xxh3_64(&trailer))).await?;
        self.io.write_all(&trailer).await?;
        self.io.shutdown().await?;
        // The reader lets go of the stream once it has read the trailer. Until then the connection is in use: closed
        // now, it would take what is still on the way with it.
        let mut nothing = [0; 64];
        while self.io.read(&mut nothing).await.is_ok_and(|length| length > 0) {}
        Ok(())
    }
}

fn header(length: usize, raw_length: usize, mark: u8, checksum: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&u32::try_from(length).expect("a block fits u32").to_le_bytes());
    header[4..8].copy_from_slice(&u32::try_from(raw_length).expect("a block fits u32").to_le_bytes());
    header[8] = mark;
    header[9..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Receives blocks from whom we asked.
pub struct BlockSource {
    io: Io,
    hash: Box<Xxh3>,
    blocks: u64,
    received: u64,
    trailer: Option<BulkTrailer>,
}

impl BlockSource {
    /// Asks for `request` on a stream just opened.
    pub async fn request(mut io: Io, request: &BulkRequest) -> Result<Self, Error> {
        let request = request.encode_to_vec();
        io.write_u32_le(u32::try_from(request.len()).expect("a request fits u32")).await?;
        io.write_all(&request).await?;
        // TLS keeps a last piece back until it is told.
        io.flush().await?;
        Ok(Self { io, hash: Box::default(), blocks: 0, received: 0, trailer: None })
    }

    /// The next block, checked; `None` once the sender has said that this was all.
    ///
    /// Not cancel-safe: a half-read block is lost with the stream.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.trailer.is_some() {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.io.read_exact(&mut header).await?;
        let number = |from: usize| u32::from_le_bytes(header[from..from + 4].try_into().expect("four bytes")) as usize;
        let (length, raw_length) = (number(0), number(4));
        let checksum = u64::from_le_bytes(header[9..].try_into().expect("eight bytes"));
        let damaged = |reason| Error::Damaged { number: self.blocks, reason };
        if length > MAX_BLOCK_BYTES || raw_length > MAX_BLOCK_BYTES {
            return Err(damaged("its length is impossible"));
        }
        // Grown as bytes arrive, so that a forged length costs the forger, not us.
        let mut body = Vec::with_capacity(length.min(2 * BLOCK_BYTES));
        (&mut self.io).take(length as u64).read_to_end(&mut body).await?;
        if body.len() < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let codec = match header[8] {
            TRAILER => return self.end(&body, checksum).map(|()| None),
            0 if length == raw_length => None,
            1 => Some(Codec::Lz4),
            2 => Some(Codec::Zstd(0)),
            _ => return Err(damaged("its codec is unknown")),
        };
        let raw = match codec {
            None => body,
            Some(codec) => {
                compress::expand(codec, &body, raw_length).map_err(|_| damaged("it does not expand to its length"))?
            }
        };
        if xxh3_64(&raw) != checksum {
            return Err(damaged("its checksum differs"));
        }
        self.hash.update(&checksum.to_le_bytes());
        self.blocks += 1;
        self.received += raw.len() as u64;
        Ok(Some(raw.into()))
    }

    fn end(&mut self, body: &[u8], checksum: u64) -> Result<(), Error> {
        let damaged = |reason| Error::Damaged { number: self.blocks, reason };
        if xxh3_64(body) != checksum {
            return Err(damaged("the trailer's checksum differs"));
        }
        let trailer = BulkTrailer::decode(body).map_err(|_| damaged("the trailer is no trailer"))?;
        if let Some(failure) = trailer.failure {
            return Err(Error::Sender(failure.into()));
        }
        if trailer.bytes != self.received || trailer.hash != self.hash.digest() {
            return Err(damaged("blocks are missing before the trailer"));
        }
        self.trailer = Some(trailer);
        Ok(())
    }

    /// What the sender said at the end; `None` before [`BlockSource::next`] has returned `None`.
    pub fn trailer(&self) -> Option<&BulkTrailer> {
        self.trailer.as_ref()
    }
}
