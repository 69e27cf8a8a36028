//! One stream whose bytes are PostgreSQL's: how it is asked for and granted.
//!
//! The opener writes one [`LinkRequest`], the other end one [`LinkReply`], each behind its length (`u32`,
//! little-endian). After a reply without a failure the stream belongs to the two PostgreSQL servers.

use std::{io, time::Duration};

use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::io::Io;
use crate::{
    failure::{Code, Failure},
    v1::{LinkReply, LinkRequest},
};

/// A start-up packet has at most 10,000 bytes; what is made of it is shorter.
const MAX_MESSAGE_BYTES: u32 = 16 << 10;

/// Asks for a link on a stream just opened, and waits at most `limit` for the answer.
pub async fn request(mut io: Io, request: &LinkRequest, limit: Duration) -> Result<Io, Failure> {
    let asked = async {
        write(&mut io, request).await?;
        read::<LinkReply>(&mut io).await
    };
    let silent = || Failure::new(Code::PeerSilent, format!("it did not answer in {} s", limit.as_secs()));
    let answered = timeout(limit, asked).await.map_err(|_| silent())?;
    let broken = |error: io::Error| Failure::new(Code::StreamBroken, "the stream broke").caused_by(&error);
    match answered.map_err(broken)?.failure {
        Some(failure) => Err(failure.into()),
        None => Ok(io),
    }
}

/// Reads what the opener of `io` asks for, waiting at most `limit`.
pub async fn accept(io: &mut Io, limit: Duration) -> io::Result<LinkRequest> {
    timeout(limit, read(io)).await.map_err(io::Error::from)?
}

/// Grants the link, or says why not; then closes the stream.
pub async fn answer(io: &mut Io, granted: Result<(), &Failure>) -> io::Result<()> {
    let failure = granted.err().map(Into::into);
    let is_over = failure.is_some();
    write(io, &LinkReply { failure }).await?;
    if is_over { io.shutdown().await } else { Ok(()) }
}

async fn write(io: &mut Io, message: &impl Message) -> io::Result<()> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    io.write_all(&[&length.to_le_bytes(), &message[..]].concat()).await
}

async fn read<M: Message + Default>(io: &mut Io) -> io::Result<M> {
    let length = io.read_u32_le().await?;
    if length > MAX_MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length as usize];
    io.read_exact(&mut message).await?;
    M::decode(&message[..]).map_err(io::Error::other)
}
