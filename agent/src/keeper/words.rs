//! What an agent and its keeper say to each other.

use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Failure},
    names::TableName,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What the agent asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(super) enum Ask {
    /// Begin the transaction and lock these tables against DDL.
    Lock {
        /// The tables.
        tables: Vec<TableName>,
        /// How long to wait for whoever holds a lock of his own.
        patience_ms: u64,
    },
    /// See what `snapshot` shows, and export it again.
    Hold {
        /// As it was exported with the slot.
        snapshot: String,
        /// The slot it was made with, which goes when nobody comes any more.
        slot: String,
    },
    /// It is still wanted. Whoever attaches says this first.
    Renew,
    /// It is wanted no more: the keeper ends.
    LetGo,
}

/// What the keeper answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The server process that holds the locks; 0: none yet.
    #[serde(default)]
    pub(super) backend_pid: i32,
    /// The snapshot as the keeper has exported it; empty: none yet.
    #[serde(default)]
    pub(super) snapshot: String,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<Failure>,
}

/// One end of the socket.
#[derive(Debug)]
pub(super) struct Line {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    text: Vec<u8>,
}

impl Line {
    pub(super) fn over(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: BufReader::new(read), write, text: Vec::new() }
    }

    pub(super) async fn say(&mut self, message: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(message).expect("messages are plain data");
        text.push(b'\n');
        self.write.write_all(&text).await
    }

    /// The next message; none: the other end has gone, or speaks another language. Cancel-safe: what has been read of a
    /// line stays for the next call.
    pub(super) async fn hear<T: for<'a> Deserialize<'a>>(&mut self) -> Option<T> {
        let read = self.read.read_until(b'\n', &mut self.text).await.ok()?;
        let text = std::mem::take(&mut self.text);
        if read == 0 { None } else { serde_json::from_slice(&text).ok() }
    }
}

pub(super) fn gone(why: &str) -> Failure {
    Failure::new(Code::SnapshotLost, format!("the process that kept the snapshot is gone: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_and_its_answer_come_over_a_socket_as_they_were() {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (mut ours, mut theirs) = (Line::over(ours), Line::over(theirs));
        let tables = vec![TableName::new("public", "line\nbreak \"quoted\"")];
        let asked = Ask::Lock { tables, patience_ms: 5 };
        ours.say(&asked).await.expect("it is sent");
        assert_eq!(theirs.hear::<Ask>().await, Some(asked));
        let failure = Some(Failure::new(Code::SnapshotLost, "it is gone"));
        let answer = Answer { backend_pid: 7, snapshot: "00000003-0000001B-1".into(), failure };
        theirs.say(&answer).await.expect("it is sent");
        assert_eq!(ours.hear::<Answer>().await, Some(answer));
        drop(theirs);
        assert_eq!(ours.hear::<Answer>().await, None);
    }
}
